"""An address map in SRAM in; gathers of many vectors, each of which meets the map where it is dispatched, out.

The map is read cycle after cycle and flows inward while what is gathered flows outward, so a read of it meets gathers
of several vectors, one in each slice it passes: that takes one stream that the weights do not need, and one read port.
Experts are named so, and the requests whose KV caches lie side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openlpu.schedule.assembler import SLACK, Assembler
from openlpu.schedule.timeline import ANY_BANK, Ints, Passage, window
from openlpu.schedule.values import Vec


@dataclass
class Guide:
    """The reads of one map, ``vec``, a byte plane in a slice farther out than all that it guides; each passes position
    ``end``."""

    asm: Assembler
    vec: Vec
    end: int

    def __post_init__(self) -> None:
        self.way = Passage(self.asm.chip, self.vec.slices, self.end)
        self.options = tuple(range(self.asm.chip.streams_per_direction - 1, -1, -1))  # others take the first ones
        self.known = bytearray()  # by cycle: whether the map is read
        self.stream, self.number = np.zeros(0, np.int64), np.zeros(0, np.int64)  # by cycle: of that read

    def fetch(
        self, queue: str, rows: Vec, addresses: Ints, x: int, start: int, options: tuple[int, ...]
    ) -> tuple[Ints, Ints, Ints]:
        """As :meth:`Assembler.fetch_each`, of ``rows`` at each of some base addresses and what the map adds.

        The addresses of one call may lie in both banks.
        """
        asm, timeline = self.asm, self.asm.timeline
        passage = asm.passages.setdefault((rows.slices, x), Passage(asm.chip, rows.slices, x))
        assert passage.east != self.way.east, "a map flows against what it guides"
        at, read, count = asm.x(self.vec), asm.chip.latency["read"], len(addresses)
        lags = np.array([read + abs(p - at) + lead for p, lead in zip(passage.at, passage.lead, strict=True)])
        start, reach = max(start, asm.earliest(rows, x), self.vec.ready + int(lags.max())), count + SLACK
        while True:
            cycles, chosen = timeline.open(queue, passage, ANY_BANK, options, start, reach)
            able = self._able(start - int(lags.max()), start + reach - int(lags.min()))
            good = able[cycles[:, None] - lags - start + int(lags.max())].all(axis=1)
            cycles, chosen = cycles[good], chosen[good]
            if len(cycles) >= count:
                break
            reach *= 2
        cycles, chosen = cycles[:count], chosen[:count]
        timeline.take(queue, passage, ANY_BANK, cycles, chosen)
        maps = cycles[:, None] - lags
        self._read(np.unique(maps))
        planes = len(rows.slices)
        streams = chosen * planes + (0 if passage.east else asm.chip.streams_per_direction)
        ids = asm.take_ids(count * planes).reshape(count, planes)
        for i, (s, lead) in enumerate(zip(rows.slices, passage.lead, strict=True)):
            asm.emit_each(f"mem{s}", cycles - lead, "gather", ids[:, i], address=addresses, stream=streams + i,
                          map=self.stream[maps[:, i]])
        asm.claim_each(ids, 0, np.array(rows.writers), rows.or_resident, addresses[:, None])
        asm.claim_each(ids, 1, self.number[maps], False, 0)
        return cycles, streams, ids

    def one(self, rows: Vec, x: int, arrive: int) -> tuple[int, list[int]] | None:
        """As :meth:`Assembler.fetch`, of ``rows`` at their address and what the map adds."""
        asm, timeline, read, width = self.asm, self.asm.timeline, self.asm.chip.latency["read"], len(rows.slices)
        trips = [(at, arrive - abs(x - at)) for at in map(asm.position.__getitem__, rows.slices)]
        first = 0 if x > trips[0][0] else asm.chip.streams_per_direction
        meets = [leave - read for _, leave in trips]
        if min(meets) < rows.ready or not all(timeline.memory(s, at, None, write=False)
                                              for s, at in zip(rows.slices, meets, strict=True)):
            return None
        for base in range(first, first + asm.chip.streams_per_direction, width):
            mark = timeline.mark()
            if all(timeline.stream(base + i, at, leave, x) for i, (at, leave) in enumerate(trips)):
                break
            timeline.undo(mark)
        else:
            return None
        here, ids = asm.x(self.vec), []
        maps = [meet - abs(at - here) - read for meet, (at, _) in zip(meets, trips, strict=True)]
        met = {cycle: self._met(cycle) for cycle in dict.fromkeys(maps)}
        for i, (s, meet) in enumerate(zip(rows.slices, meets, strict=True)):
            if (found := met[maps[i]]) is None:
                return None
            claims = [(0, rows.writers[i], rows.or_resident, rows.address), (1, found[1], False, 0)]
            ids.append(asm.emit(f"mem{s}", meet, "gather", claims, address=rows.address, stream=base + i, map=found[0]))
        return base, ids

    def _met(self, cycle: int) -> tuple[int, int] | None:
        """The stream and the id of the map's read in a cycle, made if it is not there yet and can be."""
        asm, timeline, here = self.asm, self.asm.timeline, self.asm.x(self.vec)
        if cycle < max(self.vec.ready, asm.floor):
            return None
        if cycle < len(self.known) and self.known[cycle]:
            return int(self.stream[cycle]), int(self.number[cycle])
        if not timeline.memory(self.vec.slices[0], cycle, self.vec.address, write=False):
            return None
        per = asm.chip.streams_per_direction
        streams = (k + (0 if self.way.east else per) for k in self.options)
        free = (s for s in streams if timeline.stream(s, here, cycle + asm.chip.latency["read"], self.end))
        if (stream := next(free, None)) is None:
            return None
        claim = [(0, self.vec.writers[0], self.vec.or_resident, self.vec.address)]
        number = asm.emit(f"mem{self.vec.slices[0]}", cycle, "read", claim, address=self.vec.address, stream=stream)
        asm.settle.append(lambda: self._know(cycle, stream, number))
        return stream, number

    def _know(self, cycle: int, stream: int, number: int) -> None:
        """A read of the map is final."""
        self._reach(cycle + 1)
        window(self.known, cycle, 1)[0], self.stream[cycle], self.number[cycle] = 1, stream, number

    def _reach(self, end: int) -> None:
        """Have room for what is known of cycles below ``end``."""
        if end > len(self.stream):
            self.stream, self.number = (np.append(a, np.zeros(2 * end - len(a), np.int64))
                                        for a in (self.stream, self.number))

    def _open(self, first: int, count: int) -> tuple[Ints, Ints]:
        """The cycles, of so many, in which the map can be read, and the streams, counted in its direction."""
        lead, timeline = self.way.lead[0], self.asm.timeline
        bank = timeline.bank(self.vec.address)
        cycles, chosen = timeline.open(None, self.way, bank, self.options, first + lead, count)
        return cycles - lead, chosen

    def _able(self, first: int, end: int) -> np.ndarray:
        """For each cycle whether the map is read in it, or can be."""
        able = window(self.known, first, end - first) != 0
        able[self._open(first, end - first)[0] - first] = True
        return able

    def _read(self, cycles: Ints) -> None:
        """Read the map in these cycles, ascending, where it is not read yet."""
        asm = self.asm
        end = int(cycles[-1]) + 1
        self._reach(end)
        new = cycles[window(self.known, 0, end)[cycles] == 0]
        if not len(new):
            return
        window(self.known, 0, end)[new] = 1
        first = int(new[0])
        free, chosen = self._open(first, int(new[-1]) - first + 1)
        chosen = chosen[np.searchsorted(free, new)]
        asm.timeline.take(None, self.way, asm.timeline.bank(self.vec.address), new + self.way.lead[0], chosen)
        self.stream[new] = chosen + (0 if self.way.east else asm.chip.streams_per_direction)
        self.number[new] = ids = asm.take_ids(len(new))
        fields = {"address": self.vec.address, "stream": self.stream[new]}
        asm.emit_each(f"mem{self.vec.slices[0]}", new, "read", ids, **fields)
        asm.claim_each(ids, 0, self.vec.writers[0], self.vec.or_resident, self.vec.address)
        asm.temporaries.use(self.vec.slices[0], self.vec.address, end - 1)
