"""fp32 operators on vectors: embed, rope, silu_mul, add, mul."""

from __future__ import annotations

import numpy as np

from openlpu.graph.ir import Node
from openlpu.place.lanes import Lanes
from openlpu.schedule.expression import Op
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.values import Vec

MAP_SIDE = 0  # tables lie east, the address maps that reach them lie west: maps flow east


def embed(b: Build, node: Node, out: Lanes) -> Floats:
    """Codes of the token's row times the row's scale (times a gain per channel where there is one)."""
    token = b.host_row("token", 1, MAP_SIDE)
    scale = b.mem.gather(b.home("embedding.scale"), token)
    vecs = []
    for v in range(out.vectors):
        codes = b.mem.gather(b.home(f"embedding.codes.{v}"), token)
        x = Op("mul", Op("to_float", codes), scale)
        if "gain" in node.params:
            x = Op("mul", x, b.home(f"gain.{node.where}.{v}"))
        vecs.append(b.vxm.evaluate(x))
    return Floats(out, vecs)


def rope_row(b: Build) -> tuple[Vec, Vec]:
    """This position's cosine and signed sine over the lanes of heads side by side; gathered once a token."""
    position = b.host_row("position", 1, MAP_SIDE)
    return b.mem.gather(b.home("rope.cos"), position), b.mem.gather(b.home("rope.sin"), position)


def rope(b: Build, x: Floats, row: tuple[Vec, Vec]) -> Floats:
    """x * cos + partner * sin', where the partner is the other half's lane and sin' is negative on first halves."""
    heads, dim = b.heads, b.heads.dim
    lane = np.arange(b.chip.lanes, dtype=np.int32)
    swapped = lane - lane % dim + (lane % dim + dim // 2) % dim
    partner = b.lane_map(np.where(lane < heads.per_vector * dim, swapped, lane))
    vecs = [
        b.vxm.evaluate(Op("add", Op("mul", v, row[0]), Op("mul", b.sxm.permute(v, partner), row[1]))) for v in x.vecs
    ]
    return Floats(x.lanes, vecs)


def silu_mul(b: Build, gate: Floats, up: Floats) -> Floats:
    """(gate * 1/(1 + exp(-gate))) * up."""
    vecs = []
    for g, u in zip(gate.vecs, up.vecs, strict=True):
        root = Op("rsqrt", Op("add", Op("exp", Op("negate", g)), 1.0))
        vecs.append(b.vxm.evaluate(Op("mul", Op("mul", g, Op("mul", root, root)), u)))
    return Floats(gate.lanes, vecs)


def add(b: Build, x: Floats, y: Floats) -> Floats:
    """x + y."""
    return Floats(x.lanes, [b.vxm.evaluate(Op("add", p, q)) for p, q in zip(x.vecs, y.vecs, strict=True)])


def mul(b: Build, node: Node, x: Floats) -> Floats:
    """x times a gain per channel."""
    vecs = [b.vxm.evaluate(Op("mul", vec, b.home(f"gain.{node.where}.{v}"))) for v, vec in enumerate(x.vecs)]
    return Floats(x.lanes, vecs)
