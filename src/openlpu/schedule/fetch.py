"""A scheduled segment in; the same with instruction fetches, and the rows of SRAM they read, out.

A queue starts a token with its first ``queue_bytes`` bytes; the rest lies in SRAM as pages of two vectors.  Pages are
fetched in the order in which queues would run empty, each as early as the queue's room and the streams, ports and
dispatch slots that the segment left free allow: a full queue lasts through runs without a free slot.  A fetch makes
its queue longer, and its reads that of a MEM queue: what was fetched before must still be in time, or it is tried
elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import DoesNotFit, ProgramError
from openlpu.arch.chip import Chip
from openlpu.arch.encoding import encode, joints
from openlpu.arch.isa import BY_NAME
from openlpu.place.emplace import Source
from openlpu.place.homes import Homes
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.program import RESIDENT, Claims

Ints = NDArray[np.int64]
REACH = 32  # cycles in which a slice is looked for at once
READ, IFETCH = BY_NAME["read"].opcode, BY_NAME["ifetch"].opcode


@dataclass(frozen=True)
class Queue:
    """The instructions of one queue in order, cycles from the segment's first, with the byte offsets of ``joints`` and
    where repeats may join them; ``sent``: rows of its fetches."""

    chip: Chip
    columns: NDArray
    cycle: Ints
    start: Ints
    end: Ints
    joined: NDArray[np.bool_]
    sent: Ints

    @property
    def size(self) -> int:
        """Encoded bytes."""
        return int(self.end[-1]) if len(self.end) else 0

    @property
    def complete(self) -> bool:
        """Whether nothing is left to fetch."""
        return self.size <= self.chip.queue_bytes + len(self.sent) * self.chip.ifetch_bytes

    def deadline(self, fetches: NDArray[np.intp] | int) -> Ints:
        """The cycle in which more must be there than the host and so many fetches bring."""
        held = self.chip.queue_bytes + np.asarray(fetches) * self.chip.ifetch_bytes
        found = np.searchsorted(self.end, held, "right")
        i = np.minimum(found, len(self.end) - 1)
        wait = np.where(i > 0, self.cycle[i - 1], -1) + 1  # when what lies in front of an instruction begins
        due = np.where(self.start[i] > held, np.minimum(self.cycle[i], wait), self.cycle[i])
        return np.where(found == len(self.end), self.cycle[-1] + 1, due)

    @property
    def room(self) -> int:
        """The first cycle in which the next page has room."""
        keep = (len(self.sent) + 1) * self.chip.ifetch_bytes
        return int(self.cycle[min(int(np.searchsorted(self.end, keep)), len(self.end) - 1)])

    def in_time(self) -> bool:
        """Whether every fetch finds something to bring and room for it, and has brought it when the queue would run
        empty."""
        k = np.arange(len(self.sent))
        if len(k) and self.size <= self.chip.queue_bytes + int(k[-1]) * self.chip.ifetch_bytes:
            return False  # a delay that was cut in two can take fewer bytes than before
        brought = self.cycle[self.sent] + self.chip.latency["ifetch"]
        roomy = self.end[self.sent] >= (k + 1) * self.chip.ifetch_bytes
        return bool((roomy & (brought <= self.deadline(k))).all())

    def with_(self, cycles: list[int], op: int, **fields: list[int]) -> Queue | None:
        """The queue with instructions of ``op`` added; None if a fetch would come too late or find no room.

        Only what may share a repeat with them is encoded anew; all behind moves by as many bytes.
        """
        rows = np.zeros(len(cycles), self.columns.dtype)
        rows["cycle"], rows["op"] = cycles, op
        for name, values in fields.items():
            rows[name] = values
        at = np.searchsorted(self.cycle, cycles, "right")
        joined = self.joined.tobytes()
        low = joined.rfind(0, 0, max(int(at[0]) - 1, 0)) + 1
        high = joined.find(0, int(at[-1])) + 1 or len(self.cycle)
        front = low - (low > 0)  # encoded again, to know the gap to the first
        part = queue_of(self.chip, np.insert(self.columns[front:high], at - front, rows))
        base = int(self.end[front] - part.end[0]) if low else 0
        more = base + part.size - (int(self.end[high - 1]) if high else 0)
        start, end = part.start[low - front :] + base, part.end[low - front :] + base
        sent = np.searchsorted(self.sent, (front, high))
        longer = Queue(
            self.chip, _around(self.columns, part.columns, front, high), _around(self.cycle, part.cycle, front, high),
            _around(self.start, start, low, high, more), _around(self.end, end, low, high, more),
            _around(self.joined, part.joined, front, max(high - 1, 0)),  # between two: an empty queue has none
            _around(self.sent, part.sent + front, int(sent[0]), int(sent[1]), len(rows)),
        )
        return longer if longer.in_time() else None


def queue_of(chip: Chip, columns: NDArray) -> Queue:
    """A queue from its instructions."""
    start, end, joined = joints(columns)
    sent = np.flatnonzero(columns["op"] == IFETCH)
    return Queue(chip, columns, columns["cycle"].astype(np.int64), start, end, joined, sent)


def _around(whole: NDArray, part: NDArray, low: int, high: int, more: int = 0) -> NDArray:
    """``whole`` with ``part`` in place of low to high, and ``more`` added to what lies behind."""
    end = low + len(part)
    out = np.empty(end + len(whole) - high, whole.dtype)
    out[:low], out[low:end], out[end:] = whole[:low], part, whole[high:]
    if more:
        out[end:] += more
    return out


@dataclass(frozen=True)
class Page:
    """The next bytes of ``queue`` lie in ``slice_`` at ``address`` and the one after it."""

    queue: str
    slice_: int
    address: int


class Fetcher:
    """Inserts the fetches of one segment; ``pages`` are those placed so far.

    ``alike``: how many segments its schedule may serve.  Then each has room for its pages, and as those lie in one bank
    or another, nothing is written to a slice in the cycle in which it sends one."""

    def __init__(self, asm: Assembler, homes: Homes, alike: int = 1) -> None:
        self.asm, self.alike = asm, alike
        self.pages: list[Page] = []
        slices = range(asm.chip.slices)
        self.left = [homes.sram.room((s,)) // alike for s in slices]  # rows for more pages
        self.next = [homes.sram.bottom[s] for s in slices]  # the first of them
        self.at = [asm.chip.slice_position(s) for s in slices]
        tables = {name: asm.queue(name) for name in asm.chip.queues}
        self.first = min(int(table["cycle"][0]) for table in tables.values() if len(table))
        for table in tables.values():
            table["cycle"] -= self.first
        self.queues = {name: queue_of(asm.chip, table) for name, table in tables.items()}
        self.sizes = [self.queues[f"mem{s}"].size for s in slices]

    def all(self) -> None:
        """Fetch until every queue is complete, the one that runs empty first, first."""
        due: dict[str, int] = {}
        changed = set(self.queues)
        while True:
            for name in sorted(changed):
                queue = self.queues[name]
                if name.startswith("mem"):
                    self.sizes[int(name[3:])] = queue.size
                due.pop(name, None)
                if not queue.complete:
                    due[name] = int(queue.deadline(len(queue.sent)))
            if not due:
                return
            changed = self._fetch(min(due, key=lambda name: (due[name], name)))

    def _fetch(self, name: str) -> set[str]:
        """Fetch the next page of a queue; the queues that changed."""
        queue, wait = self.queues[name], self.asm.chip.latency["ifetch"]
        count = len(queue.sent)
        cycle, due = queue.room, int(queue.deadline(count))
        if count:
            cycle = max(cycle, int(queue.cycle[queue.sent[-1]]) + wait)
        slices = able = self._able(name)  # mostly one of them can send at once
        while cycle <= due - wait:
            if changed := self.asm.trial(cycle, lambda c, slices=slices: self._at(name, c, slices)):
                return changed
            ahead, slices = self._senders(name, cycle + 1, min(REACH, max(due - wait - cycle, 1)), able)
            cycle += ahead + 1
        if all(left < 2 for left in self.left):
            raise DoesNotFit("no rows are left for instructions", where=f"chip {self.asm.chip.name}",
                             fix="use a larger chip, a smaller --chunk, a shorter --context or a smaller model")
        held = self.asm.chip.queue_bytes + count * self.asm.chip.ifetch_bytes
        raise ProgramError(
            f"its bytes from {held} on cannot be fetched before cycle {due}, in which they are dispatched", where=name,
            fix="use a chip whose queues hold more (queue_bytes)",
        )

    def _senders(self, name: str, cycle: int, count: int, able: list[int]) -> tuple[int, list[int]]:
        """The first of ``count`` cycles from ``cycle`` in which some of the slices ``able`` can send a page, counted
        from it, and these slices.  If there is none, the last cycle and no slice."""
        chip, timeline = self.asm.chip, self.asm.timeline
        there, at = chip.queue_position(name), cycle + self.first
        slot, best, found = timeline.fetchable(name, at, count), count - 1, []
        for slices in map(self.asm.group_slices, range(2 * chip.groups)):
            here = chip.slice_position(slices[0])
            lead = abs(there - here) + chip.latency["read"]
            skip = max(lead - cycle, 0)  # reads before the first cycle
            good = slot[: best + 1] & timeline.pair(here, there, at, best + 1).any(axis=1)
            free = [k for k in np.flatnonzero(good).tolist() if k >= skip]
            for s in slices:
                row = timeline.reads[s]
                k = next((k for k in free if not any(row[at + k - lead : at + k - lead + 2])), None)
                if k is None or k > best or s not in able:
                    continue
                found, best = (found if k == best else []) + [s], k
        return best, [s for s in able if s in found]

    def _able(self, name: str) -> list[int]:
        """Slices with room for a page of a queue, the one with the shortest queue first."""
        own = int(name[3:]) if name.startswith("mem") else -1
        return sorted((s for s, left in enumerate(self.left) if left >= 2 and s != own), key=lambda s: self.sizes[s])

    def _at(self, name: str, cycle: int, slices: list[int]) -> set[str] | None:
        """Fetch a page by an ``ifetch`` in ``cycle`` from the first of some slices that can send it."""
        if not self.asm.timeline.ifetch(name, cycle + self.first):
            return None
        for s in slices:
            found = self._way(s, name, cycle)
            if found is None:
                continue
            read, stream, source = found
            queue = self.queues[name].with_([cycle], IFETCH, stream=[stream])
            if queue is None:
                return None
            self._send(s, read, name, cycle, stream)
            self.queues[name], self.queues[f"mem{s}"] = queue, source
            return {name, f"mem{s}"}
        return None

    def _way(self, slice_: int, name: str, cycle: int) -> tuple[int, int, Queue] | None:
        """Take a way for a page's two vectors from a slice to a queue that they reach in ``cycle`` and the next: the
        first read, the stream, and the slice's queue after that; or None."""
        chip, timeline = self.asm.chip, self.asm.timeline
        here, there, address = self.at[slice_], chip.queue_position(name), self.next[slice_]
        read = cycle - abs(there - here) - chip.latency["read"]
        mark = timeline.mark()
        rows = (address, address + 1) if self.alike == 1 else (None, None)
        if read >= 0 and all(timeline.memory(slice_, read + self.first + i, row, False) for i, row in enumerate(rows)):
            stream = self._stream(here, read + chip.latency["read"] + self.first, there)
            if stream is not None:
                fields = {"address": [address, address + 1], "stream": [stream, stream]}
                source = self.queues[f"mem{slice_}"].with_([read, read + 1], READ, **fields)
                if source is not None:
                    return read, stream, source
        timeline.undo(mark)
        return None

    def _send(self, slice_: int, read: int, name: str, cycle: int, stream: int) -> None:
        """Emit the two reads and the ``ifetch``."""
        address = self.next[slice_]
        reads = [self.asm.emit(f"mem{slice_}", read + self.first + i, "read", [(0, RESIDENT, False, address + i)],
                               address=address + i, stream=stream) for i in (0, 1)]
        claims = [(i, number, False, 0) for i, number in enumerate(reads)]
        self.asm.emit(name, cycle + self.first, "ifetch", claims, stream=stream)
        self.pages.append(Page(name, slice_, address))
        self.next[slice_] += 2
        self.left[slice_] -= 2

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


def fetched(asm: Assembler, homes: Homes, alike: int = 1) -> tuple[dict[str, NDArray], Claims, int, list[Page]]:
    """Sorted queues with their fetches, in cycles from the first dispatch; the claims; the assembler's cycle of that
    dispatch; the pages, which :func:`keep` gives their rows; ``alike`` as :class:`Fetcher` takes it."""
    fetcher = Fetcher(asm, homes, alike)
    fetcher.all()
    queues, claims = asm.finish()
    for queue in queues.values():
        queue["cycle"] -= fetcher.first
    return queues, claims, fetcher.first, fetcher.pages


def keep(homes: Homes, segment: str, queues: Mapping[str, NDArray], pages: list[Page]) -> None:
    """Give the pages their rows in SRAM and fill these with the encoded queues, as `instructions.<segment>.<slice>`."""
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
        home = homes.keep(f"instructions.{segment}.{slice_}", Source("bytes", data=data), (slice_,), len(data))
        assert home.address == min(p.address for p in pages if p.slice_ == slice_), "pages lie where they are read"
