"""fp32 in, fp32 out: exp, rsqrt, reciprocal, sigmoid, tanh, gelu as fixed sequences of IEEE operations.

Every function is a straight line of fp32 ``+ - *``, round-to-nearest-even, comparisons and integer operations
on the bits.  There is no fused multiply-add, no division, no libm: the same bits on every processor.
The prose is ``docs/truepoint.md``, section *Elementwise*; a target that disagrees with this file is wrong.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

LOG2E = np.float32(1.44269504)
LN2_HI = np.float32(0.693359375)  # 9 significant bits: n * LN2_HI is exact for |n| <= 2**15
LN2_LO = np.float32(-2.12194440e-4)  # ln 2 - LN2_HI
EXP_MIN = np.float32(-87.0)  # below: exactly 0; exp(-87) is still a normal number
EXP_MAX = np.float32(84.0)  # above: exp(84) < 2**122, so 1 + exp stays in the domain of reciprocal
EXP_TAYLOR = tuple(np.float32(c) for c in (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0))
RSQRT_MAGIC = np.int32(0x5F3759DF)
GELU_LIMIT = np.float32(6.0)  # beyond, Φ is 0 or 1 but for 1e-9
GELU = {
    "erf": tuple(np.float32(c) for c in (3.6278537e-9, -2.6756636e-7, 7.948141e-6, -1.1054677e-4, -6.6053414e-5,
                                         0.0726682983, 1.5957685)),  # least largest error of x * Φ(x)
    "tanh": tuple(np.float32(c) for c in (0.0713548163, 1.59576912)),  # 2 sqrt(2/pi) times 0.044715, times 1
}
HALF, ONE, TWO, THREE_HALVES = (np.float32(c) for c in (0.5, 1.0, 2.0, 1.5))


def bits(x: F32) -> I32:
    """The 32 bits of each number as an integer."""
    return np.ascontiguousarray(x, np.float32).view(np.int32)


def from_bits(i: I32) -> F32:
    """The number whose 32 bits these are."""
    return np.ascontiguousarray(i, np.int32).view(np.float32)


def exp(x: F32) -> F32:
    """e**x: range reduction by ln 2 in two parts, Taylor of degree 7, scaling by adding to the exponent.

    0 below -87, exp(84) above 84; relative error under 2e-7 between.
    """
    clamped = np.minimum(np.maximum(x, EXP_MIN), EXP_MAX)
    n = np.rint(clamped * LOG2E)
    r = (clamped - n * LN2_HI) - n * LN2_LO
    p: F32 = np.full_like(r, EXP_TAYLOR[0])
    for c in EXP_TAYLOR[1:]:
        p = np.add(p * r, c)
    scaled = from_bits(bits(p) + (n.astype(np.int32) << 23))
    return np.where(x < EXP_MIN, np.float32(0), scaled).astype(np.float32, copy=False)


def rsqrt(x: F32) -> F32:
    """1/sqrt(x) for normal x > 0: the classic bit-level guess and three Newton steps; error under 2e-7."""
    h = HALF * x
    y = from_bits(RSQRT_MAGIC - (bits(x) >> 1))
    for _ in range(3):
        y = y * np.subtract(THREE_HALVES, (h * y) * y)
    return y


def reciprocal(x: F32) -> F32:
    """1/x for 2**-124 <= x <= 2**124, as the square of rsqrt(x): the chip has no divider."""
    y = rsqrt(x)
    return y * y


def sigmoid(x: F32) -> F32:
    """1 / (1 + exp(-x))."""
    return reciprocal(ONE + exp(-x))


def silu(x: F32) -> F32:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def swiglu(gate: F32, up: F32, alpha: np.float32, limit: np.float32) -> F32:
    """(g * sigmoid(alpha * g)) * (u + 1), where g is gate up to ``limit`` and u is up within ±limit."""
    g, u = np.minimum(gate, limit), np.maximum(np.minimum(up, limit), -limit)
    return (g * sigmoid(alpha * g)) * (u + ONE)


def tanh(x: F32) -> F32:
    """1 - 2 / (1 + exp(2x))."""
    return ONE - TWO * reciprocal(ONE + exp(x + x))


def gelu(x: F32, form: str) -> F32:
    """x * sigmoid(c * P(c * c)), where c is x within ±6 and P a polynomial of :data:`GELU`, highest term first.

    ``erf`` is x * Φ(x), ``tanh`` the usual approximation, whose tanh is a sigmoid; error under 3.2e-7 * max(1, |x|).
    """
    c = np.minimum(np.maximum(x, -GELU_LIMIT), GELU_LIMIT)
    t, highest = c * c, GELU[form][0]
    p: F32 = np.full_like(t, highest)
    for coefficient in GELU[form][1:]:
        p = np.add(p * t, coefficient)
    return x * sigmoid(c * p)


def round_even(x: F32) -> I32:
    """Nearest integer, ties to even.  |x| < 2**31 is the caller's duty."""
    return np.rint(x).astype(np.int32)
