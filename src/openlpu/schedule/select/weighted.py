"""Scores of a chunk's query heads in, attention output out: probabilities as two byte planes, their sums with V and
with ones on the MXM, the quotient.

A tile of V has the channels of all KV heads of a vector, one of ones the same in every lane; of what a head's
probabilities make with it the head's own lanes count.  They are put together while they come from the MXM, so that
heads side by side are divided at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint import attention as tp
from openlpu.place.emplace import Source
from openlpu.place.host import TURNED, seen_row
from openlpu.schedule.expression import Later, Op, Operand
from openlpu.schedule.guide import Guide
from openlpu.schedule.select import cache, lane_sum
from openlpu.schedule.select.build import Build
from openlpu.schedule.select.codes import above, at_least_floor, chain, float_of, reciprocal, stored
from openlpu.schedule.select.experts import ends
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.units.mxm import Plane
from openlpu.schedule.units.vxm import Want
from openlpu.schedule.values import Vec

ONE = float_of(tp.PROB_ONE)
CHAIN = 4  # heads side by side, or blocks, that are put together in one go
Pair = tuple[Vec, Vec]  # low and high byte plane
Row = tuple[int, int]  # a token's place and a member of the groups: heads side by side


@dataclass(frozen=True)
class Head:
    """A token's query head: the token's place, the KV head, its kv vector and first lane, and the place in its
    group."""

    place: int
    kv_head: int
    vector: int
    lane: int
    member: int


@dataclass(frozen=True)
class Flags:
    """Which positions queries see: those of a ``window`` (0, also for one that hides nothing: all); if not ``causal``,
    all queries of a step see the same."""

    window: int
    causal: bool

    def place(self, place: int) -> int:
        """The place of the chunk whose flags are those of a place."""
        return place if self.causal else 0

    def row(self, b: Build, word: str, block: int, head: Head, *, turned: bool = False) -> Vec:
        """A block's row of flags for a head; ``turned``: with its halves exchanged."""
        name = seen_row(word, block, self.window) + TURNED * turned
        return b.host_row(name, place=self.place(head.place))


@dataclass(frozen=True)
class Scored:
    """One head's scores of one block, and their maximum in every lane: a tree on what comes from the SXMs."""

    score: Vec
    top: Op | Vec


def request(b: Build, side: int) -> Guide | None:
    """The map of the token's request, on the way inward in a hemisphere; None where there is one request."""
    if b.layout.requests > 1 and side not in b.requests:
        group, homes = b.asm.group_slices(2 * b.chip.groups - 1 if side else 0), b.layout.homes
        homes.keep(f"host.request.edge{side}", Source("zeros"), group[:1])
        names = [name for name in homes.homes if name.startswith("kv.")]
        b.requests[side] = Guide(b.asm, b.home(f"host.request.edge{side}"), ends(b, names)[side])
    return b.requests.get(side)


@scoped
def weighted(b: Build, heads: Sequence[Head], scored: Sequence[Sequence[Scored]], rows: cache.Rows, side: int,
             flags: Flags, sinks: Sequence[Sequence[Vec]]) -> dict[Row, Vec | Later]:
    """By place and member: the weighted sums of V of the heads of one kv vector, each in its own lanes; the last may be
    made with what reads it."""
    own: dict[Row, list[int]] = {}
    for i, head in enumerate(heads):
        own.setdefault((head.place, head.member), []).append(i)
    lanes = [heads[i].lane for i in next(iter(own.values()))]
    first = b.blocks == 1 and not any(sinks)  # then a block's maximum is that of all, and the query sees some of it
    shares, v_tops = _shares(b, heads, rows, flags, lanes)
    found = [[_probabilities(b, s, shares[flags.place(head.place), head.kv_head, block], side, None if first else
                             flags.row(b, "valid", block, head))
              for block, s in enumerate(blocks)] for head, blocks in zip(heads, scored, strict=True)]
    ones = [lane_sum.ones(b, plane, tp.BLOCK) for plane in b.mxm.pick_some(1 - side, len(lanes))]
    sums: dict[Row, list[tuple[Op | Vec, Op | Vec]]] = {row: [] for row in own}  # of each block with V, and with ones
    for block in range(b.blocks):
        weights = {row: [found[i][block].weights for i in members] for row, members in own.items()}
        for row, product in _products(b, weights, rows, block, side, lanes):
            total = Op("to_float", _sum(b, ones, [found[i][block].whole for i in own[row]], _around(b, lanes)))
            last = block == b.blocks - 1  # its sums come straight from the MXM
            sums[row].append((product, total) if last else (stored(b, product), b.vxm.evaluate(total)))
    out: dict[Row, Vec | Later] = {}
    for row, members in own.items():
        tops = [v_tops[flags.place(row[0]), block] for block in range(b.blocks)]
        if first:
            behind = len(own) - 1 - [*own].index(row)
            together = len(heads) <= CHAIN
            out[row] = later = _divided(b, sums[row][0], tops[0], together * behind * max(len(lanes), 2))
            if behind and not together:
                later.made()
            continue
        largest = [_joined(b, [found[i][block].top for i in members], lanes) for block in range(b.blocks)]
        sink = [_joined(b, [sinks[i][0] for i in members], lanes)] if any(sinks) else []
        out[row] = _combined(b, sums[row], tops, *_alphas(b, largest, sink))
    return out


