"""A number of threads in, the rate at which they can multiply codes out: what prefill speed is compared with.

The loop is the path's dot instruction and nothing else to wait for: as many independent sums as the largest block
of token rows keeps in registers, over operands that stay in the first-level cache.
"""

from __future__ import annotations

import time

import numpy as np

from openlpu.target.cpu.crew import Crew, Entry
from openlpu.target.cpu.emit import Function
from openlpu.target.cpu.kernels import PARAMS, team_text
from openlpu.target.cpu.memory import Arena
from openlpu.target.cpu.native import Module
from openlpu.target.cpu.path import DECLARES, Path, choose
from openlpu.target.cpu.rows import ROW_BYTES, ROWS_AT

TILE = 1 << 14  # turns of the loop in a tile
TILES = 512  # for each thread
GROUP = 16 * 4  # products of one group of weights with one token row's codes
TURN = 1024  # bytes of operands before the loop reads the same again


class DotLoop:
    """Multiplies codes for some hundredths of a second per call of :meth:`measure`."""

    def __init__(self, threads: int, path: str = "auto") -> None:
        self.path = choose(path)
        self.tiles = TILES * threads
        text = DECLARES[self.path.name] + _dot_loop(self.path).text() + team_text(self.path)
        self._module, self._header = Module(text, self.path), Arena(4096)
        step = self._header.take(ROWS_AT + ROW_BYTES)
        self._header.view(step, 8).view(np.int32)[:] = 1  # one row, with logits
        args = self._header.address + self._header.take(16)
        entry = Entry(self._module.address("multiply"), args, self.tiles, 0)
        self._crew = Crew(self._module, [entry], self._header.address + step, 2 * TURN, threads)

    @property
    def products(self) -> int:
        """Products of two codes in one measurement."""
        return self.tiles * TILE * self.path.blocks[0] * (self.path.panel // 16) * GROUP

    def measure(self) -> float:
        """Products per second (wall) of one pass."""
        start = time.perf_counter()
        self._crew.run()
        return self.products / (time.perf_counter() - start)

    def close(self) -> None:
        """Release threads and memory."""
        self._crew.close()


def _dot_loop(path: Path) -> Function:
    """One block of token rows times a panel, again and again; the sums are kept, so that none is left out."""
    fn = Function("multiply", "void", PARAMS)
    area, groups = fn.params["scratch"], range(path.panel // 16)
    sums = [[path.sums(fn) for _ in groups] for _ in range(path.blocks[0])]
    with fn.loop(TILE) as i:
        at = area.at((i & (TURN // 128 - 1)) * 64)
        parts = [path.group(at.at(64 * j)) for j in groups]
        for row, totals in enumerate(sums):
            codes = path.codes(at.at(64 * row))
            for total, part in zip(totals, parts, strict=True):
                path.dot(total, part, codes)
    for row, totals in enumerate(sums):
        for j, total in enumerate(totals):
            area.at(TURN + 64 * ((row * len(groups) + j) % (TURN // 64))).store(path.total(total), 64)
    fn.line("ret void")
    return fn
