"""A number of threads in, the rate at which they can read memory out: what decode speed is compared with.

The loop is as plain as can be: the same threads claim a megabyte at a time and load every byte of it once, from
the same kind of memory as the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from openlpu.target.cpu.crew import Crew, Entry
from openlpu.target.cpu.emit import Function, vec
from openlpu.target.cpu.kernels import PARAMS, team_text
from openlpu.target.cpu.memory import Arena
from openlpu.target.cpu.native import Module
from openlpu.target.cpu.path import choose
from openlpu.target.cpu.rows import ROW_BYTES, ROWS_AT

TILE = 1 << 20
LOADS = 8  # independent loads of 64 bytes per turn


class ReadLoop:
    """Reads ``size`` bytes, larger than any cache, once per call of :meth:`measure`; :meth:`seconds` reads fewer."""

    def __init__(self, threads: int, size: int = 1 << 30) -> None:
        self.size = size - size % TILE
        path = choose("auto")
        self._module = Module(_read_kernel().text() + team_text(path), path)
        self._memory, self._header = Arena(self.size), Arena(4096)
        self._memory.bytes[:] = 1  # every page must exist
        step = self._header.take(ROWS_AT + ROW_BYTES)
        self._header.view(step, 8).view(np.int32)[:] = 1  # one row, with logits
        args = self._header.take(16)
        self._header.view(args, 16).view(np.int64)[:] = 0, self._memory.address
        self._args, self._step, self.threads = self._header.address + args, self._header.address + step, threads
        self._crews: dict[int, Crew] = {}  # by the tiles they read

    def measure(self) -> float:
        """GB/s (10**9 bytes per second, wall) of one pass."""
        return self.size / self.seconds(self.size) / 1e9

    def seconds(self, size: int, clock: Callable[[], float] = time.perf_counter) -> float:
        """Wall seconds of one pass over the first ``size`` bytes, whole tiles of them."""
        crew = self._crews.get(size // TILE) or self._crew(size // TILE)
        start = clock()
        crew.run()
        return clock() - start

    def _crew(self, tiles: int) -> Crew:
        entry = Entry(self._module.address("read"), self._args, tiles, 0)
        return self._crews.setdefault(tiles, Crew(self._module, [entry], self._step, 4096, self.threads))

    def close(self) -> None:
        """Release threads and memory."""
        for crew in self._crews.values():
            crew.close()


def _read_kernel() -> Function:
    """Load every byte of a tile; their sum is kept, so that no load is left out."""
    fn = Function("read", "void", PARAMS)
    wide = vec("i64", 8)
    sums = [fn.slot(wide) for _ in range(LOADS)]
    base = fn.params["args"].at(8).load("ptr", 8).at(fn.params["tile"] * TILE)
    with fn.loop(TILE, 64 * LOADS) as i:
        for j, total in enumerate(sums):
            total.set(total.get() ^ base.at(i).at(64 * j).load(wide, 64))
    for j, total in enumerate(sums):
        fn.params["scratch"].at(64 * j).store(total.get(), 64)
    fn.line("ret void")
    return fn
