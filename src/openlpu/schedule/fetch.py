"""A scheduled segment in; the same with instruction fetches, and the rows of SRAM they read, out.

A queue starts a token with its first ``queue_bytes`` bytes; the rest lies in SRAM as pages of two vectors.  Pages are
fetched in the order in which queues would run empty, each as early as the queue's room and the streams, ports and
dispatch slots that the segment left free allow: a full queue lasts through runs without a free slot.  A fetch makes
its queue longer, and its reads that of a MEM queue: what was fetched before must still be in time, or it is tried
elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import DoesNotFit, ProgramError
from openlpu.arch.chip import Chip
from openlpu.arch.encoding import encode, extents
from openlpu.arch.isa import BY_NAME
from openlpu.place.emplace import Source
from openlpu.place.layout import Homes
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.program import RESIDENT

Ints = NDArray[np.int64]
READ, IFETCH = BY_NAME["read"].opcode, BY_NAME["ifetch"].opcode


@dataclass
class Queue:
    """The instructions of one queue in order, cycles from the segment's first; ``sent``: cycles of its fetches."""

    chip: Chip
    cycle: Ints
    op: Ints
    sent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start, self.end = extents(self.cycle, self.op)

    @property
    def size(self) -> int:
        """Encoded bytes."""
        return int(self.end[-1]) if len(self.end) else 0

    @property
    def complete(self) -> bool:
        """Whether nothing is left to fetch."""
        return self.size <= self.held(len(self.sent))

    def held(self, fetches: int) -> int:
        """Bytes that the host and so many fetches bring."""
        return self.chip.queue_bytes + fetches * self.chip.ifetch_bytes

    def deadline(self, fetches: int) -> int:
        """The cycle in which more than ``held(fetches)`` bytes must be there."""
        i = int(np.searchsorted(self.end, self.held(fetches), "right"))
        if i == len(self.end):
            return int(self.cycle[-1]) + 1
        before = int(self.cycle[i - 1]) if i else -1
        cycle = int(self.cycle[i])
        return min(cycle, before + 1) if self.start[i] > self.held(fetches) else cycle

    def room(self, fetches: int) -> int:
        """The first cycle in which the next page after so many fetches has room."""
        keep = self.held(fetches + 1) - self.chip.queue_bytes
        return int(self.cycle[min(int(np.searchsorted(self.end, keep)), len(self.end) - 1)])

    def with_(self, cycles: list[int], op: int) -> Queue | None:
        """The queue with instructions of ``op`` added; None if a fetch would come too late or find no room."""
        at = np.searchsorted(self.cycle, cycles, "right")
        sent = sorted([*self.sent, *cycles]) if op == IFETCH else self.sent
        longer = Queue(self.chip, np.insert(self.cycle, at, cycles), np.insert(self.op, at, op), sent)
        wait = self.chip.latency["ifetch"]
        fits = all(c + wait <= longer.deadline(k) and longer.room(k) <= c for k, c in enumerate(sent))
        return longer if fits else None


@dataclass(frozen=True)
class Page:
    """The next bytes of ``queue`` lie in ``slice_`` at ``address`` and the one after it."""

    queue: str
    slice_: int
    address: int


