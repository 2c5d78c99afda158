"""Weights and the moments of their inputs in, 4-bit weights out whose errors cancel in the output.

Rounding one weight leaves an error in the output; the weights after it, whose inputs move together with its own, are
shifted to take most of it away before they are rounded themselves (Frantar et al., *GPTQ*, 2022; Chee et al.,
*QuIP*, 2023).  With moments H = U D Uᵀ, U unit upper triangular, an error vector e costs

    e H eᵀ = Σ_j D_j (e_j + Σ_{i<j} e_i U_ij)²

so channel j is rounded to what is nearest to w_j + Σ_{i<j} e_i U_ij.  Each block tries its steps and zeros
(:mod:`openlpu.numerics.blocks`) with this feedback inside and keeps the pair of least cost.

Everything is elementwise, or a matrix product of integers below 2**53: the same codes on every processor.  Rows do not
see each other, so they are shared out among cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint import blocks as tp
from openlpu.numerics import blocks
from openlpu.numerics.workers import in_order

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Solve = Callable[[int, F32, F32, F32, F32], F32]
"""Codes [16, n] of a window's block: its number, weights and shift [16, n], U [16, 16] and D [16] of its channels."""

DAMPING = 0.01  # of a channel's own moment, added to it: texts are finite
STRETCHES = tuple(np.float32(s / 127) for s in (1.0, 1.08))  # row scales tried, over amax
PANEL = 128  # columns factored between two updates of the rest; a multiple of the block
CHUNK = 256  # rows factored together: their part of a panel stays in the cache
ROWS = 512  # rows rounded together in NumPy: their candidates stay in the cache
SHARE = 64  # rows a core takes at a time

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
        h *= inverse[:, None]
        h *= inverse
        h[np.diag_indices(size)] *= 1 + DAMPING
        self.cost = np.zeros(size)
        upper = np.eye(size)
        for end in range(size, 0, -PANEL):
            start = max(0, end - PANEL)
            panel = slice(start, end)
            taken = _corner(h[panel, panel], upper[panel, panel], self.cost[panel])
            for at in range(0, start, CHUNK):
                rows = slice(at, min(at + CHUNK, start))
                upper[rows, panel] = _above(h[rows, panel], taken, self.cost[panel])
            if start:
                g = np.rint(upper[:start, panel] * (np.sqrt(self.cost[panel]) * 2.0**FACTOR_BITS))
                product = g @ g.T
                product *= 2.0 ** (-2 * FACTOR_BITS)
                h[:start, :start] -= product
        most = MOST_FEEDBACK * 2.0**FEEDBACK_BITS
        self.upper = np.clip(np.rint(upper * 2.0**FEEDBACK_BITS), -most, most)


def _corner(h: F64, upper: F64, cost: F64) -> F64:
    """U and D of a panel's own rows [p, p], its last column first; returns each column as it was before division."""
    taken = np.zeros_like(h)
    for j in range(len(h) - 1, -1, -1):
        if h[j, j] <= 0:  # a channel that never fires
            continue
        cost[j] = h[j, j]
        taken[:j, j] = h[:j, j]
        upper[:j, j] = h[:j, j] / cost[j]
        h[:j, :j] -= upper[:j, j, None] * taken[:j, j]
    return taken


def _above(h: F64, taken: F64, cost: F64) -> F64:
    """U of some rows above a panel [n, p]: what each column takes from those before it, the last first."""
    columns = np.ascontiguousarray(h.T)
    room = np.empty_like(columns)
    for j in range(len(columns) - 1, -1, -1):
        if cost[j] <= 0:
            columns[j] = 0
            continue
        columns[j] /= cost[j]
        np.multiply(taken[:j, j, None], columns[j], out=room[:j])
        columns[:j] -= room[:j]
    return columns.T


class Rounded(NamedTuple):
    """Rows of a window: codes [n, k], block bytes [n, blocks], and what each block costs, in its units [n, blocks]."""

    codes: NDArray[np.int8]
    blocks: NDArray[np.uint8]
    cost: F32


class Rounder(Protocol):
    """Rounds rows of one window, [n, k] in units of a code, each on its own."""

    @property
    def factor(self) -> Factor: ...

    def __call__(self, t: F32, /) -> Rounded: ...


