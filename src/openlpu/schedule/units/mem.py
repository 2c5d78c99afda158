"""Tables and address maps in; rows read or written where the maps say.

Plain reads and writes need no call of their own: they are how every unit gets its operands and leaves its results.
"""

from __future__ import annotations

from collections.abc import Sequence

from openlpu.schedule.assembler import Assembler
from openlpu.schedule.values import Vec


class Mem:
    """The stream-indirect instructions of the MEM slices."""

    def __init__(self, asm: Assembler) -> None:
        self.asm = asm

    def gather(self, table: Vec, address_map: Vec, pair: int = 0) -> Vec:
        """Per superlane the row of ``table`` (its first address) that the map names; the map must be upstream."""
        x = self.asm.x(table)
        read = self.asm.chip.latency["read"]

        def attempt(cycle: int) -> Vec | None:
            where = self.asm.fetch(address_map, x, cycle)
            if where is None:
                return None
            if not all(self.asm.timeline.memory(s, cycle, None, write=False) for s in table.slices):
                return None
            ids = []
            numbers = range(self.asm.next_id, self.asm.next_id + len(table.slices))
            self.asm.next_id = numbers.stop
            place = self.asm.store(x, cycle + read, list(numbers))
            if place is None:
                return None
            for i, (s, number) in enumerate(zip(table.slices, numbers, strict=True)):
                reads = [(0, table.writers[i], table.or_resident, table.address), (1, where[1][0], False, 0)]
                fields = {"address": table.address, "stream": place[0] + i, "map": where[0], "pair": pair}
                self.asm.emit_as(number, f"mem{s}", cycle, "gather", reads, fields)
                ids.append(number)
            return place[1]

        return self.asm.search(max(self.asm.earliest(address_map, x), table.ready), attempt)

    def scatter(self, data: Vec, maps: Sequence[tuple[Vec, int]], targets: Sequence[int], address: int,
                planes: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Write ``data``'s plane ``planes[i]`` into ``targets[i]`` at ``address`` + its map (vector, lane pair).

        Data and maps pass all targets in one direction, from upstream.  Returns (ready, the scatters' ids).
        """
        xs = [self.asm.chip.slice_position(s) for s in targets]
        start = self.asm.x(data)
        end = max(xs, key=lambda x: abs(x - start))

        def attempt(cycle: int) -> tuple[int, tuple[int, ...]] | None:
            arrive = cycle + abs(end - start)
            got = self.asm.fetch(data, end, arrive)
            if got is None:
                return None
            wheres: dict[Vec, tuple[int, list[int]]] = {}
            for vec, _ in maps:
                found = wheres.get(vec) or self.asm.fetch(vec, end, arrive)
                if found is None:
                    return None
                wheres[vec] = found
            ids, last = [], 0
            for s, x, plane, (vec, pair) in zip(targets, xs, planes, maps, strict=True):
                at = arrive - abs(end - x)
                if not self.asm.timeline.memory(s, at, None, write=True):
                    return None
                where = wheres[vec]
                reads = [(0, got[1][plane], False, 0), (1, where[1][0], False, 0)]
                fields = {"address": address, "stream": got[0] + plane, "map": where[0], "pair": pair}
                ids.append(self.asm.emit(f"mem{s}", at, "scatter", reads, **fields))
                last = max(last, at)
            return last + self.asm.chip.latency["write"], tuple(ids)

        first = max(self.asm.earliest(v, end) for v in [data, *(vec for vec, _ in maps)]) - abs(end - start)
        ready, ids = self.asm.search(first, attempt)
        self.asm.outputs.extend((s, address, number, True) for s, number in zip(targets, ids, strict=True))
        return ready, ids
