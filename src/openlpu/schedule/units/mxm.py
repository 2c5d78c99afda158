"""Weight tiles and activation vectors in; MXM instructions out, with exact sums stored as 32-bit vectors.

A plane works tile after tile: load the buffer, install it, let activations pass, collect sums in accumulators.  The
buffer of the next tile fills while the array works on this one.

The planes of a hemisphere share the streams towards the edge.  Where tiles come in one long run, each plane keeps to
streams of its own, as many as a load takes: they are free only in the cycle in which the plane installs, and there the
activations of the tile before pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from openlpu.schedule.assembler import Assembler
from openlpu.schedule.expression import Later, Taken, leaves
from openlpu.schedule.guide import Guide
from openlpu.schedule.timeline import Ints
from openlpu.schedule.values import Vec


@dataclass
class Plane:
    """What the scheduler remembers of one MXM plane."""

    name: str
    hemisphere: int
    x: int
    own: int  # the first of its own streams, counted in their direction
    tiles: int = 0
    buffer_from: int = 0  # first cycle a load may be dispatched: after the last install
    last_load: int = -1
    loads: dict[int, int] = field(default_factory=dict)  # buffer group -> id of its load
    array_from: int = 0  # first cycle an activation meets the installed tile
    array: int = 0  # id of the install
    last_activate: int = -1
    slot: int = 0
    slot_last: dict[int, tuple[int, int]] = field(default_factory=dict)  # slot -> (cycle, accumulate id)

    def passed(self, slot: int, cycle: int, total: int) -> None:
        """Remember an activation and its accumulate."""
        self.last_activate = max(self.last_activate, cycle)
        self.slot_last[slot] = (cycle, total)


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of a plane's installed tile with one int8 vector, on top of what accumulator ``slot`` holds (``clear``: of
    nothing), on their way to the VXM."""

    mxm: Mxm
    plane: Plane
    row: Vec
    slot: int
    clear: bool
    array: int

    @property
    def lead(self) -> int:
        """Cycles from the dispatch of the activation until the sums pass the VXM."""
        chip = self.mxm.chip
        return chip.latency["matmul"] + chip.latency["accumulate"] + abs(self.plane.x - chip.vxm_position)

    def earliest(self) -> int:
        """First cycle in which they can pass the VXM."""
        return self.mxm.earliest(self.plane, self.row, self.slot) + self.lead

    def arrive(self, cycle: int) -> Taken | None:
        """Take all that they need to pass the VXM in a cycle, or None."""
        assert self.plane.array == self.array, "sums are read before the next tile is installed"
        asm, at = self.mxm.asm, cycle - self.lead
        done = self.mxm.pass_row(self.plane, self.row, self.slot, at, clear=self.clear)
        if done is None:
            return None
        post = at + self.lead - abs(self.plane.x - asm.chip.vxm_position)
        base = asm.timeline.stream_group(4, self.plane.x, post, asm.chip.vxm_position)
        if base is None:
            return None
        total = asm.next_id
        asm.next_id += 1
        done(total, {"emit": 1, "stream": base})
        return base, [(total, part) for part in range(4)]

    def kept(self) -> Vec:
        """The same by way of SRAM."""
        out = self.mxm.activate(self.plane, self.row, self.slot, clear=self.clear, emit=True)
        assert out is not None, "what is emitted is kept"
        return out


