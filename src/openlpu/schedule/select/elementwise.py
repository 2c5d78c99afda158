"""fp32 operators on vectors: embed, rope, silu_mul, swiglu, gelu, add, mul."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openlpu.arch.truepoint import elementwise as tp
from openlpu.graph.ir import Node
from openlpu.place.lanes import Lanes
from openlpu.place.layout import embedding, table_rows
from openlpu.place.partner import swapped
from openlpu.place.tables import folds, stretches
from openlpu.schedule.expression import Later, Op
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.select.cache import joined
from openlpu.schedule.select.spread import spread
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.units.vxm import Want
from openlpu.schedule.values import Vec

MAP_SIDE = 0  # small tables lie east, the address maps that reach them lie west; of large ones also the other way


def embed(b: Build, node: Node, out: Lanes, place: int) -> Floats:
    """Codes of the row of the token, or of its position or type, times the row's scale (times a gain per channel where
    there is one)."""
    table, kind, rows = embedding(node), node.inputs[0], table_rows(node, b.graph.config, b.layout.context)
    scale, vecs = _row_scale(b, table, kind, rows, place), []
    for v in range(out.vectors):
        codes = lookup(b, f"{table}.codes.{v}", kind, rows, place)
        x = Op("mul", Op("to_float", codes), scale)
        if "gain" in node.params:
            x = Op("mul", x, b.home(f"gain.{node.where}.{v}"))
        vecs.append(b.vxm.later(x))
    return Floats(out, vecs)


def _row_scale(b: Build, table: str, kind: str, rows: int, place: int) -> Vec:
    """The scale of a row, in every lane."""
    if not folds(rows, b.chip):
        return lookup(b, f"{table}.scale", kind, rows, place)
    several = lookup(b, f"{table}.scale", f"{kind}fold", -(-rows // b.chip.lanes), place)
    return spread(b, b.host_row("tokenlane", 1, place=place), [], several)[1]


def rope_row(b: Build, place: int) -> tuple[Vec, Vec]:
    """This position's cosine and signed sine over the lanes of heads side by side; gathered once a token."""
    rows = b.layout.context
    return lookup(b, "rope.cos", "position", rows, place), lookup(b, "rope.sin", "position", rows, place)


def lookup(b: Build, table: str, kind: str, rows: int, place: int) -> Vec:
    """The row of a table that the host's map of a kind names: the sum of its stretches, all but one of them zeros."""
    parts = []
    for stretch in stretches(rows, b.chip):
        home = b.home(stretch.home(table))
        east = home.slices[0] >= b.chip.slices_per_hemisphere
        name = stretch.map(kind) if stretch.whole and east else f"{stretch.map(kind)}.{int(not east)}"
        parts.append(b.mem.gather(home, b.host_row(name, 1, MAP_SIDE if east else 1 - MAP_SIDE, place=place)))
    return parts[0] if len(parts) == 1 else b.vxm.evaluate(joined(b, parts))


def rope(b: Build, x: Floats, partners: Sequence[Later], row: tuple[Vec, Vec]) -> Floats:
    """x * cos + partner * sin', where the partner is the other half's lane and sin' is negative on first halves;
    ``partners``: those that products have made."""
    maps = [] if partners else b.lane_map(swapped(b.heads, b.chip))
    others = partners or [b.sxm.permute(vec, maps) for vec in x.vecs]
    turned = (Op("add", Op("mul", own, row[0]), Op("mul", other, row[1]))
              for own, other in zip(x.parts, others, strict=True))
    return Floats(x.lanes, [b.vxm.later(tree) for tree in turned])


def silu_mul(b: Build, gate: Floats, up: Floats) -> Floats:
    """(gate * 1/(1 + exp(-gate))) * up."""
    vecs, alu, special = [], b.chip.latency["vxm"], b.chip.latency["vxm_special"]
    for g, u in zip(gate.parts, up.parts, strict=True):
        again, up_again = b.vxm.after(g, 3 * alu + 2 * special), b.vxm.after(u, 4 * alu + 2 * special)
        root = Op("rsqrt", Op("add", Op("exp", Op("negate", g)), 1.0))
        vecs.append(b.vxm.later(Op("mul", Op("mul", again, Op("mul", root, root)), up_again)))
    return Floats(gate.lanes, vecs)


def swiglu(b: Build, node: Node, gate: Floats, up: Floats) -> Floats:
    """(g * 1/(1 + exp(-alpha * g))) * (u + 1) of both halves, clamped."""
    alpha, limit = (float(np.float32(node.attrs[word])) for word in ("alpha", "limit"))
    vecs = []
    for gate_vec, up_vec in zip(gate.vecs, up.vecs, strict=True):
        g = Op("min", gate_vec, limit)
        u = Op("add", Op("max", Op("min", up_vec, limit), -limit), 1.0)
        root = Op("rsqrt", Op("add", Op("exp", Op("negate", Op("mul", g, alpha))), 1.0))
        vecs.append(b.vxm.evaluate(Op("mul", Op("mul", g, Op("mul", root, root)), u)))
    return Floats(gate.lanes, vecs)


def gelu(b: Build, node: Node, x: Floats) -> Floats:
    """x * 1/(1 + exp(-c * P(c * c))), where c is x within limits."""
    limit, (highest, *rest) = float(tp.GELU_LIMIT), map(float, tp.GELU[node.attrs["form"]])
    return Floats(x.lanes, [_gelu(b, vec, limit, highest, rest) for vec in x.vecs])


@scoped
def _gelu(b: Build, x: Vec, limit: float, highest: float, rest: Sequence[float]) -> Vec:
    c, t = b.vxm.results([Want(op) for op in _clamped_square(x, limit)])
    p: Op = Op("add", Op("mul", t, highest), rest[0])
    for coefficient in rest[1:]:
        p = Op("add", Op("mul", p, t), coefficient)
    root = Op("rsqrt", Op("add", Op("exp", Op("negate", Op("mul", c, p))), 1.0))
    return b.vxm.evaluate(Op("mul", x, Op("mul", root, root)))


def _clamped_square(x: Vec, limit: float) -> tuple[Op, Op]:
    """x within a limit, and its square."""
    c = Op("min", Op("max", x, -limit), limit)
    return c, Op("mul", c, c)


def add(b: Build, x: Floats, y: Floats) -> Floats:
    """x + y."""
    return Floats(x.lanes, [b.vxm.later(Op("add", p, q)) for p, q in zip(x.parts, y.parts, strict=True)])


def mul(b: Build, node: Node, x: Floats) -> Floats:
    """x times a gain per channel."""
    vecs = [b.vxm.evaluate(Op("mul", vec, b.home(f"gain.{node.where}.{v}"))) for v, vec in enumerate(x.vecs)]
    return Floats(x.lanes, vecs)