@dataclass(frozen=True)
class Plain:
    """A rounder in NumPy, which says what the codes are; who has a faster one must give the same."""

    factor: Factor

    def __call__(self, t: F32, /) -> Rounded:
        n, count = len(t), tp.count(t.shape[1])
        pairs, cost = np.empty((n, count), np.uint8), np.empty((n, count), np.float32)

        def solve(block: int, *found: F32) -> F32:
            made, pairs[:, block], cost[:, block] = _block(*found)
            return made

        codes = blocks.from_blocks(window(t, self.factor, solve), t.shape[1]).astype(np.int8)
        return Rounded(codes, pairs, cost)


def fit(weight: F32, windows: Sequence[Rounder]) -> dict[str, np.ndarray]:
    """Codes, row scale and block bytes of ``weight`` [N, K]; ``windows`` round its windows in order."""
    n, k = weight.shape
    out = {
        "codes": np.empty((n, k), np.int8), "scale": np.empty(n, np.float32),
        "blocks": np.empty((n, tp.count(k)), np.uint8),
    }

    def some(start: int) -> None:
        rows = slice(start, start + SHARE)
        tried = [_rows(weight[rows], windows, stretch) for stretch in STRETCHES]
        best = np.argmin([cost for _, cost in tried], axis=0)
        for word, array in out.items():
            array[rows] = np.stack([made[word] for made, _ in tried])[best, np.arange(len(best))]

    for _ in in_order(some, range(0, n, SHARE)):
        pass
    return out


def _rows(weight: F32, windows: Sequence[Rounder], stretch: np.float32) -> tuple[dict[str, np.ndarray], F64]:
    """What :func:`fit` gives for a few rows and one choice of their scales, and each row's cost."""
    n, k = weight.shape
    scale = np.maximum(np.abs(weight).max(axis=1) * stretch, blocks.FLOOR)
    codes, pairs, cost = np.empty((n, k), np.int8), np.empty((n, tp.count(k)), np.uint8), np.zeros(n)
    at = 0
    for rounder in windows:
        part = slice(at, min(at + len(rounder.factor.cost), k))
        made = rounder(weight[:, part] / scale[:, None])
        codes[:, part] = made.codes
        pairs[:, at // tp.BLOCK : at // tp.BLOCK + made.blocks.shape[1]] = made.blocks
        loudest, wide = rounder.factor.unit.reshape(-1, tp.BLOCK).max(axis=1), scale.astype(np.float64)
        for more, loud in zip(made.cost.T, loudest, strict=True):
            cost += more * (loud * wide) ** 2
        at = part.stop
    return {"codes": codes, "scale": scale, "blocks": pairs}, cost


def window(t: F32, factor: Factor, solve: Solve) -> F32:
    """Codes [16, rows, blocks] of one window ``t`` [rows, k] in units of a code, block after block."""
    columns = blocks.to_blocks(t)
    n, count = columns.shape[1:]
    error = np.zeros((n, count * tp.BLOCK))  # in the channels' units and fixed point, of the blocks done
    codes = np.empty_like(columns)
    fixed, most = 2.0**ERROR_BITS, MOST_ERROR * 2.0**ERROR_BITS
    units = relative(factor)
    for b in range(count):
        part = slice(b * tp.BLOCK, (b + 1) * tp.BLOCK)
        unit = units[part]
        feedback = (error[:, : part.start] @ factor.upper[: part.start, part]) / (fixed * 2.0**FEEDBACK_BITS)
        shift = np.divide(feedback, unit, out=np.zeros_like(feedback), where=unit > 0)
        codes[:, :, b] = solve(b, columns[:, :, b], shift.T.astype(np.float32), *inside(factor, part))
        off = (columns[:, :, b] - codes[:, :, b]).T * unit
        error[:, part] = np.clip(np.rint(off * fixed), -most, most)
    return codes


def relative(factor: Factor) -> F64:
    """The units of a window's channels over the largest of them."""
    return factor.unit / (factor.unit.max() or 1.0)


def inside(factor: Factor, part: slice) -> tuple[F32, F32]:
    """U and D of a block's own channels, in units of a code."""
    unit = factor.unit[part]
    inverse = np.divide(1.0, unit, out=np.zeros_like(unit), where=unit > 0)
    upper = factor.upper[part, part] * 2.0**-FEEDBACK_BITS * unit[:, None] * inverse
    largest = unit.max() or 1.0
    return upper.astype(np.float32), (factor.cost[part] * (unit / largest) ** 2).astype(np.float32)


def _block(t: F32, shift: F32, upper: F32, cost: F32) -> tuple[F32, NDArray[np.uint8], F32]:
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
    return codes[:, best, each], pairs, total[best, each]
