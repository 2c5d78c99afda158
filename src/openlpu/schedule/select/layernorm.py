"""A vector in, less its mean and over its deviation, times a gain and with a bias, out.  See ``layernorm`` in
arch/truepoint/codes.py.

A tile of ones sums the planes of codes of 16 bits and of their products, all in one go.
"""

from __future__ import annotations

import numpy as np

from openlpu.graph.ir import Node
from openlpu.schedule.expression import Op
from openlpu.schedule.select import codes, lane_sum
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.units.vxm import Want
from openlpu.schedule.values import Vec


def layernorm(b: Build, node: Node, x: Floats) -> Floats:
    """((x - mean) * factor) * gain + bias."""
    mean, factor = _moments(b, node, x)
    vecs = []
    for v, vec in enumerate(x.vecs):
        scaled = Op("mul", Op("mul", Op("sub", vec, mean), factor), b.home(f"gain.{node.where}.{v}"))
        vecs.append(b.vxm.evaluate(Op("add", scaled, b.home(f"bias.{node.where}.{v}"))))
    return Floats(x.lanes, vecs)


@scoped
def _moments(b: Build, node: Node, x: Floats) -> tuple[Vec, Vec]:
    """Mean and 1 / deviation, in every lane."""
    size = b.graph.values[node.output].size
    part = codes.float_of(np.float32(1 / size))
    q = codes.quantize(b, x, size, size, squared=True)
    pairs = [(low, high) for low, high in zip(q.low, q.high, strict=True) if high]
    words = [*(q.squares or codes.stored_products(b, q)), pairs]
    plane = lane_sum.ones(b)
    ll, hh, hl, total = (b.vxm.evaluate(Op("to_float", lane_sum.total(b, plane, own))) for own in words)
    mean = b.vxm.evaluate(Op("mul", total, part))
    square = Op("mul", codes.squares(hh, hl, ll), part)
    variance = Op("max", Op("sub", square, Op("mul", mean, mean)), 0.0)
    spread = Op("add", Op("mul", variance, Op("mul", q.scale, q.scale)), float(np.float32(node.attrs["eps"])))
    away, factor = b.vxm.results([Want(Op("mul", mean, q.scale)), Want(Op("rsqrt", spread))])
    return away, factor
