"""Stacked tensors of experts in; a matrix and a bias of each expert, under a name of its own, out.

gpt-oss has one tensor for all experts of a layer, its matrices transposed, the rows of gate and up in turns.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

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
        word, own = found[3], self._expert(_stack(found), int(found[2]))
        if word != "down":
            own = own[..., ("gate", "up").index(word) :: 2]
        return own if found[4] == "bias" else own.T

    def _expert(self, stack: str, expert: int) -> np.ndarray:
        entry = self.entries[stack]
        size = (entry.end - entry.begin) // self.experts
        one = replace(entry, begin=entry.begin + expert * size, end=entry.begin + (expert + 1) * size,
                      shape=entry.shape[1:])
        return Tensors(self.folder, {stack: one})[stack]

    def __contains__(self, name: object) -> bool:
        found = PART.fullmatch(str(name))
        return super().__contains__(_stack(found) if found else name)

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """As :meth:`Tensors.require`; of an expert's, it is the stack that must be there."""
        if not (found := PART.fullmatch(name)):
            super().require(name, shape)
            return
        rows = shape[0] if found[3] == "down" else 2 * shape[0]
        super().require(_stack(found), (self.experts, *shape[1:], rows))


def _stack(found: re.Match[str]) -> str:
    """The stacked tensor that a part lies in."""
    return f"{found[1]}.{'down' if found[3] == 'down' else 'gate_up'}_proj{'_bias' * (found[4] == 'bias')}"
