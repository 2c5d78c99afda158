"""Vectors and lane maps in; permuted vectors out."""

from __future__ import annotations

from collections.abc import Sequence

from openlpu.schedule.assembler import Assembler
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.units.vxm import Vxm
from openlpu.schedule.values import Vec


class Sxm:
    """The two switch units at the edges of the memory."""

    def __init__(self, asm: Assembler, vxm: Vxm) -> None:
        self.asm, self.vxm, self.temporaries = asm, vxm, asm.temporaries

    @scoped
    def permute(self, vec: Vec, lane_maps: Sequence[Vec], avoid: tuple[int, ...] = ()) -> Vec:
        """out[lane] = in[map[lane]] on the nearer SXM; the map, two planes, is taken where it meets no clash."""
        lane_map = next((m for m in lane_maps if not set(m.slices) & set(vec.slices)), None)
        if lane_map is None:
            vec = self.vxm.copy(vec, lane_maps[0].slices)
            lane_map = lane_maps[0]
        hemisphere = 0 if self.asm.x(vec) < self.asm.chip.vxm_position else 1
        x = self.asm.chip.sxm_position(hemisphere)
        queue = f"sxm{'we'[hemisphere]}.permute"
        count = len(vec.slices)

        def attempt(cycle: int) -> Vec | None:
            if not self.asm.timeline.queue(queue, cycle):
                return None
            where = self.asm.fetch(lane_map, x, cycle)
            data = self.asm.fetch(vec, x, cycle) if where else None
            if data is None or where is None:
                return None
            number = self.asm.next_id
            self.asm.next_id += 1
            place = self.asm.store(x, cycle + self.asm.chip.latency["permute"], [number] * count, avoid)
            if place is None:
                return None
            reads = [(i, source, False, 0) for i, source in enumerate(data[1])]
            reads += [(16 + i, source, False, 0) for i, source in enumerate(where[1])]
            fields = {"stream": data[0], "dst": place[0], "map": where[0], "count": count}
            self.asm.emit_as(number, queue, cycle, "permute", reads, fields)
            return place[1]

        return self.asm.search(max(self.asm.earliest(vec, x), self.asm.earliest(lane_map, x)), attempt)
