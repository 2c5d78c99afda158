"""fp32 vectors in, codes with a scale in every lane out; and the scale's rms factor.  See arch/truepoint/codes.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from openlpu.arch.truepoint import codes as tp
from openlpu.graph.ir import Node
from openlpu.place.lanes import Lanes
from openlpu.schedule.expression import Later, Op, Operand
from openlpu.schedule.select import lane_sum
from openlpu.schedule.select.build import Build, Coded, Floats
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.units.vxm import Want
from openlpu.schedule.values import Vec

X = TypeVar("X", bound=Operand)
MAGNITUDE = 0x7FFFFFFF
TRAP = 2.0**31 / float(tp.MAGNITUDE_LIMIT)


def float_of(x: np.float32) -> float:
    """An fp32 constant as an immediate."""
    return float(x)


def chain(op: str, parts: Sequence[X]) -> Op | X:
    """parts[0] op parts[1] op …, as one chain of ALUs."""
    tree: Op | X = parts[0]
    for part in parts[1:]:
        tree = Op(op, part, tree)
    return tree


def magnitudes(b: Build, vecs: Sequence[Vec | Later]) -> Op:
    """The largest magnitude (as bits) of some vectors, lane by lane."""
    parts: list[Op | Vec] = [Op("mask", v, MAGNITUDE) for v in vecs]
    while len(parts) > 6:
        parts = [stored(b, chain("max_int", parts[i : i + 6])) for i in range(0, len(parts), 6)]
    tree = chain("max_int", parts)
    return tree if isinstance(tree, Op) else Op("pass", tree)


def refused(magnitude: Op) -> Op:
    """Magnitudes that TruePoint refuses stop the step here: times TRAP they do not fit the conversion."""
    return Op("to_int", Op("mul", magnitude, TRAP))


def amax(b: Build, vecs: Sequence[Vec | Later], span: int = 0, many: int = 1, *, each: bool = False) -> Op:
    """The largest magnitude over all lanes (``span``: over the first ones, the others zeros, or with ``each`` over the
    lanes of each segment) of all vectors, in every lane; ``many``: how many such maxima of a token are found at about
    the same time."""
    top = magnitudes(b, vecs)
    return b.lane_max(top, "max", [refused(top)], span=span, many=many * b.chunk, least=True, zeros=not each)


def narrow_span(b: Build, lanes: Lanes) -> int:
    """Of a value that leaves two fifths of the lanes idle how many in front it takes, in whole superlanes, else 0: a
    maximum over them alone is found sooner, and :func:`everywhere` brings it to the others while the codes are on
    their way."""
    width = b.chip.lanes_per_superlane
    used = -(-(int(np.flatnonzero((lanes.channel >= 0).any(axis=(0, 1)))[-1]) + 1) // width) * width
    return used if 1 < used <= b.chip.lanes * 3 // 5 else 0


def everywhere(b: Build, x: Op | Vec, span: int) -> Op:
    """In every lane the maximum of all lanes, of numbers that are the same in the first ``span`` and nowhere larger."""
    return b.lane_max(x, "max", first=span, many=b.chunk)


def stored(b: Build, x: Op | Vec) -> Vec:
    """A vector as it is, or the result of an operation."""
    return b.vxm.evaluate(x) if isinstance(x, Op) else x


def reciprocal(x: Operand) -> Op:
    """rsqrt(x) squared."""
    root = Op("rsqrt", x)
    return Op("mul", root, root)


def scale_of(top: Operand, inverse: np.float32) -> Op:
    """max(top * inverse, floor): the scale of codes from their largest magnitude and 1 / the largest code."""
    return at_least_floor(Op("mul", top, float_of(inverse)))


def at_least_floor(scale: Operand) -> Op:
    """No scale is smaller."""
    return Op("max", scale, float_of(tp.SCALE_FLOOR))


def code_of(x: Operand, inverse: Operand) -> Op:
    """round(x * inverse); as TruePoint says, no code needs clipping."""
    return Op("to_int", Op("mul", x, inverse))


def high_plane(b: Build, code: Vec) -> Vec:
    """(code + 128) >> 8, as the second byte of code + 128."""
    return b.vxm.evaluate(above(code)).plane(1)


def above(code: Operand) -> Op:
    """The word whose second byte is a code's high plane."""
    return Op("add_mod", code, 128)


