"""Vectors of IR in, vectors of IR out: TruePoint's elementwise functions, operation for operation.

Each function here has its namesake in ``arch/truepoint/elementwise.py`` and performs the same IEEE operations in
the same order, on any number of lanes.
"""

from __future__ import annotations

import numpy as np

from openlpu.arch.truepoint import elementwise as tp
from openlpu.target.cpu.emit import Value

# 1.5 * 2**23: x + this has an ulp of 1, so adding it rounds |x| < 2**22 to the nearest even integer, and the
# integer stands in the low bits.  Exact on every processor, with or without a rounding instruction.
ROUNDER = 12582912.0
ROUNDER_BITS = 0x4B400000


def round_even(x: Value) -> Value:
    """Nearest integer, ties to even, as i32; |x| < 2**22."""
    return rounded(x) - ROUNDER_BITS


def rounded(x: Value) -> Value:
    """Nearest integer, ties to even, plus ``ROUNDER_BITS``; |x| < 2**22.  Of x >= 0 the low 22 bits are the integer."""
    return (x + ROUNDER).as_kind("i32")


def exp(x: Value, *, small: bool = False) -> Value:
    """e**x; 0 below -87.  With ``small``, for x that are not above 0: there e**-87 instead, a probability of 0."""
    fn = x.fn
    clamped = fn.select(x.compare("olt", float(tp.EXP_MIN)), float(tp.EXP_MIN), x)
    if not small:
        clamped = fn.select(clamped.compare("ogt", float(tp.EXP_MAX)), float(tp.EXP_MAX), clamped)
    shifted = clamped * float(tp.LOG2E) + ROUNDER
    n = shifted - ROUNDER
    r = (clamped - n * float(tp.LN2_HI)) - n * float(tp.LN2_LO)
    p = r * float(tp.EXP_TAYLOR[0]) + float(tp.EXP_TAYLOR[1])
    for c in tp.EXP_TAYLOR[2:]:
        p = p * r + float(c)
    scaled = (p.as_kind("i32") + (shifted.as_kind("i32") << 23)).as_kind("float")  # the rounder's bits fall out
    return scaled if small else fn.select(x.compare("olt", float(tp.EXP_MIN)), 0.0, scaled)


def rsqrt(x: Value) -> Value:
    """1/sqrt(x): bit-level guess, three Newton steps."""
    h = x * float(tp.HALF)
    bits = x.as_kind("i32")
    y = (x.fn.value(bits.kind, int(tp.RSQRT_MAGIC)) - (bits >> 1)).as_kind("float")
    for _ in range(3):
        y = y * (x.fn.value(x.kind, float(tp.THREE_HALVES)) - (h * y) * y)
    return y


def reciprocal(x: Value) -> Value:
    """1/x as the square of rsqrt(x)."""
    y = rsqrt(x)
    return y * y


def sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x)); the negation flips the sign bit, as NumPy's does."""
    negative = (x.as_kind("i32") ^ -(1 << 31)).as_kind("float")
    return reciprocal(exp(negative) + float(tp.ONE))


def silu(x: Value) -> Value:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def gated(gate: Value, up: Value, clamp: tuple[float, float] | None) -> Value:
    """silu(gate) * up; with ``clamp`` (alpha, limit) TruePoint's swiglu.  A NaN stays one."""
    if clamp is None:
        return silu(gate) * up
    fn, (alpha, limit) = gate.fn, (float(np.float32(number)) for number in clamp)
    g = fn.select(gate.compare("ogt", limit), limit, gate)
    u = fn.select(up.compare("ogt", limit), limit, up)
    u = fn.select(u.compare("olt", -limit), -limit, u)
    return (g * sigmoid(g * alpha)) * (u + float(tp.ONE))
