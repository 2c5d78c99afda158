"""q, k, v of a chunk's tokens in, attention output out.

KV rows are scattered into the cache; then two MXM products per block, softmax on the VXM.

The arithmetic is ``attend`` in arch/truepoint/attention.py, step for step.  Positions lie on lanes: a block of 256
positions is one vector of scores.  K rows are weight rows as they are; V rows pass the SXM's transposer, which is why
a token's V goes into one superlane (its position / 16) of one slice (its position % 16).

The rows of all tokens are written first; then every tile of K or V is installed once, and the query heads of all tokens
pass.  A row of flags for each token says which positions it sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from openlpu.arch.truepoint import attention as tp
from openlpu.arch.truepoint.codes import INV_WIDE, WIDE_MAX
from openlpu.graph.ir import Node
from openlpu.place.emplace import Source
from openlpu.place.host import seen_row
from openlpu.schedule.expression import Op, Operand
from openlpu.schedule.guide import Guide
from openlpu.schedule.select import cache, lane_sum
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.select.codes import (
    above,
    amax,
    at_least_floor,
    chain,
    code_of,
    float_of,
    reciprocal,
    scale_of,
)
from openlpu.schedule.select.experts import ends
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.units.mxm import Plane
from openlpu.schedule.units.vxm import Want
from openlpu.schedule.values import Vec

ONE = float_of(tp.PROB_ONE)


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
class Scored:
    """One head's scores of one block and their maximum in every lane."""

    score: Vec
    top: Vec


def attention(b: Build, node: Node, q: Mapping[int, Floats], k: Sequence[Floats], v: Sequence[Floats],
              scale: Mapping[int, Vec]) -> dict[int, Floats]:
    """The output over the lanes of the query layout, for each place that ``q`` has; ``scale``: that of all chips' query
    codes, by place, where it is known."""
    side, bits = b.layout.side[node.where], node.attrs["kv_bits"]
    window = node.attrs.get("window", 0)
    window = window if window < b.layout.context else 0  # one that hides nothing is none
    vectors = range(k[0].lanes.vectors)
    if "centre" in node.params:
        k = [_centred(b, node, x) for x in k]
    softmax_scale = float(np.float32(node.attrs["softmax_scale"]))
    # What scores wait for comes first: K's codes, which become weights, then the queries'.
    keys = [[cache.coded(b, x.vecs[c], bits) for x in k] for c in vectors]
    queries = {place: _query_codes(b, x, softmax_scale, scale.get(place)) for place, x in q.items()}
    k_rows = [cache.write(b, f"{node.where}.k", keys[c], c, side, bits, transposed=False) for c in vectors]
    v_rows = [cache.write(b, f"{node.where}.v", [cache.coded(b, x.vecs[c], bits) for x in v], c, side, bits,
                          transposed=True) for c in vectors]
    out: dict[int, list[Vec]] = {place: [] for place in q}
    for c in vectors:
        members, own = range(b.heads.group), b.heads.heads_in(c)
        heads = [Head(place, g, c, lane, j) for place in q for j in members for g, lane in own]
        scored = _scores(b, heads, queries, k_rows[c], side, window)
        results = _weighted(b, heads, scored, v_rows[c], side, window, _sinks(b, node, heads))
        for place, vecs in out.items():
            for j in members:
                mine = [(r, head.lane) for r, head in zip(results, heads, strict=True)
                        if (head.place, head.member) == (place, j)]
                vecs.append(merge(b, [r for r, _ in mine], [lane for _, lane in mine]))
    return {place: Floats(q[place].lanes, vecs) for place, vecs in out.items()}


def _centred(b: Build, node: Node, k: Floats) -> Floats:
    """K without what all its rows have in common."""
    return Floats(k.lanes, [b.vxm.evaluate(Op("sub", x, b.home(f"centre.{node.where}.{c}")))
                            for c, x in enumerate(k.vecs)])


@scoped
def merge(b: Build, parts: list[Vec], lanes: list[int]) -> Vec:
    """One vector from many, each giving only its own head's lanes."""
    masked: list[Op | Vec] = [Op("mask", p, b.mask(b.heads.mask(lane))) for p, lane in zip(parts, lanes, strict=True)]
    while len(masked) > 1:
        pieces = [masked[i : i + 4] for i in range(0, len(masked), 4)]
        masked = [b.vxm.evaluate(tree) if isinstance(tree := chain("add_mod", p), Op) else tree for p in pieces]
    only = masked[0]
    return b.vxm.evaluate(only) if isinstance(only, Op) else only


