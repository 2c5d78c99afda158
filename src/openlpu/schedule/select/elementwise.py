"""fp32 operators on vectors: embed, rope, silu_mul, add, mul."""

from __future__ import annotations

import numpy as np

from openlpu._base.errors import DoesNotFit
from openlpu.graph.ir import Node
from openlpu.place.emplace import Source
from openlpu.place.lanes import Lanes
from openlpu.schedule.expression import Op
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.values import Vec

TABLE_SIDE, MAP_SIDE = 1, 0  # tables lie east, the address maps that reach them lie west: maps flow east


def table(b: Build, name: str, source: Source, planes: int, rows: int) -> Vec:
    """A table of ``rows`` vectors that a gather reads by row number."""
    slices = b.quad_slices(TABLE_SIDE)[:planes]
    if rows > b.asm.sram.room(slices):
        raise DoesNotFit(
            f"the table {name} has {rows} rows; a slice has {b.asm.sram.room(slices)} left",
            where=f"chip {b.chip.name}", fix="use a larger chip or a smaller vocabulary or context",
        )
    return b.asm.keep(name, source, slices, rows)


def embed(b: Build, node: Node, out: Lanes) -> Floats:
    """Codes of the token's row times the row's scale (times a gain per channel where there is one)."""
    vocab = b.graph.config.vocab
    rows = np.arange(vocab, dtype=np.int32)
    token = b.host_row("token", 1, MAP_SIDE)
    everywhere = np.zeros(b.chip.lanes, np.int32)
    scale = b.mem.gather(table(b, "embedding.scale", Source("float", node.params["scale"], rows, everywhere), 4, vocab),
                         token)
    vecs = []
    for v, channel in enumerate(out.channel):
        source = Source("codes", node.params["codes"], rows, channel)
        codes = b.mem.gather(table(b, f"embedding.codes{v}", source, 1, vocab), token)
        x = Op("mul", Op("to_float", codes), scale)
        if "gain" in node.params:
            x = Op("mul", x, b.parameter(f"scales.embed.gain{v}", node.params["gain"], channel))
        vecs.append(b.vxm.evaluate(x))
    return Floats(out, vecs)


def rope_row(b: Build, node: Node) -> tuple[Vec, Vec]:
    """This position's cosine and signed sine over the lanes of heads side by side; gathered once a token."""
    heads, dim = b.heads, b.heads.dim
    lane = np.arange(b.chip.lanes, dtype=np.int32)
    used = lane < heads.per_vector * dim
    pair = np.where(used, lane % dim % (dim // 2), -1).astype(np.int32)
    rows = np.arange(b.context, dtype=np.int32)
    position = b.host_row("position", 1, MAP_SIDE)
    first_half = used & (lane % dim < dim // 2)
    cos = table(b, "rope.cos", Source("float", node.params["cos"], rows, pair), 4, b.context)
    sin = table(b, "rope.sin", Source("float", node.params["sin"], rows, pair, negate=first_half), 4, b.context)
    return b.mem.gather(cos, position), b.mem.gather(sin, position)


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
    gains = [b.parameter(f"scales.{node.where}.gain{v}", node.params["gain"], c) for v, c in enumerate(x.lanes.channel)]
    return Floats(x.lanes, [b.vxm.evaluate(Op("mul", v, g)) for v, g in zip(x.vecs, gains, strict=True)])
