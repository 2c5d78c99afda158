"""GGUF metadata in; the fields a ``config.json`` and a ``generation_config.json`` would have, out.

The two are read by the same code as a folder's, and an error names GGUF's field: this file is the dictionary between
the two languages, and refuses what has no word in the other.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu.arch.truepoint import rope as truepoint
from openlpu.checkpoint.fields import Fields
from openlpu.checkpoint.gguf_vocabulary import Vocabulary

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_REQUIRED = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "vocab_size": "vocab_size",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
}
_SCALING = {
    "rope_type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "attention_factor": "rope.scaling.yarn_attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
# Fields that change the arithmetic, and the value with which they do not.
_NEUTRAL: Mapping[str, Any] = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.temperature_length": 0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "rope.scaling.alpha": 0.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "use_parallel_residual": False,
}
_SAMPLING = {
    "temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat",
}


@dataclass(frozen=True)
class _Translated(Fields):
    """Fields under Hugging Face's names, whose errors have GGUF's: ``words`` is Hugging Face's name -> GGUF's."""

    words: Mapping[str, str] = field(default_factory=dict)

    def where(self, field: str) -> str:
        return f"{self.path}: {self.words.get(self.inside + field, self.inside + field)}"

    def child(self, field: str) -> Fields | None:
        inner = super().child(field)
        return inner and _Translated(inner.path, inner.values, inner.inside, self.words)


def architecture(metadata: Fields) -> str:
    """``general.architecture``, when it is one of those here; the prefix of the model's own fields."""
    name = metadata.text("general.architecture")
    if name not in _ARCHITECTURES:
        where, known = metadata.where("general.architecture"), f"one of: {', '.join(_ARCHITECTURES)}"
        raise Unsupported(f"the architecture '{name}'", where=where, fix=known)
    return name


