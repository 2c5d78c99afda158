"""q, k, v of a chunk's tokens in, attention output out.

KV rows are scattered into the cache; then two MXM products per block, softmax on the VXM.

The arithmetic is ``attend`` in arch/truepoint/attention.py, step for step.  Positions lie on lanes: a block of 256
positions is one vector of scores.  K rows are weight rows as they are; V rows pass the SXM's transposer, which is why
a token's V goes into one superlane (its position / 16) of one slice (its position % 16).

The rows of all tokens are written first; then every tile of K or V is installed once, and the query heads of all tokens
pass.  A row of flags for each token says which positions it sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openlpu.arch.truepoint import attention as tp
from openlpu.arch.truepoint.codes import INV_WIDE
from openlpu.graph.ir import Node
from openlpu.schedule.expression import Later, Op, Operand
from openlpu.schedule.select import cache
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.select.codes import above, amax, code_of, everywhere, narrow_span, reciprocal, scale_of
from openlpu.schedule.select.weighted import Flags, Head, Scored, reach, request, weighted
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.units.mxm import Plane
from openlpu.schedule.units.vxm import Want
from openlpu.schedule.values import Vec

CROWD = 32  # maxima, beyond which the SXMs should not wait for what reads them
FUSED, BESIDE = 4, 2  # heads whose codes are made at once, and how often in one go with their scale


@dataclass(frozen=True)
class Queries:
    """A token's queries: of each head both planes of its codes, zero in the lanes of other heads; and the scale of all,
    times the softmax's."""

    planes: dict[Head, tuple[Vec, Vec]]
    scale: Vec


def attention(b: Build, node: Node, q: Mapping[int, Floats], k: Sequence[Floats], v: Sequence[Floats],
              scale: Mapping[int, Vec]) -> dict[int, Floats]:
    """The output over the lanes of the query layout, for each place that ``q`` has; ``scale``: that of all chips' query
    codes, by place, where it is known."""
    side, bits = b.layout.side[node.where], node.attrs["kv_bits"]
    vectors = range(k[0].lanes.vectors)
    if "centre" in node.params:
        k = [_centred(b, node, x) for x in k]
    # What scores wait for comes first: K's codes, which become weights, then the queries'.
    keys = [[cache.coded(b, x.parts[c], bits, side, transposed=False) for x in k] for c in vectors]
    heads, queries = _queries(b, node, q, scale)
    twice = _twice(b, node)
    k_rows = [cache.write(b, f"{node.where}.k", keys[c], c, side, transposed=False, turned=twice) for c in vectors]
    out: dict[int, list[Vec | Later]] = {place: [] for place in q}
    for c in vectors:
        codes = [cache.coded(b, x.parts[c], bits, side, transposed=True) for x in v]
        v_rows = cache.write(b, f"{node.where}.v", codes, c, side, transposed=True)
        _outputs(b, node, heads[c], queries, k_rows[c], v_rows, out)
    return {place: Floats(q[place].lanes, vecs) for place, vecs in out.items()}


def _twice(b: Build, node: Node) -> bool:
    """Whether planes side by side take a block's K, one with the halves exchanged: then the larger of two scores of a
    lane is known before any lane is turned."""
    return (b.blocks == 1 and b.layout.requests == 1 and node.attrs["kv_bits"] <= 8 and "sinks" not in node.params
            and b.chip.mxm_planes_per_hemisphere > 1)


def remember(b: Build, node: Node, k: Sequence[Floats], v: Sequence[Floats]) -> None:
    """Write keys and values of a chunk's tokens for a later sweep."""
    side, bits = b.layout.side[node.where], node.attrs["kv_bits"]
    for word, tokens in (("k", k), ("v", v)):
        for c in range(tokens[0].lanes.vectors):
            codes = [cache.coded(b, x.vecs[c], bits, side, transposed=word == "v") for x in tokens]
            rows = cache.write(b, f"{node.where}.{word}", codes, c, side, transposed=word == "v")
            b.last_write = max(b.last_write, *(x.ready for x in (*rows.planes, *rows.scales.values())))


def attend(b: Build, node: Node, q: Mapping[int, Floats], scale: Mapping[int, Vec]) -> dict[int, Floats]:
    """The output for each place, of keys and values that the sweep before wrote; ``scale`` as in :func:`attention`."""
    bits, (heads, queries) = node.attrs["kv_bits"], _queries(b, node, q, scale)
    out: dict[int, list[Vec | Later]] = {place: [] for place in q}
    for c, own in enumerate(heads):
        k_rows, v_rows = (cache.stored(b, f"{node.where}.{word}", c, bits, transposed=word == "v") for word in "kv")
        _outputs(b, node, own, queries, k_rows, v_rows, out)
    return {place: Floats(q[place].lanes, vecs) for place, vecs in out.items()}


