"""fp32 vectors in, integer codes with one fp32 scale out; and the exact sums taken over codes.

A *code* is an integer of one or two planes.  The low plane is a signed byte; channels listed as *wide* have a
high plane too, and ``code = 256 * high + low``.  The widest code is 127 * 256 + 127 = 32,639.  A site's first
``wide`` channels are wide (numerics permutes outlier channels there); the rest are one byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError
from openlpu.arch.truepoint.elementwise import F32, I32, bits, from_bits, reciprocal, round_even, rsqrt

NARROW_MAX = 127
WIDE_MAX = 32639  # 127 * 256 + 127: both planes stay signed bytes
SCALE_FLOOR = np.float32(2.0**-60)  # an all-zero vector gets this scale; its square is still normal
INV_NARROW = np.float32(1 / NARROW_MAX)
INV_WIDE = np.float32(1 / WIDE_MAX)
NIBBLE_MAX = 15  # steps between the ends of a 4-bit vector
INV_NIBBLE = np.float32(1 / NIBBLE_MAX)
PLANE = np.float32(256.0)
MAGNITUDE_LIMIT = np.float32(2.0**50)  # a vector with a magnitude from here on (or a NaN) stops the step
MAX_SUM = 65536  # longest vector whose codes' sum stays in int32: K * 32639 < 2**31
MAX_K = 131071  # longest vector whose plane sums stay in int32: K * 128 * 128 < 2**31

I16 = NDArray[np.int16]
I8 = NDArray[np.int8]


@dataclass(frozen=True)
class Codes:
    """Integer codes [..., K] (int16, planes joined), their scale [..., 1] (fp32), the count of wide channels."""

    codes: I16
    scale: F32
    wide: int


def amax(x: F32) -> F32:
    """Largest magnitude along the last axis, kept as an axis of 1; integer maximum of the magnitude's bits.

    Bits order like magnitudes and a NaN is above all of them, so the result is order-free and never hides one.
    Below ``MAGNITUDE_LIMIT`` no score of attention and no Σx² can overflow, so no NaN is born out of sight.
    """
    if x.shape[-1] == 0:
        return np.zeros((*x.shape[:-1], 1), np.float32)
    top = (bits(x) & np.int32(0x7FFFFFFF)).max(axis=-1, keepdims=True)
    if (top >= MAGNITUDE_LIMIT.view(np.int32)).any():
        raise NumericsError(
            "a NaN, an infinity or a magnitude of 2**50 and more reached a quantisation",
            fix="check the checkpoint's tensors for NaN; `openlpu accuracy` names the layer",
        )
    return from_bits(top)


def quantize(x: F32, wide: int) -> Codes:
    """Codes of x [..., K] with one scale per vector; channels 0..wide-1 get two planes.

    scale = max(amax(narrow) / 127, amax(wide) / 32639, 2**-60); code = round(x * reciprocal(scale)).  No code
    needs clipping: the scale's roundings move the largest one by at most 0.02.
    """
    scale = np.maximum(amax(x[..., wide:]) * INV_NARROW, amax(x[..., :wide]) * INV_WIDE)
    scale = np.maximum(scale, SCALE_FLOOR)
    return Codes(round_even(x * reciprocal(scale)).astype(np.int16), scale, wide)


def quantize_nibbles(x: F32) -> Codes:
    """Codes of x [..., K] that take 16 neighbouring values, among them 0, with one scale per vector.

    With low and high the ends of x and 0: scale = max((high - low) / 15, 2**-60), inverse = reciprocal(scale),
    zero = round(low * inverse), code = round(x * inverse) clipped to zero … zero + 15; so code - zero is a nibble,
    and |code| <= 15.
    """
    amax(x)  # refuses what quantize refuses
    low = np.minimum(x.min(axis=-1, keepdims=True), np.float32(0))
    high = np.maximum(x.max(axis=-1, keepdims=True), np.float32(0))
    scale: F32 = np.maximum((high - low) * INV_NIBBLE, SCALE_FLOOR)
    inverse = reciprocal(scale)
    zero = round_even(low * inverse)
    return Codes(np.clip(round_even(x * inverse), zero, zero + NIBBLE_MAX).astype(np.int16), scale, 0)


def quantize_cache(x: F32, bits: int) -> Codes:
    """Codes of keys or values [..., D] for a cache of 4, 8 or 16 bits, each vector on its own."""
    return quantize_nibbles(x) if bits == 4 else quantize(x, x.shape[-1] if bits == 16 else 0)


def planes(codes: I16) -> tuple[I32, I32]:
    """(high, low) with ``codes = 256 * high + low`` and low in -128..127; int32."""
    wide = codes.astype(np.int32)
    high = (wide + 128) >> 8
    return high, wide - (high << 8)


def join(high: I32, low: I32) -> F32:
    """Where two exact plane sums meet: fp32(high) * 256 + fp32(low)."""
    return high.astype(np.float32) * PLANE + low.astype(np.float32)


def exact_dot(a: NDArray[np.integer], b_t: NDArray[np.integer]) -> I32:
    """a [M, K] times b_t [N, K] transposed, exact, int32.

    Runs on the float64 matrix product: every partial sum is an integer below 2**53, so any order is exact.
    """
    return (a.astype(np.float64) @ b_t.astype(np.float64).T).astype(np.int64).astype(np.int32)


def byte_dot(a: NDArray[np.integer], b_t: I8) -> I32:
    """a [M, K] of signed bytes times codes [N, K] within +-127, transposed; exact, int32.

    Runs on fp32 matrix products of 1,024 channels: every partial sum is an integer below 128 * 127 * 1024 < 2**24.
    """
    total = np.zeros((len(a), len(b_t)), np.int32)
    for at in range(0, a.shape[1], 1024):
        part = slice(at, at + 1024)
        total += (a[:, part].astype(np.float32) @ b_t[:, part].astype(np.float32).T).astype(np.int32)
    return total


def square_sum(q: Codes) -> F32:
    """Σcode² [..., 1] of exact plane sums: (Σh² * 65536 + Σhl * 512) + Σl²."""
    assert q.codes.shape[-1] <= MAX_K, "plane sums are exact only up to K = 131,071"
    high, low = planes(q.codes)
    hh = (high * high).sum(axis=-1, keepdims=True, dtype=np.int32).astype(np.float32)
    hl = (high * low).sum(axis=-1, keepdims=True, dtype=np.int32).astype(np.float32)
    ll = (low * low).sum(axis=-1, keepdims=True, dtype=np.int32).astype(np.float32)
    return (hh * np.float32(65536) + hl * np.float32(512)) + ll


def rms_scale(q: Codes, eps: np.float32) -> F32:
    """The factor 1/rms of the *coded* vector, [..., 1]: Σcode² is exact, so no order of summation exists.

    mean = (Σcode² * scale²) * fp32(1/K); result rsqrt(mean + eps).
    """
    mean = np.multiply(square_sum(q) * (q.scale * q.scale), np.float32(1 / q.codes.shape[-1]))
    return rsqrt(mean + eps)


def layernorm(x: F32, gain: F32, bias: F32, eps: np.float32) -> F32:
    """LayerNorm of x [..., K], K <= 65,536, with mean and variance of its two-plane codes, both from exact sums.

    mean = fp32(Σcode) * fp32(1/K) and variance = max(Σcode² * fp32(1/K) - mean², 0), in codes; the result is
    ((x - mean * scale) * rsqrt(variance * scale² + eps)) * gain + bias.
    """
    count = x.shape[-1]
    assert count <= MAX_SUM, "a sum of codes is exact only up to K = 65,536"
    q, part = quantize(x, count), np.float32(1 / count)
    mean = np.multiply(q.codes.sum(axis=-1, keepdims=True, dtype=np.int32).astype(np.float32), part)
    variance = np.maximum(np.multiply(square_sum(q), part) - mean * mean, np.float32(0))
    factor = rsqrt(np.add(variance * (q.scale * q.scale), eps))
    return np.add(((x - mean * q.scale) * factor) * gain, bias)


def linear(q: Codes, codes: I8, row_scale: F32, bias: F32 | None) -> F32:
    """y [T, N] of q [T, K] and weight codes [N, K]: ((Σhigh * 256 + Σlow) * scale) * row_scale (+ bias).

    Both plane sums are exact int32: K * 128 * 127 < 2**31 for K <= ``MAX_K``.
    """
    assert codes.shape[1] <= MAX_K, "plane sums are exact only up to K = 131,071"
    high, low = planes(q.codes)
    sums = byte_dot(low, codes).astype(np.float32)
    if q.wide:
        sums = byte_dot(high[:, : q.wide], codes[:, : q.wide]).astype(np.float32) * PLANE + sums
    y = (sums * q.scale) * row_scale
    return y if bias is None else y + bias


def headnorm(x: F32, gain: F32, eps: np.float32) -> F32:
    """RMS norm of each head of x [..., H, D] with gain [D]: the rms is that of the head's two-plane codes."""
    factor = rms_scale(quantize(x, x.shape[-1]), eps)
    return (x * factor) * gain


def embed(token: NDArray[np.integer], codes: I8, row_scale: F32, gain: F32 | None) -> F32:
    """Rows of an embedding table [V, K]: code * row_scale (* gain [K])."""
    rows = codes[token].astype(np.float32) * row_scale[token][..., None]
    return rows if gain is None else rows * gain
