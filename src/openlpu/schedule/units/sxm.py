"""Vectors and lane maps in; permuted vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from openlpu.schedule.assembler import Assembler
from openlpu.schedule.expression import Taken
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.values import Vec

if TYPE_CHECKING:
    from openlpu.schedule.units.vxm import Vxm

Fetched = tuple[int, list[int]]  # the first stream; the reads


@dataclass(frozen=True, eq=False)
class Turned:
    """out[lane] = in[map[lane]] by the SXM of a hemisphere; the map, two planes, is taken where it meets no clash.

    ``op``: ``permute``, or ``distribute``, which takes less time, stays inside superlanes and has maps of one plane."""

    asm: Assembler
    vec: Vec
    maps: Sequence[Vec]
    hemisphere: int
    op: str = "permute"

    @property
    def latency(self) -> int:
        """Cycles from its dispatch to the result."""
        return self.asm.chip.latency[self.op]

    @property
    def x(self) -> int:
        """Stream register of the SXM."""
        return self.asm.chip.sxm_position(self.hemisphere)

    @property
    def lead(self) -> int:
        """Cycles from the dispatch until its result passes the VXM."""
        return self.latency + abs(self.asm.chip.vxm_position - self.x)

    def earliest(self) -> int:
        """First cycle in which it can pass the VXM."""
        return self._start + self.lead

    @property
    def _start(self) -> int:
        """First cycle in which it can be dispatched."""
        return max(self.asm.earliest(self.vec, self.x), *(self.asm.earliest(m, self.x) for m in self.maps))

    def arrive(self, cycle: int) -> Taken | None:
        """Take all that it needs to pass the VXM in a cycle, or None."""
        found = self.sent(cycle - self.lead)
        return found and found[1]

    def sent(self, at: int) -> tuple[Fetched, Taken] | None:
        """Likewise, to be dispatched in a cycle: its data, which others may take too, and the result."""
        asm, width = self.asm, len(self.vec.slices)
        operands = self._operands(at)
        if operands is None:
            return None
        base = asm.timeline.stream_group(width, self.x, at + self.latency, asm.chip.vxm_position)
        if base is None:
            return None
        number = asm.next_id
        asm.next_id += 1
        self._emit(number, at, operands, base)
        return operands[0], (base, [(number, part) for part in range(width)])

    def kept(self, avoid: tuple[int, ...] = ()) -> Vec:
        """The result in SRAM."""
        asm, width = self.asm, len(self.vec.slices)

        def attempt(cycle: int) -> Vec | None:
            operands = self._operands(cycle)
            if operands is None:
                return None
            number = asm.next_id  # taken first: the writes claim it
            asm.next_id += 1
            place = asm.store(self.x, cycle + self.latency, [number] * width, avoid)
            if place is None:
                return None
            self._emit(number, cycle, operands, place[0])
            return place[1]

        return asm.search(self._start, attempt)

    @property
    def _queue(self) -> str:
        return f"sxm{'we'[self.hemisphere]}.{self.op}"

    def _operands(self, at: int) -> tuple[Fetched, Fetched] | None:
        """Data and map on streams to the SXM, and a slot there, in a cycle."""
        if not self.asm.timeline.queue(self._queue, at):
            return None
        data = self.asm.fetch(self.vec, self.x, at)
        for lane_map in sorted(self.maps, key=lambda m: abs(self.asm.x(m) - self.x)) if data else ():
            mark = self.asm.timeline.mark()
            if data and (where := self.asm.fetch(lane_map, self.x, at)):
                return data, where
            self.asm.timeline.undo(mark)
        return None

    def _emit(self, number: int, at: int, operands: tuple[Fetched, Fetched], base: int) -> None:
        data, where = operands
        reads = [(i, source, False, 0) for i, source in enumerate(data[1])]
        reads += [(16 + i, source, False, 0) for i, source in enumerate(where[1])]
        fields = {"stream": data[0], "dst": base, "map": where[0], "count": len(data[1])}
        self.asm.emit_as(number, self._queue, at, self.op, reads, fields)


@dataclass(frozen=True, eq=False)
class Moved:
    """What one SXM makes of a vector in one cycle, on its way to the VXM: a permutation, and the lanes shifted by an
    amount to higher ones (``north``) or lower, zeros where there are none."""

    turned: Turned
    amount: int
    north: bool
    same: Sequence[Vec]  # a map that moves like the shift, around

    def earliest(self) -> int:
        """First cycle in which both can pass the VXM."""
        return self.turned.earliest()

    def arrive(self, cycle: int) -> list[Taken] | None:
        """Take all that they need to pass the VXM in a cycle, or None."""
        turned, asm, at = self.turned, self.turned.asm, cycle - self.turned.lead
        queue = f"sxm{'we'[turned.hemisphere]}.shift"
        found = turned.sent(at) if asm.timeline.queue(queue, at) else None
        if found is None:
            return None
        (stream, sources), first = found
        width, post = len(sources), at + asm.chip.latency["shift"]
        base = asm.timeline.stream_group(width, turned.x, post, asm.chip.vxm_position)
        if base is None:
            return None
        reads = [(i, source, False, 0) for i, source in enumerate(sources)]
        fields = {"stream": stream, "dst": base, "amount": self.amount, "north": int(self.north), "count": width}
        number = asm.emit(queue, at, "shift", reads, **fields)
        return [first, (base, [(number, part) for part in range(width)])]

    def kept(self, number: int) -> Vec:
        """One of them by way of SRAM."""
        return replace(self.turned, maps=self.same if number else self.turned.maps).kept()


class Sxm:
    """The two switch units at the edges of the memory."""

    def __init__(self, asm: Assembler, vxm: Vxm) -> None:
        self.asm, self.vxm, self.temporaries = asm, vxm, asm.temporaries

    def turned(self, vec: Vec, lane_maps: Sequence[Vec]) -> Turned:
        """out[lane] = in[map[lane]] on the nearer SXM, on its way to the VXM; of ``lane_maps`` one can be had."""
        return Turned(self.asm, vec, lane_maps, 0 if self.asm.x(vec) < self.asm.chip.vxm_position else 1)

    @scoped
    def permute(self, vec: Vec, lane_maps: Sequence[Vec], avoid: tuple[int, ...] = ()) -> Vec:
        """out[lane] = in[map[lane]] on the nearer SXM."""
        if all(set(m.slices) & set(vec.slices) for m in lane_maps):
            vec = self.vxm.copy(vec, lane_maps[0].slices)
        return self.turned(vec, lane_maps).kept(avoid)
