"""Router logits in; the chosen experts' weights in every lane, and the address maps that name their matrices, out.

The arithmetic is that of arch/truepoint/experts.py.  An expert's lane knows how many go before it from the logits of
all others, turned past it; which of the chosen ones it is, from a product with a triangle of ones; and what it knows
reaches every lane as a product with its mask, which is 1 in one lane.  Experts lie side by side, expert e at an address
+ e, so the map that names it in every superlane serves all that is looked up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from openlpu._base.errors import Unsupported
from openlpu.graph.ir import Node
from openlpu.partition.experts import bank
from openlpu.place.emplace import Source
from openlpu.schedule.expression import Op
from openlpu.schedule.guide import Guide
from openlpu.schedule.select.build import Build, Coded, Floats, Routes, resident
from openlpu.schedule.select.codes import MAGNITUDE, TRAP, chain, reciprocal
from openlpu.schedule.select.spread import spread
from openlpu.schedule.units.mxm import Plane
from openlpu.schedule.values import Vec

MOST = 128  # experts whose numbers are bytes that the MXM multiplies
TOGETHER = 3  # comparisons in one chain of ALUs


def route(b: Build, node: Node, place: int) -> Routes:
    """The experts of this token."""
    experts, chosen = b.graph.values[node.output].size, node.attrs["chosen"]
    if experts > min(MOST, b.chip.lanes):
        raise Unsupported(f"the chip chooses between at most {min(MOST, b.chip.lanes)} experts, not {experts}",
                          where=node.where, fix="run this model with --target cpu")
    (logits,) = b.floats[node.inputs[0], place].vecs
    flags, top = _before(b, logits, experts, chosen)
    size = b.vxm.evaluate(Op("mask", Op("exp", Op("sub", logits, top)), Op("mul_mod", flags, -1)))
    order = _order(b, flags, experts)
    found = [_everywhere(b, order, size, experts, j) for j in range(chosen)]
    total = chain("add", [size for _, size in found])
    inverse = b.vxm.evaluate(reciprocal(total))
    weights = [b.vxm.evaluate(Op("mul", size, inverse)) for _, size in found]
    live = [b.vxm.evaluate(Op("to_float", Op("min_int", w, 1))) for w in weights]
    guides = [_guides(b, number, j) for j, (number, _) in enumerate(found)]
    return Routes(weights, live, guides)


def _before(b: Build, logits: Vec, experts: int, chosen: int) -> tuple[Vec, Vec]:
    """(1 in the lanes of chosen experts, else 0; the largest logit in the lanes of experts).

    Logits are compared as integers of the same order, -0 and 0 the same.
    """
    b.vxm.evaluate(Op("to_int", Op("mul", Op("mask", logits, MAGNITUDE), TRAP)))  # refuses what TruePoint refuses
    sign = Op("shift_right", logits, 31)
    key = b.vxm.evaluate(Op("mul_mod", Op("mask", logits, MAGNITUDE), Op("add_mod", Op("shift_left", sign, 1), 1)))
    negative = b.vxm.evaluate(Op("mul_mod", key, -1))
    lane = np.arange(b.chip.lanes, dtype=np.int32)
    own, counts, tops = lane < experts, list[Vec](), list[Vec]()
    others = [(lane + by) % experts for by in range(1, experts)]
    for some in (others[i : i + TOGETHER] for i in range(0, len(others), TOGETHER)):
        turned = [b.sxm.permute(key, b.lane_map(np.where(own, other, lane))) for other in some]
        first = [b.constant((own & (other < lane)).astype(np.int32)) for other in some]  # of equal ones
        ahead = [Op("add_sat", Op("add_sat", t, negative), f) for t, f in zip(turned, first, strict=True)]
        counts.append(b.vxm.evaluate(_chain("add_mod", [Op("min_int", Op("max_int", x, 0), 1) for x in ahead])))
        tops.append(b.vxm.evaluate(_chain("max_int", [key, *turned])))
    if not counts:
        return b.vxm.evaluate(Op("mask", b.mask(own), 1)), logits
    rank, top = _folded(b, "add_mod", counts), _folded(b, "max_int", tops)
    left = Op("max_int", Op("add_mod", Op("mul_mod", rank, -1), chosen), 0)
    flags = b.vxm.evaluate(Op("mask", Op("min_int", left, 1), b.mask(own)))
    sign = Op("shift_right", top, 31)
    size = Op("mul_mod", top, Op("add_mod", Op("shift_left", sign, 1), 1))
    return flags, b.vxm.evaluate(Op("add_mod", size, Op("shift_left", sign, 31)))


def _chain(op: str, parts: Sequence[Op | Vec]) -> Op:
    tree = chain(op, list(parts))
    return tree if isinstance(tree, Op) else Op("pass", tree)


def _folded(b: Build, op: str, vecs: list[Vec]) -> Vec:
    """All of them by one operation, a few at a time."""
    while len(vecs) > 1:
        vecs = [b.vxm.evaluate(_chain(op, vecs[i : i + 4])) for i in range(0, len(vecs), 4)]
    return vecs[0]


def _order(b: Build, flags: Vec, experts: int) -> Vec:
    """In the lane of a chosen expert which one it is, from 1 in ascending order of experts; 0 in the others."""
    plane = b.mxm.pick()
    groups = -(-experts // b.chip.weight_streams)
    b.mxm.load(plane, 0, _triangle(b, plane.hemisphere, experts), groups)
    b.mxm.install(plane)
    before = b.mxm.activate(plane, flags.plane(0), b.mxm.new_slot(plane), clear=True, emit=True)
    assert before, "the only activation emits"
    return b.vxm.evaluate(Op("mul_mod", Op("add_mod", before, 1), flags))


def _triangle(b: Build, hemisphere: int, experts: int) -> Vec:
    """Weight rows that add up what the experts before one have."""
    homes, rows = b.layout.homes, -(-experts // b.chip.weight_streams) * b.chip.weight_streams
    row, lane = np.arange(rows)[:, None], np.arange(b.chip.lanes)
    data = ((lane < row) & (row < experts)).astype(np.uint8)[:, None]
    name = f"constants.before{experts}.{hemisphere}"
    if name not in homes.homes:
        groups = rows // b.chip.weight_streams
        homes.keep_tile(name, Source("bytes", data=data), homes.tile_slices(hemisphere), groups)
    return b.home(name)


def _everywhere(b: Build, order: Vec, size: Vec, experts: int, j: int) -> tuple[Vec, Vec]:
    """(number, size) of the j-th chosen expert in every lane: products with its mask, loaded as all rows."""
    off = Op("add_mod", order, -1 - j)
    mask = b.vxm.evaluate(Op("add_mod", Op("mul_mod", Op("min_int", Op("mul_mod", off, off), 1), -1), 1))
    lane = np.arange(b.chip.lanes, dtype=np.int32)
    numbers = b.constant(np.where(lane < experts, lane, 0).astype(np.int32), planes=1)
    (number,), word = spread(b, mask.plane(0), [numbers], size)
    return number, word


def _guides(b: Build, number: Vec, j: int) -> tuple[Guide, Guide]:
    """The map of an expert in an outermost group of slices of each hemisphere, on the way inward."""
    even = b.mask(np.arange(b.chip.lanes) % 2 == 0)  # of the two bytes of an address the lower one
    groups = b.asm.group_slices(0), b.asm.group_slices(2 * b.chip.groups - 1)
    plane = j % len(groups[0])  # in slices of their own, so that two maps can be read at once
    tree = Op("mask", Op("shift_left", number, 8 * plane), even) if plane else Op("mask", number, even)
    made = []
    for group, end in zip(groups, ends(b, b.layout.homes.banks), strict=True):
        away = tuple(s for s in range(b.chip.slices) if s not in group)
        made.append(Guide(b.asm, b.vxm.evaluate(tree, away).plane(plane), end))
    return made[0], made[1]


def ends(b: Build, names: Collection[str]) -> tuple[int, int]:
    """For a map from the west and one from the east: the farthest position of what they guide."""
    west, east = b.asm.position[0] + 1, b.asm.position[-1] - 1
    for name in names:
        slices = b.layout.homes.homes[name].slices
        if len(slices) == b.chip.weight_streams:
            first, last = b.asm.position[min(slices)], b.asm.position[max(slices)]
            west = max(west, last) if first < b.chip.vxm_position else west
            east = min(east, first) if last > b.chip.vxm_position else east
    return west, east


def select(b: Build, node: Node, place: int) -> Coded:
    """Codes for a chosen expert: of scale 0 where its weight is."""
    q, live = b.coded[node.inputs[0], place], b.routes[node.inputs[1], place].live[node.attrs["chosen"]]
    return Coded(q.lanes, q.low, q.high, b.vxm.evaluate(Op("mul", q.scale, live)))


def guide(b: Build, node: Node, hemisphere: int, place: int) -> Guide:
    """The map of a linear's expert for a token, where it flows towards the middle of a hemisphere."""
    return b.routes[node.inputs[1], place].guides[node.attrs["chosen"]][hemisphere]


