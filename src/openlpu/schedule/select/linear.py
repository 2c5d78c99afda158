"""Codes in, fp32 out: weight tiles through the MXM, scales on the VXM.  See ``linear`` in arch/truepoint/codes.py."""

from __future__ import annotations

from openlpu.graph.ir import Node
from openlpu.partition.experts import bank
from openlpu.place.lanes import Lanes
from openlpu.place.layout import steady
from openlpu.schedule.expression import Op
from openlpu.schedule.select import experts
from openlpu.schedule.select.build import Build, Coded, Floats
from openlpu.schedule.values import Vec

RUN, FETCH = 16, 2  # after so many tiles in a row, cycles in which the plane's streams can bring it instructions


def linear(b: Build, node: Node, q: Coded, out: Lanes) -> Floats:
    """One fp32 vector per output vector: sums over input vectors stay in an accumulator."""
    vecs = []
    for j in range(out.vectors):
        low, high = sums(b, node, q, j)
        total = Op("to_float", low)
        if high is not None:
            total = Op("add", Op("mul", Op("to_float", high), 256.0), total)
        y = Op("mul", Op("mul", total, q.scale), experts.row(b, node, "scale", j))
        if "bias" in node.params:
            y = Op("add", y, experts.row(b, node, "bias", j))
        vecs.append(b.vxm.evaluate(y))
    return Floats(out, vecs)


def sums(b: Build, node: Node, q: Coded, j: int) -> tuple[Vec, Vec | None]:
    """Exact (Σ low, Σ high) of output vector j; Σ high is None where no input channel is wide.

    Where loads are the long part, the next tile is loaded before the activations of this one find their cycle.
    """
    m, homes = b.mxm, b.layout.homes.homes
    plane = m.planes[b.layout.plane[f"{node.where}.{j}"]]
    where = bank(node) or node.where
    tiles = [(i, home) for i in range(q.lanes.vectors) if (home := homes.get(f"weights.{where}.{j}.{i}"))]
    wide = [i for i, _ in tiles if q.high[i] is not None]
    low_slot = m.new_slot(plane)
    high_slot = m.new_slot(plane) if wide else 0
    low = high = None
    ahead = steady(len(tiles) * b.lanes(node.output).vectors, b.chip)

    def activate(i: int) -> None:
        nonlocal low, high
        last = i == tiles[-1][0]
        low = m.activate(plane, q.low[i], low_slot, clear=i == tiles[0][0], emit=last, steady=ahead and not last)
        if (above := q.high[i]) is not None:
            ends = i == wide[-1]
            out = m.activate(plane, above, high_slot, clear=i == wide[0], emit=ends, steady=ahead and not last)
            high = out if ends else None

    for k, (i, home) in enumerate(tiles):
        rows = Vec(home.slices, home.address, 0, (0,) * len(home.slices))
        if bank(node):
            guide = experts.guide(b, node, plane.hemisphere)
            m.load_bank(plane, rows, home.count, guide, node.attrs["experts"], steady=ahead)
        else:
            m.load(plane, 0, rows, home.count, steady=ahead)
        if ahead and k:
            activate(tiles[k - 1][0])
        m.install(plane, FETCH if ahead and k % RUN == RUN - 1 else 0)
        if not ahead:
            activate(i)
    if ahead:
        activate(tiles[-1][0])
    assert low is not None, "the last activation emits"
    return low, high