class Mxm:
    """All MXM planes of a chip."""

    def __init__(self, asm: Assembler) -> None:
        self.asm, self.chip = asm, asm.chip
        per, width = self.chip.streams_per_direction, self.chip.weight_streams
        self.planes = [
            Plane(f"mxm{'we'[h]}{i}", h, self.chip.mxm_position(h), i * width % per)
            for i in range(self.chip.mxm_planes_per_hemisphere)
            for h in (0, 1)
        ]
        self.waiting: dict[str, list[Later]] = {}

    def awaited(self, plane: Plane, later: Later) -> Later:
        """A result of a plane's sums, and maybe others': it is made before the next install, with all that is made of
        it."""
        others = (leaf.plane.name for leaf in leaves(later.op) if isinstance(leaf, Sums))
        for name in dict.fromkeys([plane.name, *others]):
            self.waiting.setdefault(name, []).append(later)
        return later

    def awaits(self, plane: int, later: Later) -> bool:
        """Whether the next install of a plane makes a result that is not made yet."""
        return later.vec is None and later in self.waiting.get(self.planes[plane].name, ())

    def pick(self, hemisphere: int | None = None) -> Plane:
        """For work that has no home in SRAM of its own: the plane with the fewest tiles so far."""
        options = [p for p in self.planes if hemisphere in (None, p.hemisphere)]
        return min(options, key=lambda p: p.tiles)

    def pick_some(self, hemisphere: int, count: int) -> list[Plane]:
        """One or two planes of a hemisphere, as many as are asked for and it has, likewise."""
        return sorted((p for p in self.planes if p.hemisphere == hemisphere), key=lambda p: p.tiles)[: min(count, 2)]

    def new_slot(self, plane: Plane) -> int:
        """An accumulator for one row of sums; they are used in turn."""
        plane.slot = (plane.slot + 1) % self.chip.accumulators
        return plane.slot

    def load_bank(
        self, plane: Plane, rows: Vec, count: int, guide: Guide, experts: int, *, steady: bool, group: int = 0
    ) -> None:
        """As :meth:`load`, of rows of several experts side by side: those of the one that a map names."""
        options = self._options(plane, len(rows.slices), steady)
        at = rows.address + experts * np.arange(count)
        found = guide.fetch(f"{plane.name}.weights", rows, at, plane.x, plane.buffer_from, options)
        self._loaded(plane, group + np.arange(count), 1, *found)

    def load(self, plane: Plane, group: int, rows: Vec, count: int = 1, *, steady: bool = False,
             order: Sequence[int] = ()) -> None:
        """16 rows of the buffer from 16 streams, and those of the next groups from the addresses behind, ``count``
        groups in all, or in another ``order``; a vector of one plane fills all rows with itself.  ``steady``: on
        streams of its own first."""
        rows = self.asm.closest(rows, plane.x)
        same, half = len(rows.slices) == 1, self.asm.timeline.half
        at = rows.address + (np.zeros(count, np.int64) if same else np.array(order[:count] or range(count)))
        for bank in np.unique(at // half):
            here = np.flatnonzero(at // half == bank)
            self._load(plane, group + here, rows, at[here], steady)

    def _load(self, plane: Plane, groups: Ints, rows: Vec, addresses: Ints, steady: bool) -> None:
        """:meth:`load` within one bank."""
        planes = len(rows.slices)
        options = self._options(plane, planes, steady)
        found = self.asm.fetch_each(f"{plane.name}.weights", rows, addresses, plane.x, plane.buffer_from, options)
        self._loaded(plane, groups, 0 if planes == 1 else 1, *found)

    def _options(self, plane: Plane, planes: int, steady: bool) -> tuple[int, ...]:
        """Where a load's streams may begin, in multiples of ``planes``; those of its own plane first."""
        own, runs = plane.own // planes if steady else 0, self.chip.streams_per_direction // planes
        return tuple((own + k) % runs for k in range(runs))

    def _loaded(self, plane: Plane, groups: Ints, step: int, cycles: Ints, streams: Ints, reads: Ints) -> None:
        """Load what arrives in these cycles, read by ``reads`` [groups, planes]."""
        asm, width, queue = self.asm, self.chip.weight_streams, f"{plane.name}.weights"
        ids = asm.take_ids(len(groups))
        asm.emit_each(queue, cycles, "load_weights", ids, stream=streams, group=groups, step=step)
        asm.claim_each(ids[:, None], np.arange(width), reads, False, 0)
        plane.loads |= zip(groups.tolist(), ids.tolist(), strict=True)
        plane.last_load = max(plane.last_load, int(cycles[-1]))

    def load_twice(self, planes: tuple[Plane, Plane], rows: Vec, count: int) -> None:
        """``count`` groups of 16 rows into the buffers of two planes of a hemisphere, each read once; the second one
        has the halves of the tile exchanged."""
        asm, x = self.asm, planes[0].x
        start = max(asm.earliest(rows, x), *(plane.buffer_from for plane in planes))
        for i in range(count):
            row = replace(rows, address=rows.address + i)
            groups = i, (i + count // 2) % count

            def attempt(cycle: int, row: Vec = row, groups: tuple[int, int] = groups) -> int | None:
                if not all(asm.timeline.queue(f"{plane.name}.weights", cycle) for plane in planes):
                    return None
                got = asm.fetch(row, x, cycle)
                if got is None:
                    return None
                reads = [(j, source, False, 0) for j, source in enumerate(got[1])]
                for plane, group in zip(planes, groups, strict=True):
                    fields = {"stream": got[0], "group": group, "step": 1}
                    plane.loads[group] = asm.emit(f"{plane.name}.weights", cycle, "load_weights", reads, **fields)
                return cycle

            start = asm.search(start, attempt) + 1
        for plane in planes:
            plane.last_load = max(plane.last_load, start - 1)

    def load_transposed(self, planes: Sequence[Plane], group: int, rows: Vec, guide: Guide | None = None) -> None:
        """16 vectors through an SXM transposer into 16 rows of the buffers of some planes of a hemisphere."""
        asm, width = self.asm, self.chip.weight_streams
        hemisphere, x = planes[0].hemisphere, planes[0].x
        sxm = self.chip.sxm_position(hemisphere)
        delay = self.chip.latency["transpose"] + abs(x - sxm)
        side = f"sxm{'we'[hemisphere]}"
        queues = f"{side}.transpose0", f"{side}.transpose1"

        def attempt(cycle: int) -> int | None:
            if not all(asm.timeline.queue(f"{plane.name}.weights", cycle + delay) for plane in planes):
                return None
            queue = asm.timeline.either(queues, cycle)
            got = (guide.one if guide else asm.fetch)(rows, sxm, cycle) if queue else None
            if got is None or queue is None:
                return None
            base = asm.timeline.stream_group(width, sxm, cycle + self.chip.latency["transpose"], x)
            if base is None:
                return None
            reads = [(i, source, False, 0) for i, source in enumerate(got[1])]
            number = asm.emit(queue, cycle, "transpose", reads, stream=got[0], dst=base)
            fields = {"stream": base, "group": group, "step": 1}
            for plane in planes:
                plane.loads[group] = asm.emit(
                    f"{plane.name}.weights", cycle + delay, "load_weights",
                    [(i, number, False, i) for i in range(width)], **fields,
                )
            return cycle + delay

        start = max(*(plane.buffer_from - delay for plane in planes), asm.earliest(rows, sxm))
        last = asm.search(start, attempt)
        for plane in planes:
            plane.last_load = max(plane.last_load, last)

    def install(self, plane: Plane, pause: int = 0) -> None:
        """Make the loaded rows the array, as soon as the activations of the tile before are through.

        ``pause``: cycles without a load behind it.
        """
        for later in self.waiting.pop(plane.name, ()):
            later.finish()
        asm = self.asm
        settle = self.chip.latency["install"]
        reads = [(group, number, False, 0) for group, number in sorted(plane.loads.items())]

        def attempt(cycle: int) -> int | None:
            if not asm.timeline.queue(f"{plane.name}.weights", cycle):
                return None
            plane.array = asm.emit(f"{plane.name}.weights", cycle, "install_weights", reads)
            return cycle

        cycle = asm.search(max(plane.last_load + 1, plane.last_activate - settle + 1), attempt)
        plane.buffer_from, plane.array_from = cycle + 1 + pause, cycle + settle
        plane.loads.clear()
        plane.tiles += 1

    def activate(
        self, plane: Plane, row: Vec, slot: int, *, clear: bool, emit: bool, steady: bool = False
    ) -> Vec | None:
        """Pass one int8 vector; sums go to accumulator ``slot`` and, with ``emit``, on into SRAM.

        ``steady``: on streams of its plane only, because the planes beside it load, or will load, in every cycle.
        """
        asm, lat = self.asm, self.chip.latency
        among = range(plane.own, plane.own + self.chip.weight_streams) if steady else None

        def attempt(cycle: int) -> tuple[Vec | None] | None:
            done = self.pass_row(plane, row, slot, cycle, clear=clear, among=among)
            if done is None:
                return None
            total = asm.next_id
            asm.next_id += 1
            if not emit:
                done(total, {})
                return (None,)
            place = asm.store(plane.x, cycle + lat["matmul"] + lat["accumulate"], [total] * 4)
            if place is None:
                return None
            done(total, {"emit": 1, "stream": place[0]})
            return (place[1],)

        return asm.search(self.earliest(plane, row, slot), attempt)[0]

    def sums(self, plane: Plane, row: Vec, slot: int, *, clear: bool) -> Sums:
        """Like :meth:`activate` with ``emit``, straight to the VXM; for a tree that is run before the next install."""
        return Sums(self, plane, row, slot, clear, plane.array)

    def earliest(self, plane: Plane, row: Vec, slot: int) -> int:
        """First cycle in which a vector can meet the installed tile, sums before it in the accumulator."""
        return max(plane.array_from, self.asm.earliest(row, plane.x), plane.slot_last.get(slot, (-1, 0))[0] + 1)

    def pass_row(
        self, plane: Plane, row: Vec, slot: int, cycle: int, *, clear: bool, among: Sequence[int] | None = None
    ) -> Callable[[int, dict[str, int]], None] | None:
        """Dispatch an activation in a cycle, or None; what dispatches its accumulate, given its id and more fields."""
        asm, arrive = self.asm, cycle + self.chip.latency["matmul"]
        queues = f"{plane.name}.activations", f"{plane.name}.accumulate"
        if not (asm.timeline.queue(queues[0], cycle) and asm.timeline.queue(queues[1], arrive)):
            return None
        got = asm.fetch(row, plane.x, cycle, among) if among else asm.shared(row, plane.x, cycle)
        if got is None:
            return None
        reads = [(0, got[1][0], False, 0), (1, plane.array, False, 0)]
        number = asm.emit(queues[0], cycle, "activate", reads, stream=got[0])

        def accumulate(total: int, fields: dict[str, int]) -> None:
            before = plane.slot_last.get(slot, (-1, 0))
            sums = [(0, number, False, 0)] + ([] if clear else [(1, before[1], False, 0)])
            asm.emit_as(total, queues[1], arrive, "accumulate", sums, {"slot": slot, "clear": int(clear), **fields})
            asm.settle.append(lambda: plane.passed(slot, cycle, total))

        return accumulate
