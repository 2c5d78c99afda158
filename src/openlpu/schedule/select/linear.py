"""Codes in, fp32 out: weight tiles through the MXM, scales on the VXM.  See ``linear`` in arch/truepoint/codes.py."""

from __future__ import annotations

from openlpu.graph.ir import Node
from openlpu.place.lanes import Lanes
from openlpu.schedule.expression import Op
from openlpu.schedule.select.build import Build, Coded, Floats
from openlpu.schedule.values import Vec


def linear(b: Build, node: Node, q: Coded, out: Lanes) -> Floats:
    """One fp32 vector per output vector: sums over input vectors stay in an accumulator."""
    vecs = []
    for j in range(out.vectors):
        low, high = sums(b, node, q, j)
        total = Op("to_float", low)
        if high is not None:
            total = Op("add", Op("mul", Op("to_float", high), 256.0), total)
        y = Op("mul", Op("mul", total, q.scale), b.home(f"scale.{node.where}.{j}"))
        if "bias" in node.params:
            y = Op("add", y, b.home(f"bias.{node.where}.{j}"))
        vecs.append(b.vxm.evaluate(y))
    return Floats(out, vecs)


def sums(b: Build, node: Node, q: Coded, j: int) -> tuple[Vec, Vec | None]:
    """Exact (Σ low, Σ high) of output vector j; Σ high is None where no input channel is wide."""
    m = b.mxm
    plane = m.planes[b.layout.plane[f"{node.where}.{j}"]]
    low_slot = m.new_slot(plane)
    wide = [i for i, high in enumerate(q.high) if high is not None]
    high_slot = m.new_slot(plane) if wide else 0
    low = high = None
    for i in range(q.lanes.vectors):
        home = b.layout.homes.homes[f"weights.{node.where}.{j}.{i}"]
        for group in range(home.count):
            m.load(plane, group, Vec(home.slices, home.address + group, 0, (0,) * len(home.slices)))
        m.install(plane)
        low = m.activate(plane, q.low[i], low_slot, clear=i == 0, emit=i == q.lanes.vectors - 1)
        above = q.high[i]
        if above is not None:
            high = m.activate(plane, above, high_slot, clear=i == wide[0], emit=i == wide[-1])
    assert low is not None, "the last activation emits"
    return low, high
