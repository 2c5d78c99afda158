"""Rotary frequencies in, cosine and sine tables out, without libm.

A frequency is a 64-bit fixed-point fraction of a turn per position, so the angle of position p is an exact
wrapping integer product, however large p is.  Sine and cosine are Taylor polynomials in float64 ``+ - *`` on an
eighth of a turn, rounded once to fp32.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from math import factorial

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint.elementwise import F32

CONTEXT = Context(prec=60, rounding=ROUND_HALF_EVEN)  # explicit: the thread's own may have been changed
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


RADIANS = float(CONTEXT.divide(PI, Decimal(1 << 63)))  # of 2**-64 turns


def power(base: float, exponent: Decimal) -> Decimal:
    """base**exponent to 60 digits; Decimal's ln and exp are correctly rounded on every platform."""
    return CONTEXT.exp(CONTEXT.multiply(CONTEXT.ln(Decimal(base)), exponent))


def turns(radians_per_position: Decimal) -> int:
    """A frequency as a fraction of a turn per position, in units of 2**-64 turns."""
    with localcontext(CONTEXT):
        return int((radians_per_position / PI * (1 << 63)).to_integral_value()) % (1 << 64)


def frequencies(theta: float, dim: int) -> list[Decimal]:
    """theta**(-2i/dim) radians per position for i < dim/2."""
    return [power(theta, CONTEXT.divide(Decimal(-2 * i), Decimal(dim))) for i in range(dim // 2)]


def tables(freqs: list[Decimal], positions: int, scale: float = 1.0) -> tuple[F32, F32]:
    """(cos, sin) of every position and frequency, fp32 [positions, len(freqs)], times ``scale``."""
    step = np.array([turns(f) for f in freqs], np.uint64)
    phase = np.arange(positions, dtype=np.uint64)[:, None] * step[None, :]
    cos, sin = cos_sin(phase)
    return (cos * scale).astype(np.float32), (sin * scale).astype(np.float32)


def cos_sin(phase: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of phase * 2**-64 turns: reduced to +-1/8 turn around the nearest quarter."""
    eighth = np.uint64(1 << 61)
    quarter = ((phase + eighth) >> np.uint64(62)) & np.uint64(3)
    rest = ((phase + eighth) & np.uint64((1 << 62) - 1)).astype(np.int64) - np.int64(1 << 61)
    angle = rest.astype(np.float64) * RADIANS
    square = angle * angle
    c, s = np.zeros_like(angle), np.zeros_like(angle)
    for k in range(8, -1, -1):
        c = c * square + (-1.0) ** k / factorial(2 * k)
        s = s * square + (-1.0) ** k / factorial(2 * k + 1)
    s = s * angle
    swap = (quarter & np.uint64(1)).astype(bool)
    cos, sin = np.where(swap, s, c), np.where(swap, c, s)
    cos = np.where((quarter == 1) | (quarter == 2), -cos, cos)
    sin = np.where(quarter >= 2, -sin, sin)
    return cos, sin


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotate-half RoPE of x [..., D] with tables [..., D/2]: (a*c - b*s, b*c + a*s) on the two halves."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([np.subtract(a * cos, b * sin), np.add(b * cos, a * sin)], axis=-1)
