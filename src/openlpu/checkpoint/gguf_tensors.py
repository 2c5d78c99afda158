"""The tensors of a GGUF file in; the same tensors under Hugging Face's names, as fp32 when they are read, out.

The files of the llama architecture keep the rows of queries and keys in another order: their rotary embedding turns
neighbouring channels, Hugging Face's turns channel i with channel i + head_dim / 2.  Such a tensor is put back in
order when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu.checkpoint import gguf_blocks
from openlpu.checkpoint.tensors import Entry, Tensors

ROPE_FACTORS = "rope_freqs.weight"  # read by the configuration, not by the graph
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Where an architecture's graph has a bias; norms on queries and keys are Qwen3's.
_ATTENTION, _MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
_BIASES = {"llama": _ATTENTION + _MLP, "mistral": (), "qwen2": _ATTENTION[:3], "qwen3": _ATTENTION}
_HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
_THEIRS = {ours: theirs for theirs, ours in (_WHOLE | _LAYER).items()}


class GgufTensors(Tensors):
    """Name -> fp32 array, of every tensor of a file; ``turned`` names those whose rows are reordered, with their heads.

    An access decodes that one tensor; fp32 tensors in order are views of the file.
    """

    readable = tuple(gguf_blocks.FORMATS)
    described = "the metadata"

    def __init__(self, path: Path, entries: Mapping[str, Entry], turned: Mapping[str, int]) -> None:
        super().__init__(path, entries)
        self._turned = turned

    def __getitem__(self, name: str) -> np.ndarray:
        """fp32 [shape of the tensor]; :class:`BadCheckpoint` for a NaN, an infinity, or rows that are not heads."""
        array, heads = super().__getitem__(name), self._turned.get(name)
        if heads is None:
            return array
        if array.shape[0] % (2 * heads):
            raise BadCheckpoint(f"{array.shape[0]} rows are not {heads} heads of an even size", where=self.where(name))
        pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(array.shape)

    def floats(self, dtype: str, raw: np.ndarray) -> np.ndarray:
        """fp32 [all numbers] of a tensor's bytes."""
        return gguf_blocks.numbers(dtype, raw) if gguf_blocks.FORMATS[dtype].decode else super().floats(dtype, raw)

    def where(self, name: str) -> str:
        """``<file>: <tensor>``, with GGUF's name of it."""
        return super().where(name).removesuffix(name) + _theirs(name)


def renamed(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Entries by Hugging Face's names; :class:`Unsupported` for a tensor that no architecture here has."""
    return {_ours(name, entry): entry for name, entry in entries.items()}


def check_used(entries: Mapping[str, Entry], architecture: str, layers: int) -> None:
    """:class:`Unsupported` for a tensor, by GGUF's name, that the architecture's graph would leave out."""
    for name, entry in entries.items():
        layer, word, end = _parts(name)
        known = word in _BIASES[architecture] if end == "bias" else word not in _HEAD_NORMS or architecture == "qwen3"
        if not known or (layer is not None and layer >= layers):
            what = f"a tensor that {architecture} with {layers} layers does not have"
            raise Unsupported(what, where=f"{entry.path}: {name}")


def _parts(name: str) -> tuple[int | None, str, str]:
    """Layer, word and end of one of GGUF's names: ``blk.3.attn_q.weight``."""
    found = re.fullmatch(r"(?:blk\.(\d{1,9})\.)?(\w+)\.(weight|bias)", name)
    if found is None:
        return None, "", ""
    return None if found[1] is None else int(found[1]), found[2], found[3]


def _ours(name: str, entry: Entry) -> str:
    layer, word, end = _parts(name)
    ours = (_WHOLE if layer is None else _LAYER).get(word)
    if ours is None:
        what = f"a tensor that none of these architectures has: {', '.join(_BIASES)}"
        raise Unsupported(what, where=f"{entry.path}: {name}")
    return f"{ours}.{end}" if layer is None else f"model.layers.{layer}.{ours}.{end}"


def _theirs(name: str) -> str:
    found = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    assert found, f"{name} is no name that a graph asks for"
    layer, word, end = found.groups()
    return f"{_THEIRS[word]}.{end}" if layer is None else f"blk.{layer}.{_THEIRS[word]}.{end}"
