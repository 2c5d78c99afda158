"""fp32 vectors in, codes with a scale in every lane out; and the scale's rms factor.  See arch/truepoint/codes.py."""

from __future__ import annotations

import numpy as np

from openlpu.arch.truepoint import codes as tp
from openlpu.graph.ir import Node
from openlpu.schedule.expression import Op, Operand
from openlpu.schedule.select.build import Build, Coded, Floats
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.values import Vec

MAGNITUDE = 0x7FFFFFFF
TRAP = 2.0**31 / float(tp.MAGNITUDE_LIMIT)


def float_of(x: np.float32) -> float:
    """An fp32 constant as an immediate."""
    return float(x)


def chain(op: str, parts: list[Op | Vec]) -> Op | Vec:
    """parts[0] op parts[1] op …, as one chain of ALUs."""
    tree = parts[0]
    for part in parts[1:]:
        tree = Op(op, part, tree)
    return tree


@scoped
def amax(b: Build, vecs: list[Vec], masks: list[Vec | None]) -> Vec:
    """The largest magnitude (as bits) over the masked lanes of all vectors, in every lane."""
    parts: list[Op | Vec] = [
        Op("mask", v, MAGNITUDE) if m is None else Op("mask", Op("mask", v, MAGNITUDE), m)
        for v, m in zip(vecs, masks, strict=True)
    ]
    while len(parts) > 1:
        parts = [stored(b, chain("max_int", parts[i : i + 6])) for i in range(0, len(parts), 6)]
    top = b.lane_max(stored(b, parts[0]), "max_int")
    # Magnitudes that TruePoint refuses stop the step here: times TRAP they do not fit the conversion.
    b.vxm.evaluate(Op("to_int", Op("mul", top, TRAP)))
    return top


def stored(b: Build, x: Op | Vec) -> Vec:
    """A vector as it is, or the result of an operation."""
    return b.vxm.evaluate(x) if isinstance(x, Op) else x


def reciprocal(x: Operand) -> Op:
    """rsqrt(x) squared."""
    root = Op("rsqrt", x)
    return Op("mul", root, root)


def scale_of(b: Build, narrow: Vec | None, wide: Vec | None) -> Vec:
    """max(narrow / 127, wide / 32639, floor): the scale of a vector from its magnitudes."""
    parts: list[Op] = []
    if narrow is not None:
        parts.append(Op("mul", narrow, float_of(tp.INV_NARROW)))
    if wide is not None:
        parts.append(Op("mul", wide, float_of(tp.INV_WIDE)))
    tree = parts[0] if len(parts) == 1 else Op("max", parts[0], parts[1])
    return b.vxm.evaluate(Op("max", tree, float_of(tp.SCALE_FLOOR)))


def code_of(x: Operand, inverse: Operand, limit: int | tuple[Vec, Vec]) -> Op:
    """round(x * inverse), clipped to a limit: one number, or a vector and its negative."""
    high, low = (limit, -limit) if isinstance(limit, int) else limit
    return Op("max_int", Op("min_int", Op("to_int", Op("mul", x, inverse)), high), low)


def high_plane(b: Build, code: Vec) -> Vec:
    """(code + 128) >> 8, as the second byte of code + 128."""
    return b.vxm.evaluate(Op("add_mod", code, 128)).plane(1)


@scoped
def scale(b: Build, x: Floats, size: int, wide: int) -> Vec:
    """The scale of codes, in every lane; ``size`` and ``wide`` as in :func:`quantize`."""
    if wide in (0, size):
        only = amax(b, x.vecs, [None] * len(x.vecs))
        return scale_of(b, only, None) if wide == 0 else scale_of(b, None, only)
    channel = x.lanes.channel
    narrow, above = channel >= wide, (channel >= 0) & (channel < wide)
    tops = [amax(b, x.vecs, [b.mask(flags[:, v]) for v in range(len(x.vecs))]) for flags in (narrow, above)]
    return scale_of(b, tops[0], tops[1])


def quantize(b: Build, x: Floats, size: int, wide: int, known: Vec | None = None) -> Coded:
    """Codes of a value of ``size`` channels, of which the first ``wide`` take two planes; ``known``: their scale."""
    is_wide = (x.lanes.channel >= 0) & (x.lanes.channel < wide)
    factor = known or scale(b, x, size, wide)
    inverse = b.vxm.evaluate(reciprocal(factor))
    low, high = [], []
    for v, vec in enumerate(x.vecs):
        flags = is_wide[:, v]
        limit: int | tuple[Vec, Vec] = tp.WIDE_MAX if wide == size else tp.NARROW_MAX
        if 0 < wide < size and flags.any():
            words = np.where(flags, tp.WIDE_MAX, tp.NARROW_MAX).astype(np.int32)
            limit = (b.constant(words), b.constant(-words))
        code = b.vxm.evaluate(code_of(vec, inverse, limit))
        low.append(code.plane(0))
        high.append(high_plane(b, code) if flags.any() else None)
    return Coded(x.lanes, low, high, factor)


def rms(b: Build, node: Node, q: Coded, reference: Coded) -> Coded:
    """Codes whose scale is times 1/rms of the reference: Σcode² is the MXM's product of a vector with itself."""
    size = b.graph.values[node.output].size
    total: Op = Op("to_float", _product(b, reference.low, reference.low))
    if any(h is not None for h in reference.high):
        lows = [low for low, high in zip(reference.low, reference.high, strict=True) if high is not None]
        highs = [high for high in reference.high if high is not None]
        total = squares(_product(b, highs, highs), _product(b, lows, highs), total)
    factor = rms_factor(total, reference.scale, size, node.attrs["eps"])
    return Coded(q.lanes, q.low, q.high, b.vxm.evaluate(Op("mul", q.scale, factor)))


def squares(hh: Vec, hl: Vec, ll: Op) -> Op:
    """Σcode² from the three sums of products of planes: (hh * 65536 + hl * 512) + ll."""
    return Op("add", Op("add", Op("mul", Op("to_float", hh), 65536.0), Op("mul", Op("to_float", hl), 512.0)), ll)


def rms_factor(total: Op, scale: Vec, size: int, eps: float) -> Op:
    """1/rms from Σcode²: rsqrt(total * scale² / size + eps)."""
    mean = Op("mul", Op("mul", total, Op("mul", scale, scale)), float_of(np.float32(1 / size)))
    return Op("rsqrt", Op("add", mean, float_of(np.float32(eps))))


def _product(b: Build, weights: list[Vec], rows: list[Vec]) -> Vec:
    """Σ over vectors and lanes of weights * rows, exact int32, in every lane: each row of the array is one vector."""
    plane = b.mxm.pick()
    slot = b.mxm.new_slot(plane)
    out: Vec | None = None
    for i, (weight, row) in enumerate(zip(weights, rows, strict=True)):
        b.mxm.load(plane, 0, weight, b.chip.superlanes)
        b.mxm.install(plane)
        out = b.mxm.activate(plane, row, slot, clear=i == 0, emit=i == len(rows) - 1)
    assert out is not None, "the last activation emits"
    return out