def config(metadata: Fields, vocab: int, tensors: Container[str], factors: np.ndarray | None) -> Fields:
    """The fields of a ``config.json``.

    ``vocab`` is the vocabulary's size where the model's is not given; ``tensors`` has the file's tensors by Hugging
    Face's names; ``factors`` is what rope_freqs.weight divides each frequency by, or None.  Raises
    :class:`BadCheckpoint` for a field that is missing or impossible, :class:`Unsupported` for one that changes the
    arithmetic in a way no architecture here has.
    """
    name = architecture(metadata)
    for short, neutral in _NEUTRAL.items():
        value = metadata.values.get(f"{name}.{short}", neutral)
        if value != neutral:
            raise Unsupported(f"is {value!r}, only {neutral!r} is read", where=metadata.where(f"{name}.{short}"))
    for short in _REQUIRED.values():
        if f"{name}.{short}" not in metadata.values:
            raise metadata.wrong(f"{name}.{short}", "the field is missing")
    words = {ours: f"{name}.{short}" for ours, short in (_REQUIRED | _OPTIONAL).items()}
    given = {ours: _one(metadata, key) for ours, key in words.items() if key in metadata.values}
    values: dict[str, Any] = {"num_key_value_heads": None, "vocab_size": vocab}
    values |= given | {
        # A llama file with a window is a Mistral, the one architecture of that layout that has windows.
        "model_type": "mistral" if name == "llama" and given.get("sliding_window") else name,
        "bos_token_id": None,
        "eos_token_id": None,
        "attention_bias": name != "qwen2" and "model.layers.0.self_attn.q_proj.bias" in tensors,
        "mlp_bias": "model.layers.0.mlp.up_proj.bias" in tensors,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    head_dim = _head_dim(metadata, name)
    turned = metadata.integer(f"{name}.rope.dimension_count", head_dim)
    values |= {"head_dim": head_dim, "partial_rotary_factor": turned / head_dim}
    values["rope_scaling"] = _scaling(metadata, name, head_dim, factors)
    words |= {"partial_rotary_factor": f"{name}.rope.dimension_count"}
    words |= {f"rope_scaling.{ours}": f"{name}.{short}" for ours, short in _SCALING.items()}
    return _Translated(metadata.path, values, words=words)


def generation(vocabulary: Vocabulary) -> Fields:
    """The fields of a ``generation_config.json``: begin and end tokens, and the sampling that its makers chose."""
    metadata = vocabulary.metadata
    words = {ours: f"general.sampling.{short}" for ours, short in _SAMPLING.items()}
    values = {ours: metadata.values[name] for ours, name in words.items() if name in metadata.values}
    values["do_sample"] = values.get("temperature", 0.0) != 0.0
    values |= {"bos_token_id": vocabulary.role("bos"), "eos_token_id": vocabulary.ends()}
    return _Translated(metadata.path, values, words=words)


def _one(metadata: Fields, name: str) -> Any:
    """A field that may be one value per layer, when all layers have the same."""
    value = metadata.values[name]
    if not isinstance(value, list):
        return value
    if not value or any(other != value[0] for other in value):
        raise Unsupported("differs from layer to layer", where=metadata.where(name))
    return value[0]


def _head_dim(metadata: Fields, name: str) -> int:
    """Channels of a head, the same for keys and values."""
    hidden, key = metadata.integer(f"{name}.embedding_length"), f"{name}.attention.head_count"
    heads = Fields(metadata.path, {key: _one(metadata, key)}).integer(key)
    if f"{name}.attention.key_length" not in metadata.values and hidden % heads:
        raise metadata.wrong(f"{name}.embedding_length", f"not a multiple of {heads} heads, and key_length is missing")
    head_dim = metadata.integer(f"{name}.attention.key_length", max(1, hidden // heads))
    if metadata.integer(f"{name}.attention.value_length", head_dim) != head_dim:
        raise Unsupported(f"values of another size than keys ({head_dim})",
                          where=metadata.where(f"{name}.attention.value_length"))
    return head_dim


def _scaling(metadata: Fields, name: str, head_dim: int, factors: np.ndarray | None) -> dict[str, Any] | None:
    """The fields of ``rope_scaling``, or None."""
    given = {ours: metadata.values[f"{name}.{short}"] for ours, short in _SCALING.items()
             if f"{name}.{short}" in metadata.values}
    old = f"{name}.rope.scale_linear"  # before there was a type
    if old in metadata.values and metadata.number(old) != 1.0:
        given = {"rope_type": "linear", "factor": metadata.number(old)} | given
    if "rope_type" not in given and given.get("factor", 1.0) not in (0.0, 1.0):  # what llama.cpp takes it for
        given["rope_type"] = "linear"
    if f"{name}.rope.scaling.yarn_ext_factor" in metadata.values:
        _check_growth(metadata, name, given.pop("attention_factor", 1.0))
    kind = given.get("rope_type", "none")
    if factors is not None:
        if kind != "none":
            where = metadata.where(f"{name}.rope.scaling.type")
            raise Unsupported("rope_freqs.weight beside another scaling", where=where)
        if factors.shape != (head_dim // 2,):
            what = f"{list(factors.shape)} factors for a head of {head_dim} channels"
            raise BadCheckpoint(what, where=f"{metadata.path}: rope_freqs.weight")
        theta = metadata.number(f"{name}.rope.freq_base", 10000.0)
        return _llama3(metadata, theta, head_dim, factors)
    return None if kind == "none" else given


def _check_growth(metadata: Fields, name: str, value: float) -> None:
    """Beside yarn_ext_factor it is a multiplier, as YaRN's authors have it, not attention_factor: only 1 is read."""
    if value != 1.0:
        where = metadata.where(f"{name}.rope.scaling.yarn_attn_factor")
        raise Unsupported(f"is {value!r}, beside yarn_ext_factor only 1.0 is read", where=where)


def _llama3(metadata: Fields, theta: float, head_dim: int, factors: np.ndarray) -> dict[str, Any]:
    """The parameters of Llama 3's scaling that give these factors.

    A file has the factors as fp32; the frequencies are wanted exact.  So the parameters are found again: the factor is
    that of the slowest pair, the original context a power of two, and the two limits are 1 and 4 in every such model.
    """
    for exponent in range(3, 21):
        found = {
            "rope_type": "llama3", "factor": max(float(factors[-1]), 1.0), "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 1 << exponent,
        }
        if np.allclose(_expected(found, theta, head_dim), factors, rtol=1e-3, atol=0):
            return found
    what = "these factors are not those of Llama 3's scaling for any original context of a power of two"
    raise Unsupported(what, where=f"{metadata.path}: rope_freqs.weight")


def _expected(scaling: Mapping[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by."""
    low, high = Decimal(scaling["low_freq_factor"]), Decimal(scaling["high_freq_factor"])
    out = []
    with localcontext(Context(prec=30)):
        for frequency in truepoint.frequencies(theta, head_dim):
            turns = scaling["original_max_position_embeddings"] * frequency / (2 * truepoint.PI)
            keep = min(max((turns - low) / (high - low), Decimal(0)), Decimal(1))
            out.append(float(1 / (keep + (1 - keep) / Decimal(scaling["factor"]))))
    return np.array(out)
