"""A residual in, written to its position's row of a state; that row in the next sweep out.

The host's maps say which rows: to keep one a map for each place of the chunk, without an address for places that are
idle; to recall one the map of its position.
"""

from __future__ import annotations

from openlpu.graph.ir import Node
from openlpu.place.lanes import Lanes
from openlpu.place.layout import EAST, state
from openlpu.schedule.expression import Op
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.select.elementwise import lookup
from openlpu.schedule.temporaries import scoped


@scoped
def keep(b: Build, node: Node, x: Floats, place: int) -> None:
    """Scatter all vectors; data comes from the other hemisphere, beside the map."""
    where = b.host_row(f"keep.{1 - EAST}", 1, 1 - EAST, place=place)
    for v, vec in enumerate(x.vecs):
        table = b.home(state(node.attrs["state"], v))
        data = b.vxm.evaluate(Op("pass", vec), b.asm.side(EAST) + where.slices)
        ready, _ = b.mem.scatter(data, [(where, 0)] * 4, table.slices, table.address, range(4))
        b.last_write = max(b.last_write, ready)


def recall(b: Build, node: Node, out: Lanes, place: int) -> Floats:
    """The residual that the sweep before kept of this position."""
    names = [state(node.attrs["state"], v) for v in range(out.vectors)]
    return Floats(out, [lookup(b, name, "position", b.layout.context, place) for name in names])