def _queries(b: Build, node: Node, q: Mapping[int, Floats], scale: Mapping[int, Vec]
             ) -> tuple[list[list[Head]], dict[int, Queries]]:
    """The heads of each kv vector, and the codes of all by place."""
    heads = [[Head(place, g, c, lane, j) for place in q for j in range(b.heads.group)
              for g, lane in b.heads.heads_in(c)] for c in range(b.heads.kv.vectors)]
    softmax_scale, side = float(np.float32(node.attrs["softmax_scale"])), b.layout.side[node.where]
    return heads, {place: _query_codes(b, x, softmax_scale, scale.get(place),
                                       [head for own in heads for head in own if head.place == place], side)
                   for place, x in q.items()}


def _outputs(b: Build, node: Node, heads: list[Head], queries: Mapping[int, Queries], k_rows: cache.Rows,
             v_rows: cache.Rows, out: dict[int, list[Vec | Later]]) -> None:
    """The output of a kv vector's heads, put behind those of the vectors before it."""
    side, window = b.layout.side[node.where], node.attrs.get("window", 0)
    flags = Flags(window if window < b.layout.context else 0, node.attrs.get("causal", True))
    alone = b.blocks == 1 and "sinks" not in node.params  # else maxima of blocks meet in the lanes of heads
    span = tp.BLOCK if alone else reach(b, [head.lane for head in heads])
    scored = _scores(b, heads, queries, k_rows, side, flags, span)
    for (place, _), vec in weighted(b, heads, scored, v_rows, side, flags, _sinks(b, node, heads)).items():
        out[place].append(vec)


def _centred(b: Build, node: Node, k: Floats) -> Floats:
    """K without what all its rows have in common."""
    return Floats(k.lanes, [b.vxm.evaluate(Op("sub", x, b.home(f"centre.{node.where}.{c}")))
                            for c, x in enumerate(k.vecs)])


@scoped
def _sinks(b: Build, node: Node, heads: list[Head]) -> list[list[Vec]]:
    """[head]: its sink in every lane, where there is one."""
    if "sinks" not in node.params:
        return [[] for _ in heads]
    return [[b.home(f"sinks.{node.where}.{h.vector * b.heads.group + h.member}.{h.lane}")] for h in heads]


@scoped
def _query_codes(b: Build, q: Floats, softmax_scale: float, scale: Vec | None, heads: Sequence[Head],
                 side: int) -> Queries:
    """Two-plane codes of all query vectors under one scale, each head's in its lanes alone, and that scale times the
    softmax's."""
    span = 0 if scale else narrow_span(b, q.lanes)
    factor = scale or scale_of(amax(b, q.parts, span), INV_WIDE)
    parts = [(q.parts[h.vector * b.heads.group + h.member], b.mask(b.heads.mask(h.lane))) for h in heads]
    inverse: Op | Vec = reciprocal(factor)
    total = factor if span and isinstance(factor, Op) else Op("mul", factor, softmax_scale)
    if len(heads) > FUSED * BESIDE:
        inverse, *totals = b.vxm.results([Want(inverse), *_both_sides(total)])
        made = [vec for x, mask in parts for vec in b.vxm.results(_code_planes(Op("mask", x, mask), inverse, side))]
    else:
        wants = []
        for i, (x, mask) in enumerate(parts):
            if i and i % FUSED == 0:  # both their planes are written before those of the next
                inverse = Op("pass", Op("pass", inverse))
            wants += _code_planes(Op("mask", x, mask), inverse, side)
        *made, west, east = b.vxm.results([*wants, *_both_sides(total)])
        totals = [west, east]
    scale = replace(totals[0], twin=totals[1])
    planes = [(low.plane(0), high.plane(1)) for low, high in zip(made[::2], made[1::2], strict=True)]
    if span:
        scale = b.vxm.evaluate(Op("mul", everywhere(b, scale, span), softmax_scale))
    return Queries(dict(zip(heads, planes, strict=True)), scale)


def _both_sides(op: Op) -> list[Want]:
    """A result in both hemispheres."""
    return [Want(op, side=0), Want(op, side=1)]


def _code_planes(x: Op, inverse: Op | Vec, side: int) -> list[Want]:
    code = code_of(x, inverse)
    return [Want(code, side=side), Want(above(code), side=side)]


