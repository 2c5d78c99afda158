"""TruePoint once more, one number at a time: Python integers and np.float32 scalars, sharing no code with openlpu.

Written from ``docs/truepoint.md``.  What the vectorised reference and this agree on does not depend on either.
"""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np

f32 = np.float32
NARROW, WIDE = f32(1 / 127), f32(1 / 32639)
FLOOR = f32(2.0**-60)


def to_bits(x: float) -> int:
    return struct.unpack("<i", struct.pack("<f", x))[0]


def of_bits(i: int) -> np.float32:
    return f32(struct.unpack("<f", struct.pack("<i", i))[0])


def nearest(x: float) -> int:
    """Nearest integer, ties to even, through exact fractions."""
    return round(Fraction(float(x)))


def exp(x: np.float32) -> np.float32:
    if x < f32(-87):
        return f32(0)
    x = min(x, f32(84))
    n = nearest(x * f32(1.44269504))
    r = (x - f32(n) * f32(0.693359375)) - f32(n) * f32(-2.12194440e-4)
    p = f32(1 / 5040)
    for c in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = p * r + f32(c)
    return of_bits(to_bits(p) + (n << 23))


def rsqrt(x: np.float32) -> np.float32:
    h, y = f32(0.5) * x, of_bits(0x5F3759DF - (to_bits(x) >> 1))
    for _ in range(3):
        y = y * (f32(1.5) - (h * y) * y)
    return y


def reciprocal(x: np.float32) -> np.float32:
    return rsqrt(x) * rsqrt(x)


def silu(x: np.float32) -> np.float32:
    return x * reciprocal(f32(1) + exp(-x))


def route(logits: list, chosen: int) -> list:
    """One token's weights: experts in their order, the first few of them share."""
    order = sorted(range(len(logits)), key=lambda e: (-float(logits[e]), e))[:chosen]
    size = {e: exp(logits[e] - logits[order[0]]) for e in order}
    total = f32(0)
    for e in sorted(order):
        total = total + size[e]
    return [size[e] * reciprocal(total) if e in size else f32(0) for e in range(len(logits))]


def mix(weights: list, outputs: list) -> list:
    """One token's sum over the experts it has; the others are not looked at."""
    total = [f32(0)] * len(outputs[0])
    for weight, output in zip(weights, outputs, strict=True):
        if weight != 0:
            total = [t + weight * y for t, y in zip(total, output, strict=True)]
    return total


def tanh(x: np.float32) -> np.float32:
    return f32(1) - f32(2) * reciprocal(f32(1) + exp(x + x))


def quantize(x: list, wide: int) -> tuple[list[int], np.float32]:
    scale = max(FLOOR, max((abs(v) for v in x[wide:]), default=f32(0)) * NARROW,
                max((abs(v) for v in x[:wide]), default=f32(0)) * WIDE)
    return [nearest(v * reciprocal(scale)) for v in x], scale


def quantize_nibbles(x: list) -> tuple[list[int], np.float32]:
    low, high = min(f32(0), *x), max(f32(0), *x)
    scale = max((high - low) * f32(1 / 15), FLOOR)
    zero = nearest(low * reciprocal(scale))
    return [min(max(nearest(v * reciprocal(scale)), zero), zero + 15) for v in x], scale


def planes(code: int) -> tuple[int, int]:
    """High and low byte, the low one signed."""
    low = (code + 128) % 256 - 128
    return (code - low) // 256, low


def rms(codes: list[int], scale: np.float32, eps: np.float32) -> np.float32:
    pairs = [planes(c) for c in codes]
    hh, hl, ll = (f32(sum(v)) for v in ([h * h for h, _ in pairs], [h * low for h, low in pairs],
                                        [low * low for _, low in pairs]))
    total = (hh * f32(65536) + hl * f32(512)) + ll
    return rsqrt((total * (scale * scale)) * f32(1 / len(codes)) + eps)


def linear(codes: list[int], scale: np.float32, weight: list[int], row: np.float32, bias) -> np.float32:
    high, low = (sum(p[i] * w for p, w in zip(map(planes, codes), weight, strict=True)) for i in (0, 1))
    assert max(abs(high), abs(low)) < 2**31
    y = ((f32(high) * f32(256) + f32(low)) * scale) * row
    return y if bias is None else y + bias


