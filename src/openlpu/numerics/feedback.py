"""Weights and the moments of their inputs in, 4-bit weights out whose errors cancel in the output.

Rounding one weight leaves an error in the output; the weights after it, whose inputs move together with its own, are
shifted to take most of it away before they are rounded themselves (Frantar et al., *GPTQ*, 2022; Chee et al.,
*QuIP*, 2023).  With moments H = U D Uᵀ, U unit upper triangular, an error vector e costs

    e H eᵀ = Σ_j D_j (e_j + Σ_{i<j} e_i U_ij)²

so channel j is rounded to what is nearest to w_j + Σ_{i<j} e_i U_ij.  Each block tries its steps and zeros
(:mod:`openlpu.numerics.blocks`) with this feedback inside and keeps the pair of least cost.

Everything is elementwise, or a matrix product of integers below 2**53: the same codes on every processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint import blocks as tp
from openlpu.numerics import blocks

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Solve = Callable[[int, F32, F32, F32, F32], F32]
"""Codes [16, n] of a window's block: its number, weights and shift [16, n], U [16, 16] and D [16] of its channels."""

DAMPING = 0.01  # of a channel's own moment, added to it: texts are finite
STRETCHES = tuple(np.float32(s / 127) for s in (1.0, 1.08))  # row scales tried, over amax
PANEL = 128  # columns factored between two updates of the rest; a multiple of the block
ROWS = 512  # rows rounded together: their candidates stay in the cache

# Fixed-point forms whose products, summed over PANEL or over a window's channels, are exact in float64.
FACTOR_BITS, ERROR_BITS, FEEDBACK_BITS = 20, 16, 12
MOST_ERROR, MOST_FEEDBACK = 2.0**8, 2.0**5


class Factor:
    """H = U D Uᵀ of one window's moments, damped, in units that bring each channel near 1.

    ``unit`` [k] is a power of two per channel; ``upper`` [k, k] is U in fixed point of ``FEEDBACK_BITS``;
    ``cost`` [k] is D.  k is filled up to whole blocks with channels that cost nothing.
    """

    def __init__(self, moment: F32) -> None:
        size = tp.count(len(moment)) * tp.BLOCK
        h = np.zeros((size, size))
        h[: len(moment), : len(moment)] = moment
        diagonal = np.diag(h).copy()
        _, exponent = np.frexp(np.sqrt(diagonal))
        self.unit = np.where(diagonal > 0, np.ldexp(1.0, exponent), 0.0)
        inverse = np.where(diagonal > 0, np.ldexp(1.0, -exponent), 0.0)
        h *= inverse[:, None] * inverse
        h[np.diag_indices(size)] *= 1 + DAMPING
        self.cost = np.zeros(size)
        upper = np.eye(size)
        for end in range(size, 0, -PANEL):
            start = max(0, end - PANEL)
            self._panel(h[:end], upper[:end], start, end)
            if start:
                g = np.rint(upper[:start, start:end] * (np.sqrt(self.cost[start:end]) * 2.0**FACTOR_BITS))
                h[:start, :start] -= (g @ g.T) * 2.0 ** (-2 * FACTOR_BITS)
        most = MOST_FEEDBACK * 2.0**FEEDBACK_BITS
        self.upper = np.clip(np.rint(upper * 2.0**FEEDBACK_BITS), -most, most)

    def _panel(self, h: F64, upper: F64, start: int, end: int) -> None:
        """Columns ``start`` … ``end - 1`` of U and D, the last first; h's columns lose what each takes away."""
        for j in range(end - 1, start - 1, -1):
            pivot = h[j, j]
            if pivot <= 0:  # a channel that never fires
                continue
            self.cost[j] = pivot
            column = h[:j, j] / pivot
            upper[:j, j] = column
            h[:j, start:j] -= column[:, None] * h[start:j, j]


def fit(weight: F32, moments: Sequence[Factor]) -> dict[str, np.ndarray]:
    """Codes, row scale and block bytes of ``weight`` [N, K]; ``moments`` are its windows' factors in order."""
    n, k = weight.shape
    out = {
        "codes": np.empty((n, k), np.int8), "scale": np.empty(n, np.float32),
        "blocks": np.empty((n, tp.count(k)), np.uint8),
    }
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        tried = [_rows(weight[rows], moments, stretch) for stretch in STRETCHES]
        best = np.argmin([cost for _, cost in tried], axis=0)
        for word, array in out.items():
            array[rows] = np.stack([made[word] for made, _ in tried])[best, np.arange(len(best))]
    return out