class Fetcher:
    """Inserts the fetches of one segment; ``pages`` are those placed so far."""

    def __init__(self, asm: Assembler, homes: Homes) -> None:
        self.asm, self.homes = asm, homes
        self.pages: list[Page] = []
        self.used = [0] * asm.chip.slices  # rows
        self.first = min(row[0] for rows in asm.rows.values() for row in rows)
        self.queues = {}
        for name, rows in asm.rows.items():
            table = np.array([row[:2] for row in sorted(rows, key=lambda r: (r[0], r[2]))], np.int64).reshape(-1, 2)
            self.queues[name] = Queue(asm.chip, table[:, 0] - self.first, table[:, 1])

    def all(self) -> None:
        """Fetch until every queue is complete, the one that runs empty first, first."""
        due: dict[str, int] = {}
        changed = set(self.queues)
        while True:
            for name in sorted(changed):
                queue = self.queues[name]
                due.pop(name, None)
                if not queue.complete:
                    due[name] = queue.deadline(len(queue.sent))
            if not due:
                return
            changed = self._fetch(min(due, key=lambda name: (due[name], name)))

    def _fetch(self, name: str) -> set[str]:
        """Fetch the next page of a queue; the queues that changed."""
        queue, wait = self.queues[name], self.asm.chip.latency["ifetch"]
        count = len(queue.sent)
        earliest = max(queue.room(count), queue.sent[-1] + wait if queue.sent else 0)
        for cycle in range(earliest, queue.deadline(count) - wait + 1):
            if changed := self.asm.trial(cycle, lambda c: self._at(name, c)):
                return changed
        if all(self._room(s) < 2 for s in range(self.asm.chip.slices)):
            raise DoesNotFit("no rows are left for instructions", where=f"chip {self.asm.chip.name}",
                             fix="use a larger chip, a shorter context (--context) or a smaller model")
        raise ProgramError(
            f"its bytes from {queue.held(count)} on cannot be fetched before cycle {queue.deadline(count)}, in which "
            "they are dispatched", where=name, fix="use a chip whose queues hold more (queue_bytes)",
        )

    def _room(self, slice_: int) -> int:
        """Rows left in a slice."""
        return self.homes.sram.room((slice_,)) - self.used[slice_]

    def _at(self, name: str, cycle: int) -> set[str] | None:
        """Fetch a page by an ``ifetch`` in ``cycle`` from the slice with the shortest queue that can send it."""
        if not self.asm.timeline.ifetch(name, cycle + self.first):
            return None
        queue = self.queues[name].with_([cycle], IFETCH)
        if queue is None:
            return None
        others = [s for s in range(self.asm.chip.slices) if f"mem{s}" != name]
        for s in sorted(others, key=lambda s: (self.queues[f"mem{s}"].size, s)):
            if self._room(s) < 2:
                continue
            source = self._send(s, name, cycle)
            if source is not None:
                self.queues[name], self.queues[f"mem{s}"] = queue, source
                return {name, f"mem{s}"}
        return None

    def _send(self, slice_: int, name: str, cycle: int) -> Queue | None:
        """Read a page's two vectors from a slice so that they reach the queue in ``cycle`` and the next; the slice's
        queue after that."""
        chip, timeline = self.asm.chip, self.asm.timeline
        here, there = chip.slice_position(slice_), chip.queue_position(name)
        read = cycle - abs(there - here) - chip.latency["read"]
        address = self.homes.sram.bottom[slice_] + self.used[slice_]
        mark = timeline.mark()
        if read < 0 or not all(timeline.memory(slice_, read + self.first + i, address + i, False) for i in (0, 1)):
            timeline.undo(mark)
            return None
        post = read + chip.latency["read"] + self.first
        stream = self._stream(here, post, there)
        queue = None if stream is None else self.queues[f"mem{slice_}"].with_([read, read + 1], READ)
        if stream is None or queue is None:
            timeline.undo(mark)
            return None
        reads = [self.asm.emit(f"mem{slice_}", read + self.first + i, "read", [(0, RESIDENT, False, address + i)],
                               address=address + i, stream=stream) for i in (0, 1)]
        claims = [(i, number, False, 0) for i, number in enumerate(reads)]
        self.asm.emit(name, cycle + self.first, "ifetch", claims, stream=stream)
        self.pages.append(Page(name, slice_, address))
        self.used[slice_] += 2
        return queue

    def _stream(self, start: int, post: int, end: int) -> int | None:
        """A stream that is free for two vectors one after the other; the last ones first, as others take the first."""
        timeline, per = self.asm.timeline, self.asm.chip.streams_per_direction
        first = 0 if end > start else per
        for stream in range(first + per - 1, first - 1, -1):
            mark = timeline.mark()
            if all(timeline.stream(stream, start, post + i, end) for i in (0, 1)):
                return stream
            timeline.undo(mark)
        return None


def keep(homes: Homes, context: int, queues: Mapping[str, NDArray], pages: list[Page]) -> None:
    """Give the pages their rows in SRAM and fill these with the encoded queues, as `instructions.<context>.<slice>`."""
    chip = homes.chip
    rows: dict[int, list[NDArray[np.uint8]]] = {}
    code: dict[str, bytes] = {}
    for page in pages:
        left = code.get(page.queue)
        if left is None:
            left = encode(page.queue, queues[page.queue])[chip.queue_bytes :]
        data = left[: chip.ifetch_bytes].ljust(chip.ifetch_bytes, b"\0")
        code[page.queue] = left[chip.ifetch_bytes :]
        rows.setdefault(page.slice_, []).append(np.frombuffer(data, np.uint8).reshape(2, 1, chip.lanes))
    for slice_, parts in sorted(rows.items()):
        data = np.concatenate(parts)
        home = homes.keep(f"instructions.{context}.{slice_}", Source("bytes", data=data), (slice_,), len(data))
        assert home.address == min(p.address for p in pages if p.slice_ == slice_), "pages lie where they are read"