@scoped
def _sinks(b: Build, node: Node, heads: list[Head]) -> list[list[Vec]]:
    """[head]: its sink in every lane, where there is one."""
    if "sinks" not in node.params:
        return [[] for _ in heads]
    return [[b.home(f"sinks.{node.where}.{h.vector * b.heads.group + h.member}.{h.lane}")] for h in heads]


@scoped
def _query_codes(b: Build, q: Floats, softmax_scale: float, scale: Vec | None) -> tuple[list[Op], Vec]:
    """Two-plane codes of all query vectors under one scale, and that scale times the softmax's."""
    factor = scale or scale_of(amax(b, q.parts), INV_WIDE)
    inverse, out = b.vxm.results([Want(reciprocal(factor)), Want(Op("mul", factor, softmax_scale))])
    return [code_of(v, inverse, WIDE_MAX) for v in q.vecs], out


@scoped
def _scores(b: Build, heads: list[Head], coded: Mapping[int, tuple[list[Op], Vec]], rows: cache.Rows, side: int,
            window: int) -> list[list[Scored]]:
    """[head][block]: exact q·k on the MXM, then scales, the mask of positions the query does not see, the maximum."""
    planes = []
    for head in heads:
        query = coded[head.place][0][head.vector * b.heads.group + head.member]
        own = b.mask(b.heads.mask(head.lane))
        low, high = b.vxm.results([Want(Op("mask", code, own), side=side) for code in (query, above(query))])
        planes.append((low.plane(0), high.plane(1)))
    out: list[list[Scored]] = [[] for _ in heads]
    for block in range(b.blocks):
        for i, score in enumerate(_block_scores(b, heads, planes, coded, rows, block, side, window)):
            top = b.lane_max(score, "max", many=len(heads) * b.blocks)
            out[i].append(Scored(score, b.vxm.evaluate(top)))
    return out


@scoped
def _block_scores(b: Build, heads: list[Head], planes: list[tuple[Vec, Vec]],
                  coded: Mapping[int, tuple[list[Op], Vec]], rows: cache.Rows, block: int, side: int,
                  window: int) -> list[Vec]:
    """[head]: scores of one block."""
    out = []
    for head, dot in zip(heads, _dots(b, planes, rows, block, side), strict=True):
        scaled = Op("mul", Op("mul", dot, coded[head.place][1]), rows.scale(b, head.kv_head, block))
        bias = b.host_row(seen_row("bias", block, window), place=head.place)
        out.extend(b.vxm.sides([Op("add", scaled, bias)]))
    return out


def _request(b: Build, side: int) -> Guide | None:
    """The map of the token's request, on the way inward in a hemisphere; None where there is one request."""
    if b.layout.requests > 1 and side not in b.requests:
        group, homes = b.asm.group_slices(2 * b.chip.groups - 1 if side else 0), b.layout.homes
        homes.keep(f"host.request.edge{side}", Source("zeros"), group[:1])
        names = [name for name in homes.homes if name.startswith("kv.")]
        b.requests[side] = Guide(b.asm, b.home(f"host.request.edge{side}"), ends(b, names)[side])
    return b.requests.get(side)


def _dots(b: Build, queries: list[tuple[Vec, Vec]], rows: cache.Rows, block: int, side: int) -> list[Op]:
    """[head]: q·k of one block as fp32; the products of byte planes are exact int32 and meet as ``scores`` says."""
    sums: list[list[tuple[Operand, Operand]]] = []  # by plane of K: per head (low, high) plane of q
    for k_plane in range(len(rows.planes)):
        plane = b.mxm.pick(side)
        first, count = rows.vectors(k_plane, block, 0), tp.BLOCK // b.chip.weight_streams
        guide = _request(b, side)
        if guide:
            b.mxm.load_bank(plane, first, count, guide, b.layout.requests, steady=False)
        else:
            b.mxm.load(plane, 0, first, count)
        b.mxm.install(plane)
        sums.append([_both(b, plane, pair, direct=len(rows.planes) == 1) for pair in queries])
    if len(sums) == 1:
        return [Op("add", Op("mul", Op("to_float", high), 256.0), Op("to_float", low)) for low, high in sums[0]]
    out = []
    for (ll, hl), (lh, hh) in zip(*sums, strict=True):
        mid = Op("mul", Op("to_float", Op("add_mod", hl, lh)), 256.0)
        out.append(Op("add", Op("add", Op("mul", Op("to_float", hh), 65536.0), mid), Op("to_float", ll)))
    return out


def _both(b: Build, plane: Plane, pair: tuple[Vec, Vec], *, direct: bool) -> tuple[Operand, Operand]:
    """Sums of both planes of one row with the installed tile; ``direct``: straight from the MXM, to be read next."""
    low, high = (b.mxm.sums(plane, row, b.mxm.new_slot(plane), clear=True) for row in pair)
    return (low, high) if direct else (low.kept(), high.kept())