def _divided(b: Build, sums: tuple[Op | Vec, Op | Vec], v_top: Vec, wait: int) -> Later:
    """What the only block's sums make; ``wait``: ALUs that it passes until all rows have passed the planes."""
    product, total = sums
    made = Op("mul", Op("mul", product, v_top), reciprocal(total))
    for _ in range(wait):
        made = Op("pass", made)
    later = b.vxm.later(made)
    for plane in b.mxm.planes:
        b.mxm.awaited(plane, later)
    return later


@scoped
def _combined(b: Build, sums: Sequence[tuple[Op | Vec, Op | Vec]], v_tops: Sequence[Vec], alphas: Sequence[Vec],
              start: Vec | float) -> Vec:
    """What the blocks' sums make together, in ascending order; ``start``: of the denominator."""
    num: Op | Vec | float = 0.0
    den: Op | Vec | float = start
    for i, ((product, total), v_top, alpha) in enumerate(zip(sums, v_tops, alphas, strict=True)):
        num = Op("add", Op("mul", product, Op("mul", alpha, v_top)), num)
        den = Op("add", Op("mul", total, alpha), den)
        if i % CHAIN == CHAIN - 1 and i < len(sums) - 1:
            num, den = b.vxm.evaluate(num), b.vxm.evaluate(den)
    return b.vxm.evaluate(Op("mul", num, reciprocal(den)))


@dataclass(frozen=True)
class Probabilities:
    """Of a head's positions of a block: byte planes of them times V's scales, and of them alone; the scores' maximum in
    every lane, where others may be larger."""

    weights: Pair
    whole: Pair
    top: Vec | None


@scoped
def _probabilities(b: Build, s: Scored, share: Vec, side: int, valid: Vec | None) -> Probabilities:
    """``valid``: 1 for positions that are seen; None where the scores say so."""
    e = Op("exp", Op("sub", s.score, s.top))
    e = e if valid is None else Op("mul", e, valid)
    wants = []
    for x, where in ((Op("mul", e, share), side), (e, 1 - side)):
        code = Op("to_int", Op("mul", x, ONE))
        wants += [Want(code, side=where), Want(above(code), side=where)]
    if valid is not None and isinstance(s.top, Op):
        wants.append(Want(s.top))
    low, high, all_low, all_high, *made = b.vxm.results(wants)
    top = [s.top] if isinstance(s.top, Vec) else made
    return Probabilities((low.plane(0), high.plane(1)), (all_low.plane(0), all_high.plane(1)), top[0] if top else None)


@scoped
def _shares(b: Build, heads: Sequence[Head], rows: cache.Rows, flags: Flags, lanes: Sequence[int]
            ) -> tuple[dict[tuple[int, int, int], Vec], dict[tuple[int, int], Vec]]:
    """By place, KV head and block: V's scales over the largest of the block; by place and block: those largest ones,
    each in the lanes of its head."""
    shares: dict[tuple[int, int, int], Vec] = {}
    tops: dict[tuple[int, int], list[Vec]] = {}
    for head in heads:
        for block in range(b.blocks):
            place = flags.place(head.place)
            if (place, head.kv_head, block) not in shares:
                scale, valid = rows.scale(b, head.kv_head, block), flags.row(b, "valid", block, head)
                apart = rows.apart.get(head.kv_head) if b.blocks == 1 else None
                top = _v_top_apart(b, *apart, valid, head, lanes) if apart else _v_top(b, scale, valid, lanes)
                shares[place, head.kv_head, block] = b.vxm.evaluate(Op("mul", scale, reciprocal(top)))
                tops.setdefault((place, block), []).append(top)
    return shares, {key: _joined(b, own, lanes) for key, own in tops.items()}


@scoped
def _v_top(b: Build, scale: Vec, valid: Vec, lanes: Sequence[int]) -> Vec:
    """The block's largest V scale over the positions written, at least the floor, in every lane that is a position's or
    a head's."""
    many, span = b.blocks * len(lanes), reach(b, lanes)
    return b.vxm.evaluate(at_least_floor(b.lane_max(Op("mul", scale, valid), "max", span=span, many=many)))