@scoped
def _scores(b: Build, heads: list[Head], queries: Mapping[int, Queries], rows: cache.Rows, side: int,
            flags: Flags, span: int) -> list[list[Scored]]:
    """[head][block]: exact q·k on the MXM, then scales, the mask of positions the query does not see, the maximum
    (``span``: only for the lanes of positions)."""
    out: list[list[Scored]] = [[] for _ in heads]
    for block in range(b.blocks):
        for i, (score, seen) in enumerate(_block_scores(b, heads, queries, rows, block, side, flags)):
            top = b.lane_max(seen, "max", span=span // 2 if rows.turned else span, many=len(heads) * b.blocks)
            out[i].append(Scored(score, top if len(heads) * b.blocks <= CROWD else b.vxm.evaluate(top)))
    return out


@scoped
def _block_scores(b: Build, heads: list[Head], queries: Mapping[int, Queries], rows: cache.Rows, block: int,
                  side: int, flags: Flags) -> list[tuple[Vec, Vec]]:
    """[head]: scores of one block, and what has the same maximum: they, or where planes side by side take K, the larger
    of each two half a block apart."""
    out = []
    planes = [queries[head.place].planes[head] for head in heads]
    dots = _dots_twice(b, planes, rows, block, side) if rows.turned else _dots(b, planes, rows, block, side)
    for head, own in zip(heads, dots, strict=True):
        scales = rows.scale(b, head.kv_head, block), rows.turned.get(head.kv_head)
        found = [Op("add", Op("mul", Op("mul", dot, queries[head.place].scale), scale),
                    flags.row(b, "bias", block, head, turned=i > 0))
                 for i, (dot, scale) in enumerate(zip(own, scales, strict=False)) if scale]
        if len(found) == 1:
            (score,) = b.vxm.sides(found)
            out.append((score, score))
        else:
            # One two cycles behind the other, so that both planes do not want the same row in the same cycle.
            larger, score = b.vxm.sides([Op("max", Op("pass", found[0]), found[1])], found[:1])
            out.append((score, larger))
    return out


def _dots_twice(b: Build, queries: list[tuple[Vec, Vec]], rows: cache.Rows, block: int, side: int
                ) -> Iterator[tuple[Op, Op]]:
    """[head]: like :meth:`_dots`, of K with one byte plane, and again with the halves of the block exchanged."""
    first, second = b.mxm.pick_some(side, 2)
    b.mxm.load_twice((first, second), rows.vectors(0, block, 0), tp.BLOCK // b.chip.weight_streams)
    for plane in (first, second):
        b.mxm.install(plane)
    for pair in queries:
        yield _dot(_both(b, first, pair, direct=True)), _dot(_both(b, second, pair, direct=True))


def _dot(sums: tuple[Operand, Operand]) -> Op:
    """What low and high planes of a query's codes make together."""
    low, high = sums
    return Op("add", Op("mul", Op("to_float", high), 256.0), Op("to_float", low))


def _dots(b: Build, queries: list[tuple[Vec, Vec]], rows: cache.Rows, block: int, side: int
          ) -> list[tuple[Op]]:
    """[head]: q·k of one block as fp32; the products of byte planes are exact int32 and meet as ``scores`` says."""
    sums: list[list[tuple[Operand, Operand]]] = []  # by plane of K: per head (low, high) plane of q
    for k_plane in range(len(rows.planes)):
        plane = b.mxm.pick(side)
        first, count = rows.vectors(k_plane, block, 0), tp.BLOCK // b.chip.weight_streams
        guide = request(b, side)
        if guide:
            b.mxm.load_bank(plane, first, count, guide, b.layout.requests, steady=False)
        else:
            b.mxm.load(plane, 0, first, count)
        b.mxm.install(plane)
        sums.append([_both(b, plane, pair, direct=len(rows.planes) == 1) for pair in queries])
    if len(sums) == 1:
        return [(_dot(pair),) for pair in sums[0]]
    out = []
    for (ll, hl), (lh, hh) in zip(*sums, strict=True):
        mid = Op("mul", Op("to_float", Op("add_mod", hl, lh)), 256.0)
        out.append((Op("add", Op("add", Op("mul", Op("to_float", hh), 65536.0), mid), Op("to_float", ll)),))
    return out


def _both(b: Build, plane: Plane, pair: tuple[Vec, Vec], *, direct: bool) -> tuple[Operand, Operand]:
    """Sums of both planes of one row with the installed tile; ``direct``: straight from the MXM, to be read next."""
    low, high = (b.mxm.sums(plane, row, b.mxm.new_slot(plane), clear=True) for row in pair)
    return (low, high) if direct else (low.kept(), high.kept())
