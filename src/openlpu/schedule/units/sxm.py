"""Vectors and lane maps in; permuted vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from openlpu.schedule.assembler import Assembler
from openlpu.schedule.expression import Later, Op, Relay, Taken
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.values import Vec

if TYPE_CHECKING:
    from openlpu.schedule.units.vxm import Vxm



@dataclass(frozen=True, eq=False)
class Turned(Relay):
    """out[lane] = in[map[lane]] by the SXM of a hemisphere; the map, two planes, is taken where it meets no clash.

    ``op``: ``permute``, or ``distribute``, which takes less time, stays inside superlanes and has maps of one plane."""

    asm: Assembler
    source: Vec | Op | Later
    maps: Sequence[Vec]
    hemisphere: int
    op: str = "permute"

    def of(self, source: Vec | Op | Later) -> Turned:
        """The same of another vector."""
        return replace(self, source=source)

    @property
    def vec(self) -> Vec:
        """Its data, which is in SRAM."""
        assert isinstance(self.source, Vec), "what is on its way is read where it comes"
        return self.source

    @property
    def trip(self) -> int:
        """Cycles from the result that leaves the VXM until what is made of it passes there."""
        return self.lead + abs(self.asm.chip.vxm_position - self.x)

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
        there = [self.source] if isinstance(self.source, Vec) else []
        return max(self.asm.earliest(vec, self.x) for vec in (*there, *self.maps))

    def arrive(self, cycle: int, data: Taken | None = None) -> list[Taken] | None:
        """Take all that it needs to pass the VXM in a cycle, or None."""
        found = self.sent(cycle - self.lead, data)
        return found and [found[1]]

    def sent(self, at: int, data: Taken | None = None) -> tuple[Taken, Taken] | None:
        """Likewise, to be dispatched in a cycle: its data, which others may take too, and the result."""
        asm = self.asm
        operands = self._operands(at, data)
        if operands is None:
            return None
        width = len(operands[0][1])
        base = asm.timeline.stream_group(width, self.x, at + self.latency, asm.chip.vxm_position)
        if base is None:
            return None
        number = asm.next_id
        asm.next_id += 1
        self._emit(number, at, operands, base)
        return operands[0], (base, [(number, part) for part in range(width)])

    def kept(self, number: int = 0, avoid: tuple[int, ...] = ()) -> Vec:
        """The result in SRAM."""
        asm, width = self.asm, len(self.vec.slices)

        def attempt(cycle: int) -> Vec | None:
            operands = self._operands(cycle)
            if operands is None:
                return None
            made = asm.next_id  # taken first: the writes claim it
            asm.next_id += 1
            place = asm.store(self.x, cycle + self.latency, [made] * width, avoid)
            if place is None:
                return None
            self._emit(made, cycle, operands, place[0])
            return place[1]

        return asm.search(self._start, attempt)

    @property
    def _queue(self) -> str:
        return f"sxm{'we'[self.hemisphere]}.{self.op}"

    def _operands(self, at: int, data: Taken | None = None) -> tuple[Taken, Taken] | None:
        """Data and map on streams to the SXM, and a slot there, in a cycle."""
        if not self.asm.timeline.queue(self._queue, at):
            return None
        data = data or self._fetched(self.vec, at)
        for lane_map in sorted(self.maps, key=lambda m: abs(self.asm.x(m) - self.x)) if data else ():
            mark = self.asm.timeline.mark()
            if data and (where := self._fetched(lane_map, at)):
                return data, where
            self.asm.timeline.undo(mark)
        return None

    def _fetched(self, vec: Vec, at: int) -> Taken | None:
        got = self.asm.fetch(vec, self.x, at)
        return got and (got[0], [(source, 0) for source in got[1]])

    def _emit(self, number: int, at: int, operands: tuple[Taken, Taken], base: int) -> None:
        data, where = operands
        reads = [(first + i, source, False, part) for first, (_, made) in ((0, data), (16, where))
                 for i, (source, part) in enumerate(made)]
        fields = {"stream": data[0], "dst": base, "map": where[0], "count": len(data[1])}
        self.asm.emit_as(number, self._queue, at, self.op, reads, fields)


@dataclass(frozen=True, eq=False, kw_only=True)
class Moved(Turned):
    """What one SXM makes of a vector in one cycle, on its way to the VXM: a permutation, and the lanes shifted by an
    amount to higher ones (``north``) or lower, zeros where there are none; ``same``: a map that moves like the shift,
    around."""

    amount: int
    north: bool
    same: Sequence[Vec]

    def arrive(self, cycle: int, data: Taken | None = None) -> list[Taken] | None:
        """Take all that they need to pass the VXM in a cycle, or None."""
        asm, at = self.asm, cycle - self.lead
        queue = f"sxm{'we'[self.hemisphere]}.shift"
        found = self.sent(at, data) if asm.timeline.queue(queue, at) else None
        if found is None:
            return None
        (stream, sources), first = found
        width, post = len(sources), at + asm.chip.latency["shift"]
        base = asm.timeline.stream_group(width, self.x, post, asm.chip.vxm_position)
        if base is None:
            return None
        reads = [(i, source, False, part) for i, (source, part) in enumerate(sources)]
        fields = {"stream": stream, "dst": base, "amount": self.amount, "north": int(self.north), "count": width}
        made = asm.emit(queue, at, "shift", reads, **fields)
        return [first, (base, [(made, part) for part in range(width)])]

    def kept(self, number: int = 0, avoid: tuple[int, ...] = ()) -> Vec:
        """One of them by way of SRAM."""
        return Turned(self.asm, self.source, self.same if number else self.maps, self.hemisphere).kept(avoid=avoid)


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
        return self.turned(vec, lane_maps).kept(avoid=avoid)