@scoped
def _v_top_apart(b: Build, old: Vec, own: Vec, valid: Vec, head: Head, lanes: Sequence[int]) -> Vec:
    """Likewise from the scales before the token, whose maximum is found long before, and its own, which is brought from
    its head's lanes to all."""
    many, span = len(lanes), reach(b, lanes)
    seen = Op("mul", Op("mask", old, b.host_row("others")), valid)
    before = b.vxm.evaluate(at_least_floor(b.lane_max(seen, "max", span=span, many=many)))
    alone = Op("mask", own, b.mask(b.heads.mask(head.lane)))
    new = b.lane_max(alone, "max", first=b.heads.dim, span=span, many=8 * many)
    return b.vxm.evaluate(Op("max", new, before))


def reach(b: Build, lanes: Sequence[int]) -> int:
    """The lanes that are positions, or of heads that begin in some lanes: a block's, or 0 for all."""
    return tp.BLOCK if max(lanes) + b.heads.dim <= tp.BLOCK else 0


@scoped
def _alphas(b: Build, tops: Sequence[Vec], sink: list[Vec]) -> tuple[list[Vec], Vec | float]:
    """What the blocks' sums count in that of all, and what the denominator begins with."""
    top = stored(b, chain("max", [*tops, *sink]))
    start = b.vxm.evaluate(Op("mul", Op("exp", Op("sub", sink[0], top)), ONE)) if sink else 0.0
    return [b.vxm.evaluate(Op("exp", Op("sub", own, top))) for own in tops], start


def _masks(b: Build, lanes: Sequence[int]) -> list[NDArray[np.bool_]]:
    """The lanes of heads side by side, by their first lanes."""
    return [b.heads.mask(lane) for lane in lanes]


def _around(b: Build, lanes: Sequence[int]) -> list[Vec]:
    """Masks that take all lanes: those of no head go to the first."""
    _, *others = _masks(b, lanes)
    return [b.mask(mask) for mask in (~np.any([np.zeros(b.chip.lanes, bool), *others], axis=0), *others)]


@scoped
def _joined(b: Build, parts: Sequence[Vec | None], lanes: Sequence[int]) -> Vec:
    """Vectors of heads side by side as one."""
    masked: list[Op | Vec] = [x if len(lanes) == 1 else Op("mask", x, mask)
                              for x, mask in zip(parts, _around(b, lanes), strict=True) if x]
    return stored(b, cache.joined(b, masked)) if len(masked) > 1 else stored(b, masked[0])


def _sum(b: Build, planes: Sequence[Plane], pairs: Sequence[Pair], masks: Sequence[Vec]) -> Op:
    """256 * Σ high + Σ low with a tile that one or two planes have, of heads side by side, each in its lanes; int32, to
    be read next.  Low rows pass the first plane, high ones the last."""
    low, high = (_row_sums(b, plane, own, masks) for plane, own in
                 zip((planes[0], planes[-1]), zip(*pairs, strict=True), strict=True))
    return Op("add_mod", Op("shift_left", high, 8), low)


def _row_sums(b: Build, plane: Plane, rows: Sequence[Vec], masks: Sequence[Vec]) -> Operand:
    sums: list[Operand] = []
    for row, mask in zip(rows, masks, strict=True):
        found = b.mxm.sums(plane, row, b.mxm.new_slot(plane), clear=True)
        x: Operand = found if len(rows) == 1 else Op("mask", found, mask)
        sums.append(Op("pass", x) if not sums and len(rows) > 1 else x)  # one after the other through the plane
        tree = chain("add_mod", sums)
        if len(sums) == CHAIN and len(rows) > CHAIN and isinstance(tree, Op):
            sums = [b.vxm.evaluate(tree)]
    return chain("add_mod", sums)


def _products(b: Build, weights: Mapping[Row, Sequence[Pair]], rows: cache.Rows, block: int, side: int,
              lanes: Sequence[int]) -> Iterator[tuple[Row, Op | Vec]]:
    """Exact Σ weight * V over the block's positions as fp32, to be read next; lanes are V's channels."""
    masks = [b.mask(mask) for mask in _masks(b, lanes)]
    parts: dict[Row, list[Op | Vec]] = {row: [] for row in weights}
    for v_plane in range(len(rows.planes)):
        planes = b.mxm.pick_some(side, len(lanes))
        for group in range(rows.groups):
            b.mxm.load_transposed(planes, group, rows.vectors(v_plane, block, group), request(b, side))
        for plane in planes:
            b.mxm.install(plane)
        for row, own in weights.items():
            found = Op("to_float", _sum(b, planes, own, masks))
            if len(rows.planes) == 1:
                yield row, found
            else:
                parts[row].append(b.vxm.evaluate(found))
    if len(rows.planes) > 1:
        yield from ((row, Op("add", Op("mul", high, 256.0), low)) for row, (low, high) in parts.items())