@scoped
def scale(b: Build, x: Floats, size: int, wide: int, span: int = 0) -> Op:
    """The scale of codes, in every lane (``span``: of the first ones that the value uses); ``size`` and ``wide`` as in
    :func:`quantize`."""
    if wide in (0, size):
        return scale_of(amax(b, x.parts, span), tp.INV_NARROW if wide == 0 else tp.INV_WIDE)
    # A product with a positive number keeps the order, so a maximum of scales is the scale of the maxima.
    channel = x.lanes.channel
    mixed = [bool((channel[:, v] < wide)[channel[:, v] >= 0].any()) for v in range(len(x.parts))]
    narrow = [vec for vec, some in zip(x.parts, mixed, strict=True) if not some]
    tops = [magnitudes(b, narrow)] if narrow else []
    scales: list[Op | Vec] = [Op("mul", top, float_of(tp.INV_NARROW)) for top in tops]
    for v in np.flatnonzero(mixed).tolist():
        own = channel[:, v]
        inverse = np.where(own < 0, 0, np.where(own < wide, tp.INV_WIDE, tp.INV_NARROW)).astype(np.float32)
        tops.append(Op("mask", x.parts[v], MAGNITUDE))
        scales.append(Op("mul", tops[-1], b.constant(inverse.view(np.int32))))
    tree = chain("max", scales)
    assert isinstance(tree, Op), "a product is an op"
    return at_least_floor(b.lane_max(tree, "max", [refused(top) for top in tops], span=span, many=b.chunk, least=True,
                                     zeros=True))


FUSED = 3  # vectors of codes that are made in one go with their scale


def quantize(b: Build, x: Floats, size: int, wide: int, known: Vec | None = None, *, squared: bool = False) -> Coded:
    """Codes of a value of ``size`` channels, of which the first ``wide`` take two planes; ``known``: their scale;
    ``squared``: ``rms`` will want their squares."""
    span = 0 if known else narrow_span(b, x.lanes)
    factor = known or scale(b, x, size, wide, span)
    inverse: Op | Vec = reciprocal(factor)
    if len(x.parts) > FUSED:
        made = b.vxm.results([Want(x) for x in (inverse, factor) if isinstance(x, Op)])
        inverse, factor = made[0], factor if isinstance(factor, Vec) else made[-1]
    trees: list[Op] = []
    is_high, squares = [], list[list[tuple[Vec, Vec]]]()
    for v, vec in enumerate(x.parts if len(x.parts) <= FUSED and not known else x.vecs):
        wides = (x.lanes.channel[:, v] >= 0) & (x.lanes.channel[:, v] < wide)
        trees.append(code_of(vec, inverse))
        is_high.append(bool(wides.any()))
    if len(x.parts) > FUSED:
        low = [b.vxm.evaluate(code) for code in trees]
        high = [high_plane(b, code) if wides else None for code, wides in zip(low, is_high, strict=True)]
    else:
        highs = [above(code) for code, wides in zip(trees, is_high, strict=True) if wides]
        words = _words(trees, is_high) if squared else []
        flat = [x for own in words for word in own for x in (word, above(word))]
        last = everywhere(b, factor, span) if span and isinstance(factor, Op) else factor
        made = b.vxm.sides([*trees, *highs], [*flat, *([last] if isinstance(last, Op) else [])])
        rest = iter(made)
        low = [next(rest) for _ in trees]
        high = [next(rest).plane(1) if wides else None for wides in is_high]
        squares = [[(next(rest).plane(0), next(rest).plane(1)) for _ in own] for own in words]
        factor = factor if isinstance(factor, Vec) else next(rest)
        span = 0
    factor = stored(b, factor)
    factor = b.vxm.evaluate(everywhere(b, factor, span)) if span else factor
    return Coded(x.lanes, [code.plane(0) for code in low], high, factor, squares)