def load(b: Build, node: Node, plane: Plane, tile: str, place: int, *, steady: bool) -> None:
    """A tile of the weights of a linear's expert, in the runs in which it lies."""
    by, each = guide(b, node, plane.hemisphere, place), node.attrs["experts"]
    for group, run in b.layout.homes.runs[tile]:
        b.mxm.load_bank(plane, resident(run), run.count, by, each, steady=steady, group=group)


def row(b: Build, node: Node, word: str, j: str, place: int) -> Vec:
    """The scales or biases of output vector j of a linear; those of its expert are looked up."""
    if not bank(node):
        return b.home(f"{word}.{node.where}.{j}")
    table = b.home(f"{word}.{bank(node)}.{j}")
    return b.mem.gather(table, guide(b, node, int(table.slices[0] >= b.chip.slices_per_hemisphere), place).vec)


def mix(b: Build, node: Node, place: int) -> Floats:
    """Σ weight * output, in ascending order of experts from +0; those not chosen would add zeros."""
    routes, outputs = b.routes[node.inputs[0], place], [b.floats[name, place] for name in node.inputs[1:]]
    vecs = []
    for v in range(outputs[0].lanes.vectors):
        tree: Op | float = 0.0
        for output, weight in zip(outputs, routes.weights, strict=True):
            tree = Op("add", Op("mul", output.vecs[v], weight), tree)
        assert isinstance(tree, Op), "an expert is chosen"
        vecs.append(b.vxm.evaluate(tree))
    return Floats(outputs[0].lanes, vecs)
