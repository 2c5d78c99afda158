"""A recognised decoder in, the fields of the ``config.json`` that describe it out.

An architecture's name stands for where biases, windows and head norms are; the one is taken that has them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openlpu.checkpoint.config import FULL, SLIDING
from openlpu.checkpoint.onnx import frequencies
from openlpu.checkpoint.onnx.assemble import Decoder
from openlpu.checkpoint.onnx.traced import Traced

_QKV, _O, _MLP = ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj", "down_proj")


def config(t: Traced, decoder: Decoder, windows: Sequence[int], context: int) -> dict[str, Any]:
    """The fields of a ``config.json``; :class:`Unsupported` for a decoder that none describes."""
    tensors, first = decoder.tensors, decoder.attentions[0]
    for layer in decoder.attentions:
        same = layer.query.channels.shape == first.query.channels.shape and \
            layer.key.channels.shape == first.key.channels.shape
        if not same or abs(layer.frequencies - first.frequencies).max() > frequencies.ERROR:
            raise t.refused(layer.masked_by, "has other heads or angles than the first layer")
    rope = frequencies.fields(first.frequencies)
    if rope is None:
        what = "turns queries and keys by angles of no base, plain or scaled the linear or Llama 3's way, of at most " \
            f"{frequencies.DIGITS} digits"
        raise t.refused(first.scored_by, what)
    vocab, hidden = tensors["model.embed_tokens.weight"].shape
    return {
        "hidden_size": hidden, "num_hidden_layers": len(windows), "vocab_size": vocab,
        "num_attention_heads": len(first.query.channels), "num_key_value_heads": len(first.key.channels),
        "head_dim": first.query.channels.shape[1], "max_position_embeddings": context, "rms_norm_eps": decoder.eps,
        "intermediate_size": tensors["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "tie_word_embeddings": decoder.tied, **rope, **_variant(t, decoder, windows),
    }


def _variant(t: Traced, decoder: Decoder, windows: Sequence[int]) -> dict[str, Any]:
    """The architecture, and the fields that are its own."""
    qkv, out, mlp = (_biased(decoder.tensors, words) for words in (_QKV, _O, _MLP))
    sizes = {window for window in windows if window}
    if len(sizes) > 1:
        raise t.refused(None, f"layers with windows of different sizes: {sorted(sizes)}")
    some = {"use_sliding_window": True, "sliding_window": max(sizes),
            "layer_types": [SLIDING if window else FULL for window in windows]} if sizes else {}
    if decoder.head_norms and not mlp:
        return {"model_type": "qwen3", "attention_bias": qkv or out, **some}
    if sizes and all(windows) and not (qkv or out or mlp or decoder.head_norms):
        return {"model_type": "mistral", "sliding_window": max(sizes)}
    if not (out or mlp or decoder.head_norms) and (qkv or sizes):
        return {"model_type": "qwen2", **some}
    if sizes or decoder.head_norms:
        raise t.refused(None, "a combination of biases, windows and head norms that no known architecture has")
    return {"model_type": "llama", "attention_bias": qkv or out, "mlp_bias": mlp}


def _biased(tensors: Mapping[str, np.ndarray], words: Sequence[str]) -> bool:
    return any(name.endswith(tuple(f"{word}.bias" for word in words)) for name in tensors)


def completed(tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors, with zeros for the biases that the architecture has and the graph does without."""
    kinds: tuple[str, ...] = _QKV if fields["model_type"] == "qwen2" else ()
    kinds += (_QKV + _O if fields.get("attention_bias") else ()) + (_MLP if fields.get("mlp_bias") else ())
    made = dict(tensors)
    for name, weight in tensors.items():
        module, _, word = name.rpartition(".")
        if word == "weight" and module.endswith(kinds or ("\n",)):
            made.setdefault(f"{module}.bias", np.zeros(len(weight), np.float32))
    return made