def _words(codes: Sequence[Op], is_high: Sequence[bool]) -> list[list[Op]]:
    """:func:`products` of codes that are not in SRAM yet; both planes of a wide one are there in the same cycle."""
    highs = [Op("shift_right", above(code), 8) if wide else None for code, wide in zip(codes, is_high, strict=True)]
    lows = [Op("shift_right", Op("shift_left", code, 24), 24) if wide else code
            for code, wide in zip(codes, is_high, strict=True)]
    return products(lows, highs)


JOINED = 8  # vectors of products, up to which one chain begins with their scale and ends in them
APART = 4  # vectors of products, up to which a second plane has ones and not their weights


def rms(b: Build, node: Node, q: Coded, reference: Coded) -> Coded:
    """Codes whose scale is times 1/rms of the reference; squares of its codes are words that a tile of ones sums."""
    size = b.graph.values[node.output].size
    plane = lane_sum.ones(b)
    found = reference.squares or stored_products(b, reference)
    own = _products(b, node)
    several = own <= APART and len(found) > 1
    other = lane_sum.ones(b, b.mxm.pick(1 - plane.hemisphere)) if several else plane
    planes = [plane, plane, other][: len(found)]
    parts = (Op("to_float", lane_sum.total(b, ones, words)) for ones, words in zip(planes, found, strict=True))
    enough = 2 * len(found) <= b.chip.accumulators  # each total is read before the next takes its accumulators
    ll, *wide = [part if enough else b.vxm.evaluate(part) for part in parts]
    total = squares(wide[0], wide[1], ll, apart=other is not plane) if wide else ll
    assert isinstance(q.scale, Vec) and isinstance(reference.scale, Vec), "codes have a scale before rms changes it"
    factor = rms_factor(total, reference.scale, size, node.attrs["eps"])
    scale = b.mxm.awaited(plane, b.vxm.later(Op("mul", q.scale, factor)))
    return Coded(q.lanes, q.low, q.high, scale if own <= JOINED else scale.made())


def _products(b: Build, node: Node) -> float:
    """How many vectors products with these codes have; more than any of several tokens."""
    readers = (reader.output for reader in b.graph.nodes if node.output in reader.inputs)
    return math.inf if b.chunk > 1 else sum(b.lanes(name).vectors for name in readers if name in b.layout.lanes)


def stored_products(b: Build, q: Coded) -> list[list[tuple[Vec, Vec]]]:
    """Byte planes of :func:`products` of codes that are in SRAM."""
    return [_stored_words(b, own) for own in products(q.low, q.high)]


def _stored_words(b: Build, words: Sequence[Op]) -> list[tuple[Vec, Vec]]:
    """Both byte planes of words, in SRAM."""
    made = [b.vxm.results([Want(word), Want(above(word))]) for word in words]
    return [(low.plane(0), high.plane(1)) for low, high in made]


def products(low: Sequence[Operand], high: Sequence[Operand | None]) -> list[list[Op]]:
    """Products of the planes of codes, each below 2**15: low * low; where any is wide also high * high, high * low."""
    wide = [(top, under) for top, under in zip(high, low, strict=True) if top is not None]
    out = [[Op("mul_mod", x, x) for x in low]]
    if wide:
        out += [[Op("mul_mod", top, top) for top, _ in wide], [Op("mul_mod", top, under) for top, under in wide]]
    return out


def squares(hh: Operand, hl: Operand, ll: Operand, *, apart: bool = False) -> Op:
    """Σcode² from the three sums of products of planes: (hh * 65536 + hl * 512) + ll.

    Where all come from one plane hh is there first and waits, or hl would want the same cycles; ``apart``: hl comes
    from another.
    """
    first = Op("mul", hh, 65536.0)
    first = first if apart else Op("pass", Op("pass", first))
    return Op("add", Op("add", first, Op("mul", hl, 512.0)), ll)


def rms_factor(total: Operand, scale: Vec, size: int, eps: float) -> Op:
    """1/rms from Σcode²: rsqrt(total * scale² / size + eps)."""
    mean = Op("mul", Op("mul", total, Op("mul", scale, scale)), float_of(np.float32(1 / size)))
    return Op("rsqrt", Op("add", mean, float_of(np.float32(eps))))
