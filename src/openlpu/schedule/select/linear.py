"""Codes in, fp32 out: weight tiles through the MXM, scales on the VXM.  See ``linear`` in arch/truepoint/codes.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from openlpu.graph.ir import Node
from openlpu.partition.experts import bank
from openlpu.place.homes import Home
from openlpu.place.lanes import Lanes
from openlpu.place.layout import steady
from openlpu.place.partner import Order, beside
from openlpu.schedule.expression import Arrival, Later, Op, Operand, comes
from openlpu.schedule.select import experts
from openlpu.schedule.select.build import Build, Floats, Sums, resident
from openlpu.schedule.select.codes import chain, stored
from openlpu.schedule.units.mxm import Plane
from openlpu.schedule.values import Vec

HELD = 2  # tiles that a plane has ready: in the array, and in the buffer
RUN, FETCH = 16, 2  # after so many tiles in a row, cycles in which the plane's streams can bring it instructions


def linear(b: Build, node: Node, places: Sequence[int], out: Lanes) -> list[Floats]:
    """For the token of each place one fp32 vector per output vector: sums over input vectors stay in an accumulator.

    Where the scale comes later than they do, they wait in SRAM, so that the next tile need not.
    """
    if bank(node) and len(places) > 1:  # each token has experts of its own
        return [one for place in places for one in linear(b, node, [place], out)]
    tokens = [b.coded[node.inputs[0], place] for place in places]
    parts: list[list[Later]] = [[] for _ in tokens]
    partners: list[list[Later]] = [[] for _ in tokens]
    for j in range(out.vectors):
        plane = b.mxm.planes[b.layout.plane[f"{node.where}.{j}"]]
        ways: list[tuple[list[list[Later]], Order | None]] = [(parts, None)]
        if partner := b.layout.partners.get(node.where):
            ways.append((partners, partner))
        for made, order in ways:
            for i, (low, high) in enumerate(sums(b, node, places, j, order)):
                scale, total = tokens[i].scale, _total(low, high)
                late = isinstance(scale, Later) and scale.vec is None
                row = f"{j}.partner" if order else f"{j}"
                y = b.vxm.later(_scaled(b, node, row, places[i], b.vxm.evaluate(total) if late else total, scale))
                made[i].append(y if late else b.mxm.awaited(plane, y))
    b.partners |= {(node.output, place): own for place, own in zip(places, partners, strict=True) if own}
    return [Floats(out, own) for own in parts]


def _total(low: Operand, high: Operand | None) -> Op:
    """Σhigh * 256 + Σlow."""
    total = Op("to_float", low)
    return total if high is None else Op("add", Op("mul", Op("to_float", high), 256.0), total)


def _scaled(b: Build, node: Node, j: str, place: int, total: Op | Vec, scale: Vec | Later) -> Op:
    """(total * scale) * row_scale (+ bias) of output vector j."""
    y = Op("mul", Op("mul", total, scale), experts.row(b, node, "scale", j, place))
    return Op("add", y, experts.row(b, node, "bias", j, place)) if "bias" in node.params else y


def partial(b: Build, node: Node, places: Sequence[int]) -> list[list[Sums]]:
    """Sums over a chip's own columns, of all channels slot by slot, for the token of each place.

    Slots take turns, so that all links have something to carry; slot 0 is what the chip keeps and comes last, while the
    others travel.
    """
    if bank(node) and len(places) > 1:
        return [one for place in places for one in partial(b, node, [place])]
    count, made = b.lanes(node.output).vectors, dict[int, list[Sums]]()
    per = count // b.stage.tensor
    for j in sorted(range(count), key=lambda j: (j < per, j % per)):
        made[j] = [Sums(_kept(low), None if high is None else _kept(high)) for low, high in sums(b, node, places, j)]
    return [[made[j][i] for j in range(count)] for i in range(len(places))]


def _kept(sum: Operand) -> Vec:
    """A sum in SRAM."""
    assert isinstance(sum, Vec) or comes(sum), "sums come from the MXM"
    return sum if isinstance(sum, Vec) else sum.kept()


def total(b: Build, node: Node, place: int) -> Floats:
    """The sums of all chips, added up where they are wanted, and scaled."""
    out, scale, own = b.lanes(node.output), b.coded[node.inputs[-1], place].scale, b.sums[node.inputs[0], place]
    parts = []
    for j in range(out.vectors):
        slots = own[j :: out.vectors]
        low, high = (_reduced(b, [getattr(sum, word) for sum in slots]) for word in ("low", "high"))
        assert low is not None, "every vector has a low plane"
        parts.append(b.vxm.later(_scaled(b, node, f"{j}", place, _total(low, high), scale)))
    return Floats(out, parts)


def _reduced(b: Build, slots: Sequence[Vec | None]) -> Operand | None:
    """The exact sum over all chips of what lies in their slots for this one."""
    present = [vec for vec in slots if vec is not None]
    if not present:
        return None
    return chain("add_mod", b.c2c.reduce(present, lambda vecs: stored(b, chain("add_mod", vecs))))


@dataclass
class Row:
    """One plane of a token's codes on its way through the tiles: where its sum grows, and at last the sum."""

    codes: Sequence[Vec | None]  # by input vector
    slot: int
    tiles: list[int]  # input vectors it has, of those with a tile
    sum: Vec | Arrival | None = None