def layernorm(x: list, gain: list, bias: list, eps: np.float32) -> list[np.float32]:
    """Mean and variance of the codes, in codes."""
    codes, scale = quantize(x, len(x))
    pairs, part = [planes(c) for c in codes], f32(1 / len(codes))
    hh, hl, ll = (f32(sum(v)) for v in ([h * h for h, _ in pairs], [h * low for h, low in pairs],
                                        [low * low for _, low in pairs]))
    mean = f32(sum(codes)) * part
    variance = max(((hh * f32(65536) + hl * f32(512)) + ll) * part - mean * mean, f32(0))
    factor = rsqrt(variance * (scale * scale) + eps)
    return [((v - mean * scale) * factor) * g + b for v, g, b in zip(x, gain, bias, strict=True)]


def gelu(x: np.float32, form: str) -> np.float32:
    """The coefficients once more, the constant first."""
    terms = {"tanh": (1.59576912, 0.0713548163),
             "erf": (1.5957685, 0.0726682983, -6.6053414e-5, -1.1054677e-4, 7.948141e-6, -2.6756636e-7, 3.6278537e-9)}
    c = min(max(x, f32(-6)), f32(6))
    p = f32(terms[form][-1])
    for term in terms[form][-2::-1]:
        p = p * (c * c) + f32(term)
    return x * reciprocal(f32(1) + exp(-(c * p)))


def dot(q: list[int], k: list[int]) -> np.float32:
    pairs = [(*planes(a), *planes(b)) for a, b in zip(q, k, strict=True)]
    hh = sum(a * c for a, _, c, _ in pairs)
    mid = sum(a * d + b * c for a, b, c, d in pairs)
    ll = sum(b * d for _, b, _, d in pairs)
    return (f32(hh) * f32(65536) + f32(mid) * f32(256)) + f32(ll)


def swiglu(gate: np.float32, up: np.float32, alpha: np.float32, limit: np.float32) -> np.float32:
    g, u = min(gate, limit), max(min(up, limit), -limit)
    return (g * reciprocal(f32(1) + exp(-(alpha * g)))) * (u + f32(1))


def attend(q, q_scale, k, k_scale, v, v_scale, softmax_scale, window=0, sink=None) -> list[np.float32]:
    """One query head [D] at the last position over one KV head: k, v [T][D] codes; k_scale, v_scale [T]."""
    if window:  # older positions are as if they had never been, but the blocks stay where they are
        hidden = max(len(k) - window, 0)
        gone, inside = hidden // 256 * 256, hidden % 256
        k, k_scale, v, v_scale = k[gone:], k_scale[gone:], v[gone:], v_scale[gone:]
    else:
        inside = 0
    factor = q_scale * softmax_scale
    score = [(dot(q, row) * factor) * s for row, s in zip(k, k_scale, strict=True)]
    blocks = [slice(max(t, inside), t + 256) for t in range(0, len(score), 256)]
    tops = [max(score[b]) for b in blocks]
    most = max(tops) if sink is None else max(*tops, sink)
    num, den = [f32(0)] * len(q), f32(0) if sink is None else exp(sink - most) * f32(32512)
    for b, top in zip(blocks, tops, strict=True):
        e = [exp(s - top) for s in score[b]]
        v_top = max(max(v_scale[b]), FLOOR)
        p = [nearest(x * f32(32512)) for x in e]
        w = [nearest((x * (s * reciprocal(v_top))) * f32(32512)) for x, s in zip(e, v_scale[b], strict=True)]
        alpha = exp(top - most)
        den = den + f32(sum(p)) * alpha
        for d in range(len(q)):
            high, low = (sum(a * planes(row[d])[i] for a, row in zip(w, v[b], strict=True)) for i in (0, 1))
            assert max(abs(high), abs(low)) < 2**31
            num[d] = num[d] + (f32(high) * f32(256) + f32(low)) * (alpha * v_top)
    return [n * reciprocal(den) for n in num]
