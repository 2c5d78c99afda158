"""What every architecture is reduced to: one frozen description of a decoder's shape.

In: the fields of a ``config.json``, read by :func:`read`.  Out: :class:`ModelConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openlpu._base.errors import BadRequest, Unsupported
from openlpu.checkpoint.fields import Fields


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, kind ("default" or "llama3") and the llama3 scaling's four numbers."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only model; sizes in channels, context in positions.

    ``context`` is the context in use: the model's own unless :func:`read` was asked for less.
    """

    architecture: str  # Hugging Face model_type: llama, mistral, qwen2, qwen3 …
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    norm_eps: float
    rope: Rope
    tied: bool
    bos: int | None = None
    eos: tuple[int, ...] = ()
    attention_bias: bool = False  # as config.json says; an architecture may fix it
    mlp_bias: bool = False


@dataclass(frozen=True)
class _Absent:
    """What Hugging Face assumes for a field that a ``config.json`` leaves out."""

    context: int
    kv_heads: int = 0  # 0: as many as heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    window: int = 0  # 0: none
    asks_for_window: bool = False  # whether use_sliding_window must be true for a window to count
    bos: int | None = None
    eos: int | None = None


_ABSENT: Mapping[str, _Absent] = {
    "llama": _Absent(context=2048, bos=1, eos=2),
    "mistral": _Absent(context=131072, kv_heads=8, window=4096, bos=1, eos=2),
    "qwen2": _Absent(context=32768, kv_heads=32, window=4096, asks_for_window=True),
    "qwen3": _Absent(context=32768, kv_heads=32, window=4096, asks_for_window=True, head_dim=128),
}
ARCHITECTURES = tuple(_ABSENT)


def read(config: Fields, generation: Fields, context: int | None = None) -> ModelConfig:
    """The shape a ``config.json`` describes, with the end tokens of ``generation_config.json`` where it has any.

    ``context`` limits the positions in use.  Raises :class:`BadCheckpoint` for a field that is missing or
    impossible, :class:`Unsupported` for one that asks for what openlpu does not do.
    """
    architecture = config.text("model_type")
    if architecture not in _ABSENT:
        known = f"one of: {', '.join(ARCHITECTURES)}"
        raise Unsupported(f"unknown architecture '{architecture}'", where=config.where("model_type"), fix=known)
    absent = _ABSENT[architecture]
    _check_supported(config)
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    bos = generation.ids("bos_token_id") or config.ids("bos_token_id", absent.bos)
    return ModelConfig(
        architecture=architecture,
        hidden=hidden,
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=_kv_heads(config, heads, absent.kv_heads),
        head_dim=_head_dim(config, hidden, heads, absent.head_dim),
        intermediate=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        context=_context(config, absent, context),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rope=_rope(config),
        tied=config.flag("tie_word_embeddings", False),
        bos=bos[0] if bos else None,
        eos=generation.ids("eos_token_id") or config.ids("eos_token_id", absent.eos),
        attention_bias=config.flag("attention_bias", False),
        mlp_bias=config.flag("mlp_bias", False),
    )


def _check_supported(config: Fields) -> None:
    """Fields that change the arithmetic in ways no architecture here has."""
    activation = config.text("hidden_act", "silu")
    if activation != "silu":
        raise Unsupported(f"the activation '{activation}'", where=config.where("hidden_act"), fix="only silu")
    if config.values.get("quantization_config") is not None:
        fix = "take the model's f32, f16 or bf16 weights"
        raise Unsupported("weights that are already quantized", where=config.where("quantization_config"), fix=fix)


def _kv_heads(config: Fields, heads: int, absent: int) -> int:
    # A null and an absent field differ here: null means "as many as heads" to every architecture.
    field = "num_key_value_heads"
    kv_heads = config.integer(field, (heads if field in config.values else absent) or heads)
    if heads % kv_heads:
        raise config.wrong(field, f"num_attention_heads {heads} is not a multiple of {kv_heads}")
    return kv_heads


def _head_dim(config: Fields, hidden: int, heads: int, absent: int) -> int:
    if config.values.get("head_dim") is None and not absent and hidden % heads:
        raise config.wrong("hidden_size", f"not a multiple of num_attention_heads {heads}, and head_dim is missing")
    head_dim = config.integer("head_dim", absent or hidden // heads)
    if head_dim % 2:
        raise config.wrong("head_dim", f"{head_dim} is odd, but rotary embedding turns pairs of channels")
    return head_dim


def _context(config: Fields, absent: _Absent, asked: int | None) -> int:
    """Positions in use, all of which every head must see."""
    longest = config.integer("max_position_embeddings", absent.context)
    if asked is not None and not 1 <= asked <= longest:
        where = config.where("max_position_embeddings")
        raise BadRequest(f"a context of {asked}, but the model has 1 to {longest} positions", where=where)
    context = asked or longest
    window = _window(config, absent)
    if window and window < context:
        raise Unsupported(
            f"a sliding window of {window}, smaller than the context of {context}",
            where=config.where("sliding_window"),
            fix=f"ask for a context of at most {window}",
        )
    return context


def _window(config: Fields, absent: _Absent) -> int:
    """The attention window in positions; 0 when every layer sees everything."""
    if absent.asks_for_window and not config.flag("use_sliding_window", False):
        return 0
    kinds = config.values.get("layer_types")
    if isinstance(kinds, list) and kinds and all(kind == "full_attention" for kind in kinds):
        return 0
    given = config.values.get("sliding_window", absent.window)
    return config.integer("sliding_window", absent.window) if given else 0


def _rope(config: Fields) -> Rope:
    """Rotary embedding, from where transformers 5 writes it (rope_parameters) or from where earlier ones did."""
    modern = config.child("rope_parameters")
    scaling = modern or config.child("rope_scaling") or Fields(config.path, {})
    theta = (modern or config).number("rope_theta", config.number("rope_theta", 10000.0))
    if any(isinstance(value, dict) for value in scaling.values.values()):
        raise Unsupported("a rotary embedding per kind of layer", where=config.where("rope_parameters"))
    if scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0)) != 1.0:
        raise Unsupported("rotating a part of each head", where=config.where("partial_rotary_factor"))
    field = "rope_type" if "rope_type" in scaling.values else "type"
    kind = scaling.text(field, "default")
    if kind == "default":
        return Rope(theta)
    if kind != "llama3":
        raise Unsupported(f"the RoPE type '{kind}'", where=scaling.where(field), fix="one of: default, llama3")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.wrong("high_freq_factor", f"must be above low_freq_factor {low:g}")
    original = scaling.integer("original_max_position_embeddings")
    return Rope(theta, kind, scaling.number("factor"), low, high, original)
