"""Reservations in; yes or no out: which queue, SRAM port and stream register is taken at which cycle.

Everything that can be busy is a growing row of bytes, so one reservation is a look at a byte, a thousand of them are
one array operation, and the next free cycle is a search for a zero.  A value on a stream is a diagonal in space and
time: streams are rows of (diagonal, stream, position).  Reservations are made one by one and undone together: an
instruction takes all it needs at a cycle, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip

# What a byte of an SRAM port says: 0 free, a bank (1 …), or one of these.
ANY_BANK = 255  # a map decides the address
NO_BANK = 254  # the dispatch slot is taken, not the SRAM
BANK_CODES = 253  # banks beyond share a code, and so are taken for one
GROWTH = 4096  # bytes by which a row grows at least
AHEAD = 32  # cycles that a look ahead takes in
SPELL = 96  # dispatches of an SXM's queue in a row at most, so that it finds a slot to fetch in before it runs empty

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


def free(row: bytearray, cycle: int) -> int:
    """The first free cycle from ``cycle`` on."""
    found = row.find(0, cycle)
    return max(cycle, len(row)) if found < 0 else found


def window(row: bytearray, start: int, count: int) -> Bytes:
    """A view of ``count`` bytes of a row, which grows to hold them; let go of it before the row grows again."""
    _reach(row, start + count)
    return np.frombuffer(row, np.uint8, count, start)


def _next() -> int:
    return 1


def _any(row: bytearray, start: int, count: int) -> bool:
    part = row[start : start + count]
    return part.count(0) < len(part)


def _reach(row: bytearray, end: int) -> None:
    if end > len(row):
        row.extend(bytes(max(end - len(row), GROWTH, len(row) // 4)))


@dataclass(frozen=True)
class Passage:
    """Vectors read from ``slices`` that pass position ``x`` together, on neighbouring streams of one direction.

    ``lead[i]``: cycles from the read in slice i until then.
    """

    chip: Chip
    slices: tuple[int, ...]
    x: int

    @cached_property
    def at(self) -> list[int]:
        """Positions of the slices."""
        return [self.chip.slice_position(s) for s in self.slices]

    @cached_property
    def lead(self) -> list[int]:
        """Cycles from each read until its vector passes."""
        return [abs(self.x - at) + self.chip.latency["read"] for at in self.at]

    @cached_property
    def east(self) -> bool:
        """Whether the vectors flow east."""
        return self.x > self.at[0]

    @cached_property
    def span(self) -> tuple[int, int]:
        """The positions between which all ways lie: first, and one past the last."""
        return min(self.x, *self.at), max(self.x, *self.at) + 1

    @cached_property
    def way(self) -> Bytes:
        """[slices, positions of the span]: 1 on the way of each vector."""
        low, high = self.span
        out = np.zeros((len(self.at), high - low), np.uint8)
        for row, at in zip(out, self.at, strict=True):
            row[min(at, self.x) - low : max(at, self.x) - low + 1] = 1
        return out


class Timeline:
    """Everything of one chip that can be busy.

    After a refusal ``later()`` is how many cycles later the same can be had at the earliest, as far as known; it is
    asked when all that was taken beside it is released.  Whoever has an alternative calls :meth:`undo`, which forgets.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.queues = {name: bytearray() for name in chip.queues}
        self.reads = [bytearray() for _ in range(chip.slices)]
        self.writes = [bytearray() for _ in range(chip.slices)]
        self.latches = [bytearray() for _ in range(chip.vxm_alus)]
        self.alus = [self.queues[f"vxm{i}"] for i in range(chip.vxm_alus)]
        self.streams = (bytearray(), bytearray())  # eastward, westward
        self.per, self.width = chip.streams_per_direction, chip.positions
        self.half = chip.words_per_slice // chip.banks
        self.log: list[tuple[bytearray, int, int]] = []
        self.later: Callable[[], int] = _next

    def mark(self) -> int:
        """A point to return to with :meth:`undo`."""
        return len(self.log)

    def undo(self, mark: int) -> None:
        """Release every reservation made since ``mark``, and forget refusals."""
        self.later = _next
        while len(self.log) > mark:
            row, start, count = self.log.pop()
            row[start : start + count] = bytes(count)

    def keep(self) -> None:
        """Make all reservations final, and forget refusals."""
        self.log.clear()
        self.later = _next

    def _take(self, row: bytearray, at: int, code: int = 1) -> None:
        if at >= len(row):
            _reach(row, at + 1)
        row[at] = code
        self.log.append((row, at, 1))

    def queue(self, name: str, cycle: int) -> bool:
        """Take a dispatch slot, unless an SXM's queue had more than :data:`SPELL` in a row."""
        row = self.queues[name]
        if cycle < 0 or (cycle < len(row) and row[cycle]):
            self.later = lambda: free(row, max(cycle, 0)) - cycle
            return False
        if name.startswith("sxm") and self._spell(row, cycle) >= SPELL:
            self.later = _next
            return False
        self._take(row, cycle)
        return True

    def _spell(self, row: bytearray, cycle: int) -> int:
        """How many dispatches one in a cycle would join."""
        front, behind = row[max(cycle - SPELL, 0) : cycle], row[cycle + 1 : cycle + 1 + SPELL]
        return len(front) - len(front.rstrip(b"\1")) + len(behind) - len(behind.lstrip(b"\1"))

    def hold(self, start: int, end: int) -> None:
        """Take everything from ``start`` to ``end``, streams included: nothing crosses.

        Nothing must be under way then; the cycles in front, in which what is dispatched would not be done, go too.
        """
        quiet = start - max(self.chip.latency.values())
        for row in (*self.queues.values(), *self.reads, *self.writes):
            window(row, max(quiet, 0), end - max(quiet, 0))[:] = NO_BANK
        for x in range(self.width):
            for east in (True, False):
                self._hold_streams(east, x, start, end - start)

    def _hold_streams(self, east: bool, x: int, start: int, count: int) -> None:
        """Take all streams of a direction at a position, for ``count`` cycles."""
        stride = self.per * self.width
        cells = window(self.streams[not east], self._diagonal(east, x, start) * stride, count * stride)
        cells.reshape(count, self.per, self.width)[:, :, x] = 1

    def either(self, names: tuple[str, ...], cycle: int) -> str | None:
        """Take a dispatch slot of the first of some queues that has one; the queue."""
        for name in names:
            row = self.queues[name]
            if cycle >= 0 and (cycle >= len(row) or not row[cycle]):
                self._take(row, cycle)
                return name
        return None

    def ifetch(self, queue: str, cycle: int) -> bool:
        """Take a dispatch slot for an ``ifetch``; in a MEM queue that of a write or a read, which leaves the other."""
        for row in self._fetching(queue):
            if cycle >= len(row) or not row[cycle]:
                self._take(row, cycle, NO_BANK)
                return True
        return False

    def alu(self, cycle: int, latency: int) -> int | None:
        """Take an ALU's dispatch slot and its latch when the result comes; the ALU, or None if none has both.

        Cycles begin with different ALUs, so that no queue is so busy that it finds no slot to fetch in."""
        count, done = len(self.latches), cycle + latency
        for i in range(cycle % count, cycle % count + count):
            i %= count
            row, latch = self.alus[i], self.latches[i]
            if cycle >= 0 and not (cycle < len(row) and row[cycle]) and not (done < len(latch) and latch[done]):
                self._take(row, cycle)
                self._take(latch, done)
                return i
        return None

    def memory(self, slice_: int, cycle: int, address: int | None, write: bool) -> bool:
        """Take a slice's read or write port: one of each a cycle, in different banks.

        ``address`` None: a map decides, so the slice is taken alone.
        """
        mine, other = (self.writes, self.reads) if write else (self.reads, self.writes)
        row, beside = mine[slice_], other[slice_]
        if cycle < 0 or (cycle < len(row) and row[cycle]):
            self.later = lambda: free(row, max(cycle, 0)) - cycle
            return False
        bank = ANY_BANK if address is None else self.bank(address)
        there = beside[cycle] if cycle < len(beside) else 0
        if there and (there in (bank, ANY_BANK) or (bank == ANY_BANK and there != NO_BANK)):
            return False
        self._take(row, cycle, bank)
        return True

    def readable(self, reads: Sequence[tuple[int, int, int]], cycle: int) -> int:
        """The first cycle from ``cycle`` on in which each of some reads can have its port: (slice, bank's code, cycles
        from the read until then)."""
        ports = [(self.reads[s], self.writes[s], bank, lead) for s, bank, lead in reads]
        now = cycle
        while True:
            for mine, other, bank, lead in ports:
                at = now - lead
                if at < len(mine) and mine[at]:
                    now = lead + free(mine, at)
                elif at < len(other) and (other[at] == bank or other[at] == ANY_BANK):
                    now += 1
            if now == cycle:
                return now
            cycle = now

    def bank(self, address: int) -> int:
        """The code of the bank of an address."""
        return address // self.half % BANK_CODES + 1

    # -- streams -----------------------------------------------------------------------------------------------

    def _diagonal(self, east: bool, x: int, cycle: int) -> int:
        return cycle - x + self.width - 1 if east else cycle + x

    def stream(self, stream: int, start: int, cycle: int, end: int) -> bool:
        """Take a stream's registers for a value that is at position ``start`` in ``cycle`` and is read at ``end``."""
        east = stream < self.per
        assert (end >= start) if east else (end <= start), "a stream flows one way"
        row, low = self.streams[not east], min(start, end)
        at = (self._diagonal(east, start, cycle) * self.per + stream % self.per) * self.width + low
        count = abs(end - start) + 1
        if row.find(1, at, at + count) >= 0:
            return False
        if at + count > len(row):
            _reach(row, at + count)
        row[at : at + count] = b"\1" * count
        self.log.append((row, at, count))
        return True

    def stream_group(self, count: int, start: int, cycle: int, end: int, prefer: int = 0) -> int | None:
        """Take ``count`` neighbouring streams (aligned to ``count``) for one trip; the first, or None."""
        options = range(0, self.per, count)
        k = prefer % len(options)
        return self.side_by_side([(start, cycle)] * count, end, (*options[k:], *options[:k]))

    def side_by_side(self, trips: Sequence[tuple[int, int]], end: int, options: Iterable[int]) -> int | None:
        """Take neighbouring streams, one for each value that is at a position in a cycle and is read at ``end``; the
        first, or None.  ``options``: where they may begin, counted in their direction, in order of preference."""
        east = end > trips[0][0]
        row, width = self.streams[not east], self.width
        spans = []
        for i, (start, cycle) in enumerate(trips):
            at = (self._diagonal(east, start, cycle) * self.per + i) * width + min(start, end)
            spans.append((at, at + abs(end - start) + 1))
        for base in options:
            skip = base * width
            for at, stop in spans:
                if row.find(1, at + skip, stop + skip) >= 0:
                    break
            else:
                _reach(row, spans[-1][1] + skip)
                for at, stop in spans:
                    row[at + skip : stop + skip] = b"\1" * (stop - at)
                    self.log.append((row, at + skip, stop - at))
                return base + (0 if east else self.per)
            self.later = _next
        return None

    # -- many at once ------------------------------------------------------------------------------------------

    def open(
        self, queue: str | None, passage: Passage, bank: int, options: tuple[int, ...], start: int, count: int
    ) -> tuple[Ints, Ints]:
        """When a queue (None: none), a passage's slices (for a read in ``bank``) and its streams are free at once.

        Cycles of arrival from ``start``, of the next ``count``, ascending; and for each the first of ``options`` that
        is free: the multiple of the passage's width at which its streams begin.
        """
        busy = window(self.queues[queue], start, count) != 0 if queue else np.zeros(count, bool)
        for s, lead in zip(passage.slices, passage.lead, strict=True):
            if _any(self.reads[s], start - lead, count):
                busy |= window(self.reads[s], start - lead, count) != 0
            if _any(self.writes[s], start - lead, count):
                beside = window(self.writes[s], start - lead, count)
                taken = (beside != 0) & (beside != NO_BANK) if bank == ANY_BANK else beside == bank
                busy |= taken | (beside == ANY_BANK)
        cells = self._cells(passage, start, count)[:, options]
        shut = (cells & passage.way).reshape(count, len(options), -1).max(axis=2) != 0
        cycles = np.flatnonzero(~busy & (shut.sum(axis=1) < len(options)))
        return cycles + start, np.array(options, np.int64)[shut[cycles].argmin(axis=1)]

    def take(
        self, queue: str | None, passage: Passage, bank: int, cycles: Ints, options: Ints
    ) -> None:
        """Take what :meth:`open` found, for good."""
        start = int(cycles[0])
        at, count = cycles - start, int(cycles[-1]) - start + 1
        if queue:
            window(self.queues[queue], start, count)[at] = 1
        for s, lead in zip(passage.slices, passage.lead, strict=True):
            window(self.reads[s], start - lead, count)[at] = bank
        self._cells(passage, start, count)[at, options] |= passage.way

    def occupy(self, row: bytearray, cycles: Ints, codes: NDArray | int = 1) -> None:
        """Take a queue or a port in each of some ascending cycles, for good; it is known to be free."""
        cells = window(row, 0, int(cycles[-1]) + 1)
        assert not cells[cycles].any(), "two instructions in one cycle"
        cells[cycles] = codes

    def occupy_stream(self, stream: int, start: int, cycles: Ints, end: int) -> None:
        """Likewise a stream, for values at position ``start`` in some ascending cycles that are read at ``end``."""
        east, low = stream < self.per, min(start, end)
        row, diagonal = self.streams[not east], self._diagonal(east, start, 0) + cycles
        cells = window(row, 0, (int(diagonal[-1]) + 1) * self.per * self.width).reshape(-1, self.per, self.width)
        for x in range(low, max(start, end) + 1):
            taken = cells[:, stream % self.per, x]
            assert not taken[diagonal].any(), "two values on one stream register"
            taken[diagonal] = 1

    def banks(self, addresses: Ints) -> Ints:
        """The codes of the banks of addresses."""
        return addresses // self.half % BANK_CODES + 1

    def pair(self, start: int, end: int, cycle: int, count: int) -> NDArray[np.bool_]:
        """[cycle, stream of the direction]: where two vectors from position ``start`` can pass ``end`` one after the
        other, the first of them in ``cycle`` or one of the ``count`` - 1 after it."""
        east, low, high = end > start, min(start, end), max(start, end) + 1
        stride = self.per * self.width
        cells = window(self.streams[not east], self._diagonal(east, end, cycle) * stride, (count + 1) * stride)
        clear = cells.reshape(count + 1, self.per, self.width)[:, :, low:high].max(axis=2) == 0
        return clear[:-1] & clear[1:]

    def opening(self, streams: Sequence[int], east: bool, start: int, cycle: int, end: int) -> int:
        """In how many cycles, as far as known, a vector that would be at ``start`` in ``cycle`` can take one of some
        streams of a direction to ``end``."""
        low, high = min(start, end), max(start, end) + 1
        stride = self.per * self.width
        cells = window(self.streams[not east], self._diagonal(east, start, cycle) * stride, AHEAD * stride)
        shut = cells.reshape(AHEAD, self.per, self.width)[:, streams, low:high].max(axis=2).min(axis=1)
        return int(shut.argmin()) if not shut.all() else AHEAD

    def fetchable(self, queue: str, cycle: int, count: int) -> NDArray[np.bool_]:
        """In which of ``count`` cycles from ``cycle`` :meth:`ifetch` can have a slot."""
        return np.any([window(row, cycle, count) == 0 for row in self._fetching(queue)], axis=0)

    def _fetching(self, queue: str) -> list[bytearray]:
        """The rows of which one must be free for an ``ifetch``."""
        if not queue.startswith("mem"):
            return [self.queues[queue]]
        slice_ = int(queue[3:])
        return [self.writes[slice_], self.reads[slice_]]

    def _cells(self, passage: Passage, start: int, count: int) -> Bytes:
        """[cycle of arrival, option, stream, position]: the registers of all streams of the passage's direction."""
        planes, stride = len(passage.slices), self.per * self.width
        diagonal = self._diagonal(passage.east, passage.x, start)
        cells = window(self.streams[not passage.east], diagonal * stride, count * stride)
        low, high = passage.span
        return cells.reshape(count, self.per // planes, planes, self.width)[..., low:high]
