"""Vector operations in; instructions at cycles out: each call finds the first cycle in which everything is free.

The scheduler is greedy and keeps no graph: a call takes vectors that know when they are ready, walks cycles until
the unit, the SRAM ports and every stream register on the way are free at once, reserves them, and returns the vector
it made.  Calls made later may land in earlier cycles, so the order of calls is a priority, not a sequence.
Beside every instruction goes its claim: which instruction's value each operand is meant to be.

What comes in hundreds of thousands, the rows of weights, is found, taken and emitted as columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.isa import BY_NAME
from openlpu.place.sram import Sram
from openlpu.schedule.program import CLAIM_OUTPUT, CLAIM_PASSED, CLAIM_READ, Claims, queue_dtype
from openlpu.schedule.temporaries import Temporaries
from openlpu.schedule.timeline import Ints, Passage, Timeline
from openlpu.schedule.values import Vec

T = TypeVar("T")
Claim = tuple[int, int, bool, int]  # operand, writer, or_resident, part: the columns of CLAIM_READ after the reader
BEYOND = 1000  # more than any operand's way: so long after the last instruction everything is free
DOUBT = 24  # cycles tried in vain after which it is worth asking whether there can be one at all
SLACK = 64  # cycles that a search for many looks at beyond as many as it wants, at first


class Assembler:
    """One chip's program under construction."""

    def __init__(self, chip: Chip, sram: Sram) -> None:
        self.chip, self.sram = chip, sram
        self.timeline, self.temporaries = Timeline(chip), Temporaries(sram)
        self.position = [chip.slice_position(s) for s in range(chip.slices)]
        self.by_distance: dict[int, list[int]] = {}  # MEM groups, the nearest to a position first
        self.passages: dict[tuple[tuple[int, ...], int], Passage] = {}
        self.rows: dict[str, list[tuple[int, ...]]] = {name: [] for name in chip.queues}
        self.columns: dict[str, list[NDArray]] = {name: [] for name in chip.queues}  # emitted many at once
        self.reads: list[tuple[int, int, int, bool, int]] = []
        self.claims: list[NDArray] = []  # reads of what was emitted many at once
        self.outputs: list[tuple[int, int, int, bool]] = []
        self.passed: list[tuple[int, int, int, int]] = []
        self.pending: list[tuple[str, tuple[int, ...], list[Claim]]] = []
        self.settle: list[Callable[[], None]] = []  # what units remember of what is pending
        self.passing: dict[tuple[tuple[int, ...], int, int, int], tuple[int, list[int]]] = {}  # by :meth:`shared`
        self.next_id = 1
        self.last = 0  # no instruction is dispatched later, so far
        self.floor = 0  # whatever is still to come arrives in this cycle or later
        self.turn = 0
        self.wait = 1  # after a trial in vain: cycles until it is worth another
        self.dtype = {name: queue_dtype(name) for name in chip.queues}
        self.fields = {name: (dtype.names or ())[3:] for name, dtype in self.dtype.items()}

    # -- places ------------------------------------------------------------------------------------------------

    def group_slices(self, group: int) -> tuple[int, ...]:
        """The slices of a MEM group; groups count from the west edge."""
        per = self.chip.slices_per_register
        return tuple(range(group * per, (group + 1) * per))

    def group(self, slices: tuple[int, ...]) -> int:
        """The MEM group that slices are of."""
        return slices[0] // self.chip.slices_per_register

    def x(self, vec: Vec) -> int:
        """Stream register where a vector's first plane lives."""
        return self.position[vec.slices[0]]

    def near(self, x: int, *, close: bool = False) -> list[int]:
        """MEM groups by distance from a position, rotated among the nearest so that neighbours share the load, if not
        ``close``."""
        groups = self.by_distance.get(x)
        if groups is None:
            at = [self.position[self.group_slices(g)[0]] for g in range(2 * self.chip.groups)]
            groups = self.by_distance[x] = sorted(range(len(at)), key=lambda g: abs(at[g] - x))
        self.turn += 1
        k = 0 if close else self.turn % min(6, len(groups))
        return groups[k:] + groups[:k]

    def side(self, hemisphere: int) -> tuple[int, ...]:
        """All slices of a hemisphere (0: west)."""
        per = self.chip.slices_per_hemisphere
        return tuple(range(hemisphere * per, (hemisphere + 1) * per))

    # -- search ------------------------------------------------------------------------------------------------

    def search(self, start: int, attempt: Callable[[int], T | None]) -> T:
        """The result of ``attempt`` at the first cycle from ``start`` where all it wants is free."""
        start = max(start, self.floor)
        result = self._tried(start, attempt, max(start, self.last) + BEYOND)
        assert result is not None, f"no cycle from {start} on is free though all are: two operands want the same port"
        return result

    def sought(
        self, start: int, attempt: Callable[[int], T | None], reads: Sequence[tuple[int, int, int]] = (),
        trials: int | None = None,
    ) -> T | None:
        """Like :meth:`search`, but None where two operands want the same port in every cycle, or after so many
        ``trials``; ``attempt`` changes nothing but what can be undone.  ``reads``: what it cannot do without
        (:meth:`Timeline.readable`)."""
        start = max(start, self.floor)
        if trials:
            return self._tried(start, attempt, start + trials, reads)
        end = max(start, self.last) + BEYOND
        found = self._tried(start, attempt, min(start + DOUBT, end), reads)
        if found is None and self.possible(attempt, end):
            found = self._tried(start + DOUBT, attempt, end, reads)
        return found

    def possible(self, attempt: Callable[[int], object], end: int = 0) -> bool:
        """Whether there is a cycle for it at all: behind everything, there should be one."""
        return self.trial(max(end, self.last + BEYOND, self.floor), attempt, final=False) is not None

    def _tried(
        self, start: int, attempt: Callable[[int], T | None], end: int, reads: Sequence[tuple[int, int, int]] = ()
    ) -> T | None:
        """Cycles are passed over in which something that it cannot do without is known to be taken."""
        cycle = self.timeline.readable(reads, start)
        while cycle < end:
            result = self.trial(cycle, attempt)
            if result is not None:
                return result
            cycle = self.timeline.readable(reads, cycle + self.wait)
        return None

    def ports(self, vec: Vec, x: int, offset: int = 0) -> list[tuple[int, int, int]]:
        """The reads by which a vector passes position ``x`` in ``offset`` cycles, as :meth:`Timeline.readable` takes
        them."""
        vec, wait = self.closest(vec, x), self.chip.latency["read"] - offset
        bank = self.timeline.bank(vec.address)
        return [(s, bank, abs(x - self.position[s]) + wait) for s in vec.slices]

    def hold(self, queue: str, wait: int) -> None:
        """Let the chip wait once all that was emitted is done; the rest of the program comes behind."""
        start = self.last + max(self.chip.latency.values()) if self.next_id > 1 else 0
        self.emit(queue, start, "runtime_deskew", delay=wait)
        self._commit()
        self.floor = self.last = start + wait
        self.timeline.hold(start, self.floor)

    def trial(self, cycle: int, attempt: Callable[[int], T | None], *, final: bool = True) -> T | None:
        """The result of ``attempt`` at a cycle, all that it took and emitted now ``final``; or nothing done."""
        mark, count, first = self.timeline.mark(), len(self.pending), self.next_id
        self.settle.clear()
        self.passing.clear()
        result = attempt(cycle)
        if result is not None and final:
            self.timeline.keep()
            self._commit()
            return result
        later = self.timeline.later
        self.timeline.undo(mark)
        self.temporaries.undo()
        self.wait = max(1, later())
        del self.pending[count:]
        self.next_id = first
        return result

    def emit(
        self, queue: str, cycle: int, name: str, reads: Iterable[Claim] = (), **fields: int
    ) -> int:
        """Propose an instruction with its claims; returns its id."""
        number = self.next_id
        self.next_id += 1
        row = (cycle, BY_NAME[name].opcode, number, *[fields.get(f, 0) for f in self.fields[queue]])
        self.pending.append((queue, row, list(reads)))
        return number

    def emit_as(self, number: int, queue: str, cycle: int, name: str, reads: list[Claim],
                 fields: dict[str, int]) -> None:
        """Emit under an id that was taken before, because others had to claim it first."""
        after = self.next_id
        self.next_id = number
        self.emit(queue, cycle, name, reads, **fields)
        self.next_id = after

    def _commit(self) -> None:
        for queue, row, reads in self.pending:
            self.rows[queue].append(row)
            self.last = max(self.last, row[0])
            self.reads.extend((row[2], *claim) for claim in reads)
        self.pending.clear()
        for remember in self.settle:
            remember()
        self.temporaries.commit()

    # -- operands and results ----------------------------------------------------------------------------------

    def fetch(
        self, vec: Vec, x: int, arrive: int, among: Sequence[int] | None = None
    ) -> tuple[int, list[int]] | None:
        """Read a vector so that it passes position ``x`` in cycle ``arrive``: (first stream, reads' ids) or None.

        ``among``: the streams it may begin on, counted in its direction, in order of preference (None: any).
        """
        vec = self.closest(vec, x)
        timeline, lead, width = self.timeline, self.chip.latency["read"], len(vec.slices)
        trips = [(at, arrive - abs(x - at)) for at in map(self.position.__getitem__, vec.slices)]
        for s, (_, leave) in zip(vec.slices, trips, strict=True):
            if leave - lead < vec.ready or not timeline.memory(s, leave - lead, vec.address, write=False):
                return None
        options = range(0, self.chip.streams_per_direction, width) if among is None else among
        base = timeline.side_by_side(trips, x, options)
        if base is None:
            if among is not None and width == 1:
                timeline.later = lambda: timeline.opening(among, x > trips[0][0], *trips[0], x)
            return None
        ids = []
        for i, (s, (_, leave)) in enumerate(zip(vec.slices, trips, strict=True)):
            self.temporaries.use(s, vec.address, leave - lead)
            claim = [(0, vec.writers[i], vec.or_resident, vec.address)]
            ids.append(self.emit(f"mem{s}", leave - lead, "read", claim, address=vec.address, stream=base + i))
        return base, ids

    def shared(self, vec: Vec, x: int, arrive: int) -> tuple[int, list[int]] | None:
        """Likewise, unless the same trial has it pass there in that cycle already: then it is read once for both."""
        key = vec.slices, vec.address, x, arrive
        if (got := self.passing.get(key) or self.fetch(vec, x, arrive)) is not None:
            self.passing[key] = got
        return got

    def store(self, x: int, post: int, writers: Sequence[int], avoid: tuple[int, ...] = (),
              side: int | None = None, *, close: bool = False) -> tuple[int, Vec] | None:
        """Route a result posted at ``x`` in cycle ``post`` to a temporary row, of hemisphere ``side`` if that is given:
        (first stream, vector) or None."""
        planes, full = len(writers), True
        for group in self.near(x, close=close):
            if side is not None and side != (group >= self.chip.groups):
                continue
            slices = self.group_slices(group)
            at = self.position[slices[0]]
            if at == x or set(slices) & set(avoid) or not self.temporaries.possible(group):
                continue
            full = False
            cycle = post + abs(at - x)
            address = self.temporaries.find(group, cycle)
            if address is None:
                continue
            mark = self.timeline.mark()
            if all(self.timeline.memory(s, cycle, address, write=True) for s in slices[:planes]):
                base = self.timeline.stream_group(planes, x, post, at, prefer=self.turn)
                if base is not None:
                    return base, self._write(slices[:planes], cycle, base, writers)
            self.timeline.undo(mark)
        if full:
            raise self.sram.does_not_fit("no row is left for a value inside the token")
        return None

    def _write(self, slices: tuple[int, ...], cycle: int, base: int, writers: Sequence[int]) -> Vec:
        address, _ = self.temporaries.take(self.group(slices), cycle)
        whole = len(set(writers)) == 1  # one instruction made all planes, or each plane has its own
        ids = tuple(
            self.emit(f"mem{s}", cycle, "write", [(0, w, False, i if whole else 0)], address=address, stream=base + i)
            for i, (s, w) in enumerate(zip(slices, writers, strict=True))
        )
        return Vec(slices, address, cycle + self.chip.latency["write"], ids)

    def closest(self, vec: Vec, x: int) -> Vec:
        """The copy of a vector that can pass position ``x`` first."""
        other = vec.twin
        return other if other and self._earliest(other, x) < self._earliest(vec, x) else vec

    def earliest(self, vec: Vec, x: int) -> int:
        """First cycle in which a vector can pass position ``x``."""
        return self._earliest(self.closest(vec, x), x)

    def _earliest(self, vec: Vec, x: int) -> int:
        return vec.ready + self.chip.latency["read"] + max(abs(x - self.position[s]) for s in vec.slices)

    # -- many at once ------------------------------------------------------------------------------------------

    def fetch_each(
        self, queue: str, vec: Vec, addresses: Ints, x: int, start: int, options: tuple[int, ...]
    ) -> tuple[Ints, Ints, Ints]:
        """Read ``vec`` at each of some addresses of one bank, one after the other, each as early as it can pass ``x``
        when ``queue`` has a dispatch slot; all that is taken is final.

        ``options`` as in :meth:`Timeline.open`.  Returns cycles of arrival, first streams, ids of the reads
        [reads, planes].
        """
        passage = self.passages.get((vec.slices, x))
        if passage is None:
            passage = self.passages[vec.slices, x] = Passage(self.chip, vec.slices, x)
        bank, count = self.timeline.bank(int(addresses[0])), len(addresses)
        start, reach = max(start, self.earliest(vec, x), self.floor), count + SLACK
        while True:
            cycles, chosen = self.timeline.open(queue, passage, bank, options, start, reach)
            if len(cycles) >= count:
                break
            reach *= 2
        cycles, chosen = cycles[:count], chosen[:count]
        self.timeline.take(queue, passage, bank, cycles, chosen)
        planes = len(vec.slices)
        streams = chosen * planes + (0 if passage.east else self.chip.streams_per_direction)
        ids = self.take_ids(count * planes).reshape(count, planes)
        for i, (s, lead) in enumerate(zip(vec.slices, passage.lead, strict=True)):
            self.emit_each(f"mem{s}", cycles - lead, "read", ids[:, i], address=addresses, stream=streams + i)
            self.temporaries.use(s, vec.address, int(cycles[-1]) - lead)
        self.claim_each(ids, 0, np.array(vec.writers[:planes]), vec.or_resident, addresses[:, None])
        return cycles, streams, ids

    def take_ids(self, count: int) -> Ints:
        """The next ``count`` instruction ids."""
        self.next_id += count
        return np.arange(self.next_id - count, self.next_id)

    def emit_each(
        self, queue: str, cycles: Ints, name: str, ids: Ints, **fields: ArrayLike
    ) -> None:
        """Instructions of one kind, under ids taken before; they are final."""
        table = np.zeros(len(cycles), self.dtype[queue])
        table["cycle"], table["op"], table["id"] = cycles, BY_NAME[name].opcode, ids
        for field, value in fields.items():
            table[field] = value
        self.columns[queue].append(table)
        self.last = max(self.last, int(cycles[-1]))

    def claim_each(
        self, readers: Ints, operand: ArrayLike, writers: ArrayLike, or_resident: bool, part: ArrayLike
    ) -> None:
        """Claims of many instructions; arguments broadcast."""
        shape = np.broadcast_shapes(*map(np.shape, (readers, operand, writers, part)))
        table = np.zeros(shape, CLAIM_READ)
        table["reader"], table["operand"], table["writer"], table["part"] = readers, operand, writers, part
        table["or_resident"] = or_resident
        self.claims.append(table.ravel())

    # -- result ------------------------------------------------------------------------------------------------

    def queue(self, name: str) -> NDArray:
        """The instructions of a queue so far, sorted."""
        parts = self.columns[name]
        parts.append(np.array(self.rows[name], self.dtype[name]))
        self.rows[name].clear()
        table, at = np.empty(sum(map(len, parts)), self.dtype[name]), 0
        for part in parts:
            table[at : at + len(part)] = part
            at += len(part)
        return table[np.lexsort((table["id"], table["cycle"]))]

    def finish(self) -> tuple[dict[str, NDArray], Claims]:
        """Sorted queues and the claims table."""
        queues = {name: self.queue(name) for name in self.chip.queues}
        reads = np.concatenate([np.array(self.reads, CLAIM_READ), *self.claims])
        return queues, Claims(reads, np.array(self.outputs, CLAIM_OUTPUT), np.array(self.passed, CLAIM_PASSED))