def _rows(weight: F32, moments: Sequence[Factor], stretch: np.float32) -> tuple[dict[str, np.ndarray], F64]:
    """What :func:`fit` gives for a few rows and one choice of their scales, and each row's cost."""
    n, k = weight.shape
    scale = np.maximum(np.abs(weight).max(axis=1) * stretch, blocks.FLOOR)
    codes, pairs, cost = np.empty((n, k), np.int8), np.empty((n, tp.count(k)), np.uint8), np.zeros(n)
    at = 0
    for factor in moments:
        size = min(len(factor.cost), k - at)
        first, loudest = at // tp.BLOCK, factor.unit.reshape(-1, tp.BLOCK).max(axis=1)

        def solve(block: int, *found: F32, first: int = first, loudest: F64 = loudest) -> F32:
            made, pairs[:, first + block], more = _block(*found)
            cost[:] += more * (loudest[block] * scale) ** 2
            return made

        part = slice(at, at + size)
        codes[:, part] = blocks.from_blocks(window(weight[:, part] / scale[:, None], factor, solve), size)
        at += size
    return {"codes": codes, "scale": scale, "blocks": pairs}, cost


def window(t: F32, factor: Factor, solve: Solve) -> F32:
    """Codes [16, rows, blocks] of one window ``t`` [rows, k] in units of a code, block after block."""
    columns = blocks.to_blocks(t)
    n, count = columns.shape[1:]
    error = np.zeros((n, count * tp.BLOCK))  # in the channels' units and fixed point, of the blocks done
    codes = np.empty_like(columns)
    fixed, most = 2.0**ERROR_BITS, MOST_ERROR * 2.0**ERROR_BITS
    loudest = factor.unit.max() or 1.0
    for b in range(count):
        part = slice(b * tp.BLOCK, (b + 1) * tp.BLOCK)
        unit = factor.unit[part] / loudest
        feedback = (error[:, : part.start] @ factor.upper[: part.start, part]) / (fixed * 2.0**FEEDBACK_BITS)
        shift = np.divide(feedback, unit, out=np.zeros_like(feedback), where=unit > 0)
        codes[:, :, b] = solve(b, columns[:, :, b], shift.T.astype(np.float32), *_inside(factor, part))
        off = (columns[:, :, b] - codes[:, :, b]).T * unit
        error[:, part] = np.clip(np.rint(off * fixed), -most, most)
    return codes


def _inside(factor: Factor, part: slice) -> tuple[F32, F32]:
    """U and D of a block's own channels, in units of a code."""
    unit = factor.unit[part]
    inverse = np.divide(1.0, unit, out=np.zeros_like(unit), where=unit > 0)
    upper = factor.upper[part, part] * 2.0**-FEEDBACK_BITS * unit[:, None] * inverse
    largest = unit.max() or 1.0
    return upper.astype(np.float32), (factor.cost[part] * (unit / largest) ** 2).astype(np.float32)


def _block(t: F32, shift: F32, upper: F32, cost: F32) -> tuple[F32, NDArray[np.uint8], F64]:
    """Codes [16, n], bytes [n] and cost [n] of a block ``t`` [16, n] whose channels are to move by ``shift`` first."""
    tried = list(blocks.pairs(t + shift))
    step, zero = np.stack([pair[0] for pair in tried]), np.stack([pair[1] for pair in tried])
    most = np.floor(np.float32(127) / step)
    low, high = np.maximum(-zero, -most), np.minimum(15 - zero, most)
    codes, error = np.empty((2, tp.BLOCK, *step.shape), np.float32)
    total = np.zeros(step.shape, np.float32)
    for j in range(tp.BLOCK):
        target = np.broadcast_to(t[j] + shift[j], step.shape).copy()
        for i in range(j):
            if upper[i, j]:
                target += error[i] * upper[i, j]
        np.clip(np.rint(target / step), low, high, out=codes[j])
        codes[j] *= step
        error[j] = t[j] - codes[j]
        target -= codes[j]
        total += target * target * cost[j]
    best = total.argmin(axis=0)
    each = np.arange(t.shape[1])
    pairs = tp.pair(step[best, each].astype(np.int64), zero[best, each].astype(np.int64))
    return codes[:, best, each], pairs, total[best, each].astype(np.float64)
