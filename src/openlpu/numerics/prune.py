"""Weights in, codes out that are zero in places which kernels can leave out (:mod:`openlpu.arch.truepoint.sparse`).

:func:`smallest` drops what is smallest.  :func:`fit` drops what costs least in the outputs when the weights that stay
make up for it as far as they can: the feedback of :mod:`~openlpu.numerics.feedback`, with places to keep in the place
of steps and zeros (Frantar and Alistarh, *SparseGPT*, 2023).  Of each quad all six pairs are tried.  What a tile would
cost is found while all are kept; then the cheapest of each strip are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint.sparse import KEPT, PAIRS, QUAD, STRIP, TILE, padded
from openlpu.numerics import blocks
from openlpu.numerics.feedback import ROWS, Factor, Solve, window

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Solver = Callable[[slice, int, Factor], Solve]
"""How blocks of these rows are solved in the window that begins with this block."""

CHOICES = np.array([[i in kept for i in range(QUAD)] for kept in combinations(range(QUAD), KEPT)])[:, :, None]
STRETCH = np.float32(1.25 / 127)  # row scale over amax: weights that make up for others grow
TOP = np.float32(127)


def smallest(weight: F32, sparse: str, tiles: int = 0) -> dict[str, np.ndarray]:
    """Codes [N, K] and row scales of ``weight``; what has the largest squares stays."""
    scale = np.maximum(np.abs(weight).max(axis=1) / TOP, blocks.FLOOR)
    n, k = weight.shape
    if sparse == PAIRS:
        quads = padded(np.abs(weight), 1, QUAD).reshape(n, -1, QUAD)
        keep = largest(quads, KEPT).reshape(n, -1)
    else:
        columns = blocks.to_blocks(weight)
        size = _by_strip(blocks.ordered_sum(columns * columns).T)
        keep = np.repeat(np.repeat(largest(size, tiles), STRIP, axis=0)[:n], TILE, axis=1)
    return {"codes": (np.rint(weight / scale[:, None]) * keep[:, :k]).astype(np.int8), "scale": scale}


def fit(weight: F32, moments: Sequence[Factor], sparse: str, tiles: int = 0) -> dict[str, np.ndarray]:
    """Codes [N, K] and row scales of ``weight``; ``moments`` are its windows' factors in order."""
    scale = np.maximum(np.abs(weight).max(axis=1) * STRETCH, blocks.FLOOR)
    t = weight / scale[:, None]
    if sparse == PAIRS:
        return {"codes": _codes(t, moments, lambda *_: _pairs), "scale": scale}
    choice = _Choice(scale, blocks.tp.count(t.shape[1]))
    _codes(t, moments, choice.solver)
    choice.keep = largest(choice.cost, tiles)
    return {"codes": _codes(t, moments, choice.solver), "scale": scale}


def _codes(t: F32, moments: Sequence[Factor], solver: Solver) -> NDArray[np.int8]:
    """Codes of ``t`` [N, K], weights in units of a code."""
    codes, at = np.empty(t.shape, np.int8), 0
    for factor in moments:
        columns = slice(at, at + len(factor.cost))
        for start in range(0, len(t), ROWS):
            rows = slice(start, min(start + ROWS, len(t)))
            part = t[rows, columns]
            found = window(part, factor, solver(rows, at // TILE, factor))
            codes[rows, columns] = blocks.from_blocks(found, part.shape[1])
        at = columns.stop
    return codes


def _pairs(block: int, t: F32, shift: F32, upper: F32, cost: F32) -> F32:
    """Codes of which two of each quad are kept, the pair of least cost."""
    codes, error = np.zeros_like(t), np.zeros_like(t)
    for start in range(0, TILE, QUAD):
        quad = slice(start, start + QUAD)
        tried = np.zeros((QUAD, len(CHOICES), t.shape[1]), np.float32)
        off = np.zeros_like(tried)
        total = np.zeros(tried.shape[1:], np.float32)
        for j in range(QUAD):
            at = start + j
            target = t[at] + shift[at] + _fed(error[:start], upper[:start, at]) + _fed(off[:j], upper[start:at, at])
            tried[j] = np.clip(np.rint(target), -TOP, TOP) * CHOICES[:, j]
            off[j] = t[at] - tried[j]
            target = target - tried[j]
            total += target * target * cost[at]
        codes[quad] = np.take_along_axis(tried, total.argmin(axis=0)[None, None], axis=1)[:, 0]
        error[quad] = t[quad] - codes[quad]
    return codes


def _fed(error: F32, upper: F32) -> F32 | np.float32:
    """What the errors [i, ...] before a channel add to it."""
    total: F32 | np.float32 = np.float32(0)
    for e, u in zip(error, upper, strict=True):
        if u:
            total = total + e * u
    return total


class _Choice:
    """Which tiles are kept, [strips, tiles]: all at first; and what dropping each would have cost."""

    def __init__(self, scale: F32, count: int) -> None:
        self.scale = scale
        self.keep = np.ones((-(-len(scale) // STRIP), count), np.bool_)
        self.cost = np.zeros(self.keep.shape)

    def solver(self, rows: slice, first: int, factor: Factor) -> Solve:
        strips = slice(rows.start // STRIP, -(-rows.stop // STRIP))
        square = self.scale[rows].astype(np.float64) ** 2

        def solve(block: int, t: F32, shift: F32, upper: F32, cost: F32) -> F32:
            keep = np.repeat(self.keep[strips, first + block], STRIP)[: t.shape[1]]
            channels = slice(block * TILE, (block + 1) * TILE)
            weight = factor.cost[channels] * factor.unit[channels] ** 2
            codes, error = np.zeros_like(t), np.zeros_like(t)
            total = np.zeros(t.shape[1])
            for j in range(TILE):
                dropped = t[j] + shift[j] + _fed(t[:j], upper[:j, j])
                total += dropped.astype(np.float64) ** 2 * weight[j]
                target = t[j] + shift[j] + _fed(error[:j], upper[:j, j])
                codes[j] = np.clip(np.rint(target), -TOP, TOP) * keep
                error[j] = t[j] - codes[j]
            self.cost[strips, first + block] = _by_strip((total * square)[None])[:, 0]
            return codes

        return solve


def _by_strip(x: NDArray) -> NDArray:
    """[m, N] as sums over strips of N, [strips, m], each in order."""
    m, n = x.shape
    whole = padded(x, 1, STRIP).reshape(m, -1, STRIP)
    return blocks.ordered_sum(whole.transpose(2, 1, 0))


def largest(x: NDArray, count: int) -> Mask:
    """Where the ``count`` largest of the last axis are; of equals the first."""
    order = np.argsort(-x, axis=-1, kind="stable")[..., :count]
    mask = np.zeros(x.shape, np.bool_)
    np.put_along_axis(mask, order, True, axis=-1)
    return mask