@scoped
def _weighted(b: Build, heads: list[Head], scored: list[list[Scored]], rows: cache.Rows, side: int,
              window: int, sinks: list[list[Vec]]) -> list[Vec]:
    """[head]: the weighted sum of V, in the lanes of the head (other lanes hold other heads' V: not meant)."""
    tops = [b.vxm.evaluate(tree) if isinstance(tree := chain("max", [*(s.top for s in blocks), *sink]), Op) else tree
            for blocks, sink in zip(scored, sinks, strict=True)]
    weights: list[list[tuple[Vec, Vec]]] = [[] for _ in heads]
    exps: list[list[tuple[Vec, Vec]]] = [[] for _ in heads]
    v_tops: dict[tuple[int, int, int], Vec] = {}
    for block in range(b.blocks):
        for i, head in enumerate(heads):
            valid = b.host_row(seen_row("valid", block, window), place=head.place)
            scale = rows.scale(b, head.kv_head, block)
            key = (head.place, head.kv_head, block)
            if key not in v_tops:
                v_tops[key] = _v_top(b, scale, valid)
            s = scored[i][block]
            e = Op("mul", Op("exp", Op("sub", s.score, s.top)), valid)
            share = Op("mul", scale, reciprocal(v_tops[key]))
            own, whole = _planes(b, [Op("mul", Op("mul", e, share), ONE), Op("mul", e, ONE)])
            weights[i].append(own)
            exps[i].append(whole)
    totals = _totals(b, exps)
    products = _products(b, weights, rows, side)
    out = []
    for i, head in enumerate(heads):
        num: Vec | float = 0.0
        den: Vec | float = 0.0
        for sink in sinks[i]:
            den = b.vxm.evaluate(Op("mul", Op("exp", Op("sub", sink, tops[i])), ONE))
        for block in range(b.blocks):
            alpha = b.vxm.evaluate(Op("exp", Op("sub", scored[i][block].top, tops[i])))
            term = Op("mul", products[i][block], Op("mul", alpha, v_tops[head.place, head.kv_head, block]))
            num = b.vxm.evaluate(Op("add", term, num))
            den = b.vxm.evaluate(Op("add", Op("mul", totals[i][block], alpha), den))
        out.append(b.vxm.evaluate(Op("mul", num, reciprocal(den))))
    return out


@scoped
def _v_top(b: Build, scale: Vec, valid: Vec) -> Vec:
    """The block's largest V scale over the positions written, at least the floor, in every lane."""
    many = b.blocks * b.heads.per_vector
    return b.vxm.evaluate(at_least_floor(b.lane_max(Op("mul", scale, valid), "max", many=many)))


@scoped
def _planes(b: Build, trees: Sequence[Op]) -> list[tuple[Vec, Vec]]:
    """(low, high) byte planes of round(x) for each x."""
    codes = [Op("to_int", x) for x in trees]
    made = b.vxm.sides([word for code in codes for word in (code, above(code))])
    return [(low.plane(0), high.plane(1)) for low, high in zip(made[::2], made[1::2], strict=True)]


@scoped
def _totals(b: Build, rows: list[list[tuple[Vec, Vec]]]) -> list[list[Vec]]:
    """[head][block]: Σ round(e * 32512) over lanes, in every lane as fp32: a product with a tile of ones."""
    plane = lane_sum.ones(b)
    return [[b.vxm.evaluate(_sum(b, plane, pair)) for pair in blocks] for blocks in rows]


def _sum(b: Build, plane: Plane, pair: tuple[Vec, Vec]) -> Op:
    """256 * Σ high + Σ low as fp32."""
    return Op("to_float", lane_sum.total(b, plane, [pair]))


@scoped
def _products(b: Build, weights: list[list[tuple[Vec, Vec]]], rows: cache.Rows, side: int) -> list[list[Vec]]:
    """[head][block]: exact Σ weight * V over the block's positions, as fp32; lanes are V's channels."""
    out: list[list[Vec]] = [[] for _ in weights]
    for block in range(b.blocks):
        sums: list[list[Vec]] = [[] for _ in weights]  # [head]: by plane of V
        for v_plane in range(len(rows.planes)):
            plane = b.mxm.pick(side)
            for group in range(rows.groups):
                b.mxm.load_transposed(plane, group, rows.vectors(v_plane, block, group), _request(b, side))
            b.mxm.install(plane)
            for i, blocks in enumerate(weights):
                sums[i].append(b.vxm.evaluate(_sum(b, plane, blocks[block])))
        for i, (low, *high) in enumerate(sums):
            out[i].append(b.vxm.evaluate(Op("add", Op("mul", high[0], 256.0), low)) if high else low)
    return out
