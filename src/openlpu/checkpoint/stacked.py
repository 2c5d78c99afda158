"""Stacked tensors of experts in; a matrix and a bias of each expert, under a name of its own, out.

gpt-oss has one tensor for all experts of a layer, its matrices transposed, the rows of gate and up in turns; or, as it
was published, the bytes and the scales of MXFP4, its matrices as they are.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from openlpu._base.errors import BadCheckpoint
from openlpu.checkpoint import mxfp4
from openlpu.checkpoint.tensors import Tensors

PART = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.(weight|bias)")


class Unstacked(Tensors):
    """Name -> fp32 array, with ``….mlp.experts.<e>.<gate|up|down>_proj.<weight|bias>`` out of the stacks."""

    def __init__(self, stacked: Tensors, experts: int) -> None:
        super().__init__(stacked.folder, stacked.entries)
        self.experts = experts

    def __getitem__(self, name: str) -> np.ndarray:
        """As :meth:`Tensors.__getitem__`; of a stack, one expert's part alone is read."""
        if not (found := PART.fullmatch(name)):
            return super().__getitem__(name)
        stack, expert = _stack(found), int(found[2])
        turn = slice(None) if found[3] == "down" else slice(("gate", "up").index(found[3]), None, 2)
        if self._packed(stack):
            return self._numbers(stack, expert, turn)
        own = self._expert(stack, expert)[stack][..., turn]
        return own if found[4] == "bias" else own.T

    def _expert(self, stack: str, expert: int) -> Tensors:
        """One expert's part of a stack, as a tensor of its name."""
        entry = self.entries[stack]
        size = (entry.end - entry.begin) // self.experts
        one = replace(entry, begin=entry.begin + expert * size, end=entry.begin + (expert + 1) * size,
                      shape=entry.shape[1:])
        return Tensors(self.folder, {stack: one})

    def _packed(self, stack: str) -> bool:
        """Whether a stack is there as MXFP4."""
        return f"{stack}_blocks" in self.entries

    def _numbers(self, stack: str, expert: int, turn: slice) -> np.ndarray:
        """fp32 [rows, columns] of an expert's rows, every second of them or all."""
        names = f"{stack}_blocks", f"{stack}_scales"
        blocks, scales = (self._expert(name, expert).raw(name).reshape(self.entries[name].shape[1:])[turn]
                          for name in names)
        found = mxfp4.numbers(blocks, scales)
        if not np.isfinite(found).all():
            raise BadCheckpoint("contains a NaN or an infinity", where=self.where(names[1]))
        return found

    def __contains__(self, name: object) -> bool:
        found = PART.fullmatch(str(name))
        if not found:
            return super().__contains__(name)
        return self._packed(_stack(found)) or super().__contains__(_stack(found))

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """As :meth:`Tensors.require`; of an expert's, it is the stack that must be there."""
        if not (found := PART.fullmatch(name)):
            super().require(name, shape)
            return
        stack, rows = _stack(found), shape[0] if found[3] == "down" else 2 * shape[0]
        if not self._packed(stack):
            super().require(stack, (self.experts, *shape[1:], rows))
            return
        size = self.experts, rows, shape[1] // mxfp4.BLOCK
        packed = Bytes(self.folder, {name: entry for name, entry in self.entries.items() if name.startswith(stack)})
        packed.require(f"{stack}_blocks", (*size, mxfp4.BYTES))
        packed.require(f"{stack}_scales", size)


class Bytes(Tensors):
    """Tensors of bytes."""

    readable = ("U8",)


def _stack(found: re.Match[str]) -> str:
    """The stacked tensor that a part lies in."""
    return f"{found[1]}.{'down' if found[3] == 'down' else 'gate_up'}_proj{'_bias' * (found[4] == 'bias')}"
