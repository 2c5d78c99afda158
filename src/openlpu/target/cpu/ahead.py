"""Stages and addresses in, per stage the weights to fetch while it is being finished out.

A thread that waits asks for the first weights of its own segment of the linear stage to come; after the last one,
of the first, which the next token begins with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openlpu.target.cpu.linear import LinearStage
from openlpu.target.cpu.memory import Arena
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.plan import Stage

LIMIT = 256 << 10  # bytes one thread fetches: a part of its second-level cache
Piece = tuple[int, int, int]  # address of the argument that points at a matrix, offset from there, size
END: Piece = (0, 0, 0)


class Ahead:
    """Owns the lists; ``entries[i]`` is what stage i's table entry points at, 0 where there is nothing to fetch.

    ``args`` are the addresses of the stages' argument slots: where weights are is read there, since they may move.
    """

    def __init__(self, stages: Sequence[Stage], args: Sequence[int], path: Path, threads: int) -> None:
        self.entries = [0] * len(stages)
        linear = [i for i, stage in enumerate(stages) if isinstance(stage.spec, LinearStage)]
        if threads == 1 or not linear:
            return
        lists = {i: [_pieces(stages[i], args[i], path, threads, t) for t in range(threads)] for i in linear}
        words = sum(threads * 8 + sum(len(pieces) * 3 + 8 for pieces in group) for group in lists.values())
        self._arena = Arena(8 * words)
        places = {i: self._group(group) for i, group in lists.items()}
        for i in range(len(stages)):
            self.entries[i] = places[min((j for j in linear if j > i), default=linear[0])]

    def _group(self, lists: list[list[Piece]]) -> int:
        """One list's address per thread."""
        return self._store([self._store([word for piece in pieces for word in piece]) for pieces in lists])

    def _store(self, words: list[int]) -> int:
        at = self._arena.take(8 * len(words))
        self._arena.view(at, 8 * len(words)).view(np.int64)[:] = words
        return self._arena.address + at


def _pieces(stage: Stage, args: int, path: Path, threads: int, thread: int) -> list[Piece]:
    """The first weights of a thread's segment in the order its kernel reads them, at most ``LIMIT`` bytes.

    Of experts nothing: which will be read is not known yet.
    """
    spec = stage.spec
    assert isinstance(spec, LinearStage), "only linear stages read weights"
    if spec.experts:
        return [END]
    panels, tiles = spec.panels(path), spec.tiles(path, threads)
    first, end = (tiles * (thread + i) // threads * panels // tiles for i in range(2))
    pieces: list[Piece] = []
    start = total = 0
    for part in spec.parts:
        stop = start + -(-part.rows // path.panel)
        for panel in range(max(first, start), min(end, stop)):
            for matrix in part.matrices():
                size = matrix.format.panel_bytes(path, spec.k)
                if total < LIMIT:
                    pieces.append((args + 8 * matrix.codes, (panel - start) * size, size))
                total += size
        start = stop
    return [*pieces, END]