def sums(b: Build, node: Node, places: Sequence[int], j: int,
         order: Order | None = None) -> list[tuple[Operand, Operand | None]]:
    """Exact (Σ low, Σ high) of output vector j for each token; Σ high is None where no input channel is wide.  Those of
    a last tile come straight from the MXM, to be read next.  ``order``: those of RoPE's partners, on the plane beside.

    A few tiles, but more than a plane can hold, take turns with the plane beside.
    """
    homes, home, where = b.layout.homes.homes, b.layout.plane[f"{node.where}.{j}"], bank(node) or node.where
    tiles = [(i, tile) for i in range(b.coded[node.inputs[0], places[0]].lanes.vectors)
             if (tile := homes.get(f"weights.{where}.{j}.{i}"))]
    ahead, planes = steady(len(tiles) * b.lanes(node.output).vectors, b.chip), [home]
    scale = b.coded[node.inputs[0], places[0]].scale
    if order:
        planes = [beside(home, b.chip)]
    elif HELD < len(tiles) <= 2 * HELD and "scale" in node.params and not (ahead or bank(node)):
        planes = sorted({home, beside(home, b.chip)})
    if isinstance(scale, Later):  # which a product on one of them makes: that one is not to wait for
        planes = [plane for plane in planes if not b.mxm.awaits(plane, scale)] or [beside(planes[0], b.chip)]
    made = [_sums(b, node, places, j, b.mxm.planes[plane], tiles[k :: len(planes)], order, ahead=ahead)
            for k, plane in enumerate(planes)]
    return [(_joined(low), _joined(high) if any(high) else None)
            for low, high in (zip(*own, strict=True) for own in zip(*made, strict=True))]


def _joined(parts: Sequence[Vec | Arrival | None]) -> Operand:
    """The sum of those of several planes."""
    there = [x for x in parts if x is not None]
    tree: Operand = there[0]
    for part in there[1:]:
        tree = Op("add_mod", part, tree)
    return tree


def _sums(b: Build, node: Node, places: Sequence[int], j: int, plane: Plane, tiles: Sequence[tuple[int, Home]],
          order: Order | None, *, ahead: bool) -> list[tuple[Vec | Arrival, Vec | Arrival | None]]:
    """:func:`sums` of some tiles on one plane.

    A tile is installed once, and the codes of all tokens pass.  Where loads are the long part, the next tile is loaded
    before these find their cycles.
    """
    m, where = b.mxm, bank(node) or node.where
    tokens = [b.coded[node.inputs[0], place] for place in places]

    def row(codes: Sequence[Vec | None]) -> Row | None:
        own = [i for i, _ in tiles if codes[i] is not None]
        return Row(codes, m.new_slot(plane), own) if own else None

    pairs = [(row(q.low), row(q.high)) for q in tokens]

    def activate(i: int) -> None:
        for found in (row for pair in pairs for row in pair):
            if found and (vec := found.codes[i]):
                last, first = i == tiles[-1][0], i == found.tiles[0]
                found.sum = m.sums(plane, vec, found.slot, clear=first) if last and not ahead else m.activate(
                    plane, vec, found.slot, clear=first, emit=i == found.tiles[-1], steady=ahead and not last
                )

    for k, (i, home) in enumerate(tiles):
        if bank(node):
            experts.load(b, node, plane, f"weights.{where}.{j}.{i}", places[0], steady=ahead)
        else:
            _load(b, plane, home, order, steady=ahead)
        if ahead and k:
            activate(tiles[k - 1][0])
        m.install(plane, FETCH if ahead and k % RUN == RUN - 1 else 0)
        if not ahead:
            activate(i)
    if ahead:
        activate(tiles[-1][0])
    return [(_sum(low), high and _sum(high)) for low, high in pairs]


def _load(b: Build, plane: Plane, home: Home, order: Order | None, *, steady: bool) -> None:
    """Load a tile, in the order of its rows or another."""
    if order:
        home = replace(home, slices=tuple(home.slices[row] for row in order.rows))
    b.mxm.load(plane, 0, resident(home), home.count, steady=steady, order=order.groups if order else ())


def _sum(row: Row | None) -> Vec | Arrival:
    assert row and row.sum, "the last activation emits"
    return row.sum
