"""Reservations in; yes or no out: which queue, SRAM port and stream register is taken at which cycle.

A value on a stream is a diagonal in space and time, so a stream is a table from diagonal to the set of positions
(a bit mask) where that diagonal is in use.  Reservations are made one by one and undone together: an instruction
takes all it needs at a cycle, or nothing.
"""

from __future__ import annotations

from openlpu.arch.chip import Chip

ANY_BANK = -1  # of an address that a map decides
NO_BANK = -2  # of a port whose dispatch slot is taken, not its SRAM


class Timeline:
    """Everything of one chip that can be busy."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.queues: dict[str, dict[int, int]] = {name: {} for name in chip.queues}
        self.reads: list[dict[int, int]] = [{} for _ in range(chip.slices)]
        self.writes: list[dict[int, int]] = [{} for _ in range(chip.slices)]
        self.streams: list[dict[int, int]] = [{} for _ in range(2 * chip.streams_per_direction)]
        self.latches: list[dict[int, int]] = [{} for _ in range(chip.vxm_alus)]
        self.half = chip.words_per_slice // chip.banks
        self.log: list[tuple[dict[int, int], int, int]] = []

    def mark(self) -> int:
        """A point to return to with :meth:`undo`."""
        return len(self.log)

    def undo(self, mark: int) -> None:
        """Release every reservation made since ``mark``."""
        while len(self.log) > mark:
            table, key, mask = self.log.pop()
            if mask:
                table[key] &= ~mask
            else:
                del table[key]

    def keep(self) -> None:
        """Make all reservations final."""
        self.log.clear()

    def queue(self, name: str, cycle: int) -> bool:
        """Take a dispatch slot."""
        table = self.queues[name]
        if cycle < 0 or cycle in table:
            return False
        table[cycle] = 1
        self.log.append((table, cycle, 0))
        return True

    def ifetch(self, queue: str, cycle: int) -> bool:
        """Take a dispatch slot for an ``ifetch``; in a MEM queue that of a write or a read, which leaves the other."""
        if not queue.startswith("mem"):
            return self.queue(queue, cycle)
        slice_ = int(queue[3:])
        for table in (self.writes[slice_], self.reads[slice_]):
            if cycle not in table:
                table[cycle] = NO_BANK
                self.log.append((table, cycle, 0))
                return True
        return False

    def alu(self, cycle: int, latency: int) -> int | None:
        """Take an ALU's dispatch slot and its latch when the result comes; the ALU, or None if none has both.

        Cycles begin with different ALUs, so that no queue is so busy that it finds no slot to fetch in."""
        count = len(self.latches)
        for i in range(cycle % count, cycle % count + count):
            i %= count
            latch = self.latches[i]
            if cycle + latency not in latch and self.queue(f"vxm{i}", cycle):
                latch[cycle + latency] = 1
                self.log.append((latch, cycle + latency, 0))
                return i
        return None

    def memory(self, slice_: int, cycle: int, address: int | None, write: bool) -> bool:
        """Take a slice's read or write port: one of each a cycle, in different banks.

        ``address`` None: a map decides, so the slice is taken alone.
        """
        mine, other = (self.writes, self.reads) if write else (self.reads, self.writes)
        if cycle < 0 or cycle in mine[slice_]:
            return False
        bank = ANY_BANK if address is None else address // self.half
        beside = other[slice_].get(cycle)
        if beside is not None and (beside == bank or ANY_BANK in (beside, bank)):
            return False
        mine[slice_][cycle] = bank
        self.log.append((mine[slice_], cycle, 0))
        return True

    def stream(self, stream: int, start: int, cycle: int, end: int) -> bool:
        """Take a stream's registers for a value that is at position ``start`` in ``cycle`` and is read at ``end``."""
        east = stream < self.chip.streams_per_direction
        assert (end >= start) if east else (end <= start), "a stream flows one way"
        diagonal = start - cycle if east else start + cycle
        low, high = (start, end) if east else (end, start)
        mask = ((1 << (high - low + 1)) - 1) << low
        table = self.streams[stream]
        taken = table.get(diagonal, 0)
        if taken & mask:
            return False
        table[diagonal] = taken | mask
        self.log.append((table, diagonal, mask))
        return True

    def stream_group(self, count: int, start: int, cycle: int, end: int, prefer: int = 0) -> int | None:
        """Take ``count`` neighbouring streams (aligned to ``count``) for one trip; the first, or None."""
        per = self.chip.streams_per_direction
        first = 0 if end > start else per
        options = range(0, per, count)
        for k in range(len(options)):
            base = first + options[(k + prefer) % len(options)]
            mark = self.mark()
            if all(self.stream(base + i, start, cycle, end) for i in range(count)):
                return base
            self.undo(mark)
        return None
