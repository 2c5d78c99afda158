"""Weights in, 4-bit weights out: for every block of sixteen the step and zero whose codes come nearest.

The form is :mod:`openlpu.arch.truepoint.blocks`: ``code = step * (q - zero)``.  A block's grid is therefore the
multiples of its step, and its zero says which sixteen of them there are: a step is tried with the window at the low
end, the high end and the middle of the block, around the smallest step whose sixteen reach from end to end.  That is
within 1 % of the error of trying all 240 pairs.  Arrays have the weights of a block on their first axis, so every
operation is elementwise and every sum has one order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint import blocks as tp
from openlpu.numerics.workers import in_order

F32 = NDArray[np.float32]

STEPS = (-3, -2, -1, 0, 1, 2)  # from the smallest step that reaches
WINDOWS = (0.0, 0.5, 1.0)  # from the low end of a block to its high end
STRETCH = (1.0, 1.06, 1.12)  # row scales tried, in units of amax / 127: coarser ones lose less to the ends
SLICE = 1 << 15  # weights fitted at a time: their arrays stay in the cache
FLOOR = np.float32(2.0**-100)


def fit(weight: F32) -> dict[str, np.ndarray]:
    """Codes, row scale and block bytes nearest to ``weight`` [N, K], each row on its own.  All values finite."""
    n, k = weight.shape
    out = {
        "codes": np.empty((n, k), np.int8), "scale": np.empty(n, np.float32),
        "blocks": np.empty((n, tp.count(k)), np.uint8),
    }
    rows = max(1, SLICE // k)

    def some(start: int) -> None:
        part = slice(start, start + rows)
        out["codes"][part], out["scale"][part], out["blocks"][part] = _fit(weight[part])

    for _ in in_order(some, range(0, n, rows)):
        pass
    return out


def _fit(weight: F32) -> tuple[NDArray[np.int8], F32, NDArray[np.uint8]]:
    """The best of a few row scales for every row."""
    n, k = weight.shape
    top = np.maximum(np.abs(weight).max(axis=1) / np.float32(127), FLOOR)
    columns = to_blocks(weight)
    best, scale = np.full(n, np.inf, np.float32), top.copy()
    step, zero = np.zeros((2, n, columns.shape[2]), np.float32)
    for stretch in STRETCH:
        tried = top * np.float32(stretch)
        tried_step, tried_zero, errors = search(columns / tried[:, None])
        error = ordered_sum(errors.T) * (tried * tried)
        better = error < best
        best[better], scale[better] = error[better], tried[better]
        step[better], zero[better] = tried_step[better], tried_zero[better]
    codes = nearest(columns / scale[:, None], step, zero)
    return from_blocks(codes, k).astype(np.int8), scale, tp.pair(step.astype(np.uint8), zero.astype(np.uint8))


def search(t: F32) -> tuple[F32, F32, F32]:
    """Step, zero and squared error of every block of ``t`` [16, ...], in units of a code."""
    best = np.full(t.shape[1:], np.inf, np.float32)
    step, zero, room = np.zeros_like(best), np.zeros_like(best), np.empty_like(t)
    for tried_step, tried_zero in pairs(t):
        off = np.subtract(nearest(t, tried_step, tried_zero, room), t, out=room)
        error = ordered_sum(np.square(off, out=room))
        better = error < best
        for kept, tried in ((step, tried_step), (zero, tried_zero), (best, error)):
            np.copyto(kept, tried, where=better)
    return step, zero, best


def pairs(t: F32) -> Iterator[tuple[F32, F32]]:
    """The steps and zeros worth trying for every block of ``t`` [16, ...]."""
    low, high = np.minimum(t.min(axis=0), 0), np.maximum(t.max(axis=0), 0)
    reach = np.ceil((high - low) / np.float32(15))
    for offset in STEPS:
        step = np.clip(reach + np.float32(offset), 1, tp.MAX_STEP).astype(np.float32)
        first, last = -np.rint(low / step), 15 - np.rint(high / step)
        for window in WINDOWS:
            yield step, np.clip(np.rint(first + (last - first) * np.float32(window)), 0, 15)


def nearest(t: F32, step: F32, zero: F32, out: F32 | None = None) -> F32:
    """The codes nearest to ``t`` [16, ...] that a step and a zero allow, within ±127; in ``out``, where given."""
    most = np.floor(np.float32(127) / step)
    codes = np.divide(t, step, out=out)
    np.rint(codes, out=codes)
    np.maximum(codes, np.maximum(-zero, -most), out=codes)
    np.minimum(codes, np.minimum(15 - zero, most), out=codes)
    codes *= step
    return codes


def ordered_sum(x: F32) -> F32:
    """Sum over the first axis, from its first element on."""
    total = x[0].copy()
    for part in x[1:]:
        total += part
    return total


def to_blocks(weight: NDArray) -> NDArray:
    """[N, K] as [16, N, blocks]; a short last block is filled with zeros."""
    n, k = weight.shape
    whole = weight
    if k % tp.BLOCK:
        whole = np.zeros((n, tp.count(k) * tp.BLOCK), weight.dtype)
        whole[:, :k] = weight
    return np.ascontiguousarray(whole.reshape(n, -1, tp.BLOCK).transpose(2, 0, 1))


def from_blocks(columns: NDArray, k: int) -> NDArray:
    """The inverse of :func:`to_blocks` for rows of ``k``."""
    return columns.transpose(1, 2, 0).reshape(columns.shape[1], -1)[:, :k]
