"""Codes in, fp32 out: weight tiles through the MXM, scales on the VXM.  See ``linear`` in arch/truepoint/codes.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openlpu.graph.ir import Node
from openlpu.place.emplace import Source
from openlpu.place.lanes import Lanes
from openlpu.schedule.expression import Op
from openlpu.schedule.select.build import Build, Coded, Floats
from openlpu.schedule.units.mxm import Plane
from openlpu.schedule.values import Vec

I32 = NDArray[np.int32]


def linear(b: Build, node: Node, q: Coded, out: Lanes) -> Floats:
    """One fp32 vector per output vector: sums over input vectors stay in an accumulator."""
    vecs = []
    for j in range(out.vectors):
        plane = b.mxm.pick()
        low, high = sums(b, node, q, plane, out.channel[j])
        total = Op("to_float", low)
        if high is not None:
            total = Op("add", Op("mul", Op("to_float", high), 256.0), total)
        scale = b.parameter(f"scales.{node.where}.{j}", node.params["scale"], out.channel[j])
        y = Op("mul", Op("mul", total, q.scale), scale)
        if "bias" in node.params:
            y = Op("add", y, b.parameter(f"scales.{node.where}.bias{j}", node.params["bias"], out.channel[j]))
        vecs.append(b.vxm.evaluate(y))
    return Floats(out, vecs)


def sums(b: Build, node: Node, q: Coded, plane: Plane, rows: I32) -> tuple[Vec, Vec | None]:
    """Exact (Σ low, Σ high) of one output vector; Σ high is None where no input channel is wide."""
    m = b.mxm
    low_slot = m.new_slot(plane)
    wide = [i for i, high in enumerate(q.high) if high is not None]
    high_slot = m.new_slot(plane) if wide else 0
    low = high = None
    for i in range(q.lanes.vectors):
        for group, vec in enumerate(tile(b, node, plane, rows, q.lanes.channel[i], f"{i}")):
            m.load(plane, group, vec)
        m.install(plane)
        low = m.activate(plane, q.low[i], low_slot, clear=i == 0, emit=i == q.lanes.vectors - 1)
        above = q.high[i]
        if above is not None:
            high = m.activate(plane, above, high_slot, clear=i == wide[0], emit=i == wide[-1])
    assert low is not None, "the last activation emits"
    return low, high


def tile(b: Build, node: Node, plane: Plane, rows: I32, cols: I32, name: str) -> list[Vec]:
    """Weight rows ``rows`` by columns ``cols`` in SRAM of the plane's hemisphere, 16 rows a vector group."""
    width = b.chip.weight_streams
    groups = -(-(int(np.flatnonzero(rows >= 0)[-1]) + 1) // width)
    source = Source("codes", node.params["codes"], rows[: groups * width], cols)
    first = int(rows[rows >= 0][0])
    return b.asm.keep_tile(f"weights.{node.where}.{first}.{name}", source, b.tile_slices(plane.hemisphere), groups)
