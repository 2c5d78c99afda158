"""A matrix product with homes in; its program out: every instruction in columns, fetches included.

A step is a tile and a block: the activations of the block's rows pass while the next step's tile is loaded, and the
install that ends a load falls where the array is free without a gap.  Steps follow each other without a choice, so
there is nothing to search: cycles are sums, and what is taken is noted for the fetches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openlpu._base.errors import DoesNotFit
from openlpu.arch.chip import Chip
from openlpu.place.homes import Resident
from openlpu.place.product import Engine, Homing, Ints, Product, Store, Tiling, place_product, tilings
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.fetch import fetched, keep
from openlpu.schedule.program import RESIDENT, Claims

STEP_BYTES = 8  # of instructions that a step has for the accumulators, about: one of them, repeated
PAUSE = 32  # steps, a third of what a fetch brings, after which they leave a cycle free to fetch in
FROM = 16  # streams outward: of loads the first ones, of activations from here on, if loads leave them free


@dataclass(frozen=True)
class ProductProgram:
    """``queues`` and ``claims`` as in a :class:`~openlpu.schedule.program.Segment`; ``cycles``: first dispatch to last
    sum written; ``resident``: the instructions that are fetched."""

    homing: Homing
    queues: dict[str, NDArray]
    claims: Claims
    cycles: int
    resident: tuple[Resident, ...]

    @property
    def tiling(self) -> Tiling:
        """How the product was cut."""
        return self.homing.tiling

    @property
    def utilisation(self) -> float:
        """Products made by the products that all cycles have room for."""
        return self.tiling.product.macs / (self.cycles * self.tiling.product.peak(self.tiling.chip))

    def parts(self) -> dict[str, int]:
        """Where the cycles went; they add up to all of them."""
        t, p, chip = self.tiling, self.tiling.product, self.tiling.chip
        whole = p.m * -(-p.n // chip.lanes) * t.chunks  # passes of a row through a tile
        level = [-(-p.macs // p.peak(chip)), -(-whole // len(t.engines)), sum(t.blocks) * t.rounds * t.chunks,
                 t.cycles, self.cycles]
        names = ("products at the peak", "tiles that k and n do not fill", "planes with less to do than others",
                 "waiting for weights", "the way in and out, fetches, other chips")
        return dict(zip(names, np.diff(level, prepend=0).tolist(), strict=True))


def compile_product(product: Product, chip: Chip) -> ProductProgram:
    """The program of the split that takes fewer cycles, if it fits, or of the other.

    Raises :class:`~openlpu._base.errors.DoesNotFit` where neither does.
    """
    first, second = tilings(product, chip)
    try:
        return schedule_product(place_product(first))
    except DoesNotFit:
        return schedule_product(place_product(second))


def schedule_product(homing: Homing) -> ProductProgram:
    """The program.  Raises :class:`~openlpu._base.errors.DoesNotFit` where instructions find no room."""
    asm = Assembler(homing.tiling.chip, homing.homes.sram)
    return finish(asm, homing, max(part.last for part in multiply(asm, homing)))


def multiply(asm: Assembler, homing: Homing) -> list[Sums]:
    """All of a product but its fetches; the sums of each engine that has some."""
    steps = _Steps(homing.tiling)
    return [part for side in (0, 1) for part in _Side(asm, homing, steps, side).emit()]


def finish(asm: Assembler, homing: Homing, last: int) -> ProductProgram:
    """The program with its fetches; ``last``: the cycle after the last result is written."""
    queues, claims, first, pages = fetched(asm, homing.homes)
    keep(homing.homes, "0", queues, pages)
    homing.homes.sram.require_fit()
    resident = tuple(homing.homes.resident.values())
    return ProductProgram(homing, queues, claims, last - first, resident)


@dataclass(frozen=True)
class Sums:
    """What an engine made: for each vector its row of the activations and its tile, where it lies, when a read may be
    dispatched, and the writes of its planes [n, 4]."""

    row: Ints
    tile: Ints
    slices: Ints  # [n, 4]
    address: Ints
    ready: Ints
    writers: Ints

    @property
    def last(self) -> int:
        """The cycle after the last write."""
        return int(self.ready.max())


class _Steps:
    """Columns over all steps: block, round, chunk, the cycle in which activations begin, loads' first and distance."""

    def __init__(self, t: Tiling) -> None:
        chip, settle = t.chip, t.chip.latency["install"]
        shape = len(t.blocks), t.rounds, t.chunks
        self.block, self.round, self.chunk = (part.ravel() for part in np.indices(shape))
        period = np.array(t.periods, np.int64)[self.block]
        if len(period) * STEP_BYTES > chip.queue_bytes:
            period[PAUSE - 1 :: PAUSE] += 1  # no sum arrives then: its queue can fetch
        before = np.append(period[:1], period[:-1])  # while the step in front takes place, this one's tile is loaded
        margin = period[0] + settle + chip.positions + chip.latency["read"]
        self.start = margin + np.cumsum(period) - period
        self.install = self.start - settle
        window = self.install - before + 1
        if t.between:
            done = np.array(t.blocks, np.int64)[np.append(self.block[:1], self.block[:-1])] + settle - 1
            self.load, self.every = window + done, np.ones(len(period), np.int64)
        else:
            self.load = window
            self.every = np.maximum(1, np.minimum(before // t.groups, (before - 1 - t.loaders) // max(t.groups - 1, 1)))


@dataclass(frozen=True)
class _Tiles:
    """Weights on their way: per step of ``work`` the cycles of its loads, and the ids of the reads behind each."""

    work: Ints
    cycles: Ints  # [steps, groups]
    reads: Ints  # [steps, groups, vectors of a load]


@dataclass(frozen=True)
class _Rows:
    """Activations on their way: step, row of its block, cycle at the edge and id of the read, for each."""

    step: Ints
    row: Ints
    cycle: Ints
    read: Ints

    def of(self, work: Ints) -> _Rows:
        """Those of some steps."""
        mine = np.isin(self.step, work)
        return _Rows(*(part[mine] for part in (self.step, self.row, self.cycle, self.read)))


class _Side:
    """The engines of one hemisphere: what they share is read once, for the first, which has most to do."""

    def __init__(self, asm: Assembler, homing: Homing, steps: _Steps, hemisphere: int) -> None:
        self.asm, self.homing, self.t, self.steps = asm, homing, homing.tiling, steps
        self.chip, self.x = self.t.chip, self.t.chip.mxm_position(hemisphere)
        per = self.chip.streams_per_direction
        self.outward, self.inward = (per, 0) if hemisphere == 0 else (0, per)
        self.numbers = [i for i, e in enumerate(self.t.engines) if e.hemisphere == hemisphere]
        self.kind = "_fp16" if self.t.product.form == "fp16" else ""

    def emit(self) -> Iterator[Sums]:
        """All instructions; what each engine makes."""
        t = self.t
        tiles: _Tiles | None = None
        rows: _Rows | None = None
        for number in self.numbers:
            e = t.engines[number]
            work = np.flatnonzero((t.sizes(e)[self.steps.block] > 0) & (self.steps.round < len(e.tiles)))
            if not len(work):
                continue
            if tiles is None or not t.shared:
                tiles = self._tiles(number, work)
            if rows is None or t.shared:
                rows = self._rows(number, work)
            installs = self._install(e, work, tiles)
            yield self._multiply(number, rows.of(work), work, installs)

    def _tiles(self, number: int, work: Ints) -> _Tiles:
        """Read the weights of an engine, ``groups`` loads a step."""
        t, s, e = self.t, self.steps, self.t.engines[number]
        store, group = self.homing.weights[number], np.arange(t.groups)
        turn, lane = (0, e.index * self.chip.weight_streams) if t.between else (e.index * (not t.shared), 0)
        cycles = (s.load[work] + turn)[:, None] + s.every[work][:, None] * group
        tile = s.round[work] * t.chunks + s.chunk[work]
        which, address = store.at((tile[:, None] * t.groups + group).ravel())
        reads = np.zeros((cycles.size, self.chip.weight_streams), np.int64)
        for k, slices in enumerate(store.sets):
            mine = np.flatnonzero(which == k)
            for i, slice_ in enumerate(slices):
                stream = self.outward + lane + i
                reads[mine, i] = self._read(slice_, cycles.ravel()[mine], address[mine], stream)
        return _Tiles(work, cycles, reads.reshape(*cycles.shape, -1))

    def _rows(self, number: int, work: Ints) -> _Rows:
        """Read the activations of an engine."""
        t, s, e = self.t, self.steps, self.t.engines[number]
        size = t.sizes(e)[s.block[work]]
        step = np.repeat(work, size)
        row = np.arange(len(step)) - np.repeat(np.cumsum(size) - size, size)
        block = s.block[step]
        vector = t.starts()[block] * t.chunks + s.chunk[step] * t.sizes(e)[block] + row
        store, cycle = self.homing.activations[number], s.start[step] + row
        which, address = store.at(vector)
        reads = np.zeros(len(step), np.int64)
        for k, (slice_,) in enumerate(store.sets):
            mine = np.flatnonzero(which == k)
            if len(mine):
                reads[mine] = self._read(slice_, cycle[mine], address[mine], self._stream(e))
        return _Rows(step, row, cycle, reads)

    def _stream(self, e: Engine) -> int:
        """On which stream the activations of an engine come."""
        return self.outward + FROM + (e.index if self.t.shared else 0)

    def _install(self, e: Engine, work: Ints, tiles: _Tiles) -> Ints:
        """Load and install an engine's tiles; the ids of the installs."""
        asm, at = self.asm, np.searchsorted(tiles.work, work)
        queue, cycles = f"{e.name}.weights", tiles.cycles[at]
        loads = asm.take_ids(cycles.size).reshape(cycles.shape)
        lane = e.index * self.chip.weight_streams if self.t.between and not self.t.shared else 0
        self._dispatch(queue, cycles.ravel(), "load_weights", loads.ravel(), stream=self.outward + lane,
                       group=np.tile(np.arange(self.t.groups), len(work)), step=1)
        asm.claim_each(loads[..., None], np.arange(self.chip.weight_streams), tiles.reads[at], False, 0)
        installs = asm.take_ids(len(work))
        self._dispatch(queue, self.steps.install[work], "install_weights", installs)
        asm.claim_each(installs[:, None], np.arange(self.t.groups), loads, False, 0)
        return installs

    def _multiply(self, number: int, rows: _Rows, work: Ints, installs: Ints) -> Sums:
        """Pass the rows, add up their sums, write those that are whole."""
        t, s, e, asm, lat = self.t, self.steps, self.t.engines[number], self.asm, self.chip.latency
        acts, sums = asm.take_ids(len(rows.step)), asm.take_ids(len(rows.step))
        arrive, chunk = rows.cycle + lat["matmul"], s.chunk[rows.step]
        clear, emit = chunk == 0, chunk == t.chunks - 1
        self._dispatch(f"{e.name}.activations", rows.cycle, f"activate{self.kind}", acts, stream=self._stream(e))
        asm.claim_each(acts, 0, rows.read, False, 0)
        asm.claim_each(acts, 1, installs[np.searchsorted(work, rows.step)], False, 0)
        quad = self.inward + 4 * e.index
        name = "accumulate_fp32" if self.kind else "accumulate"
        self._dispatch(f"{e.name}.accumulate", arrive, name, sums, slot=rows.row, clear=clear, emit=emit,
                       stream=np.where(emit, quad, 0))
        asm.claim_each(sums, 0, acts, False, 0)
        size = t.sizes(e)[s.block[rows.step]]
        again = np.flatnonzero(~clear)
        asm.claim_each(sums[again], 1, sums[again - size[again]], False, 0)
        whole = np.flatnonzero(emit)
        block = s.block[rows.step[whole]]
        turn, first = s.round[rows.step[whole]], t.starts()[block]
        vector = first * len(e.tiles) + turn * size[whole] + rows.row[whole]
        where = self._write(self.homing.sums[number], vector, arrive[whole] + lat["accumulate"], quad, sums[whole])
        return Sums(e.rows.start + first + rows.row[whole], np.array(e.tiles)[turn], *where)

    # -- instructions, and what they take ------------------------------------------------------------------------

    def _dispatch(self, queue: str, cycles: Ints, name: str, ids: Ints, **fields: ArrayLike) -> None:
        self.asm.emit_each(queue, cycles, name, ids, **fields)
        if not queue.startswith("mem"):
            self.asm.timeline.occupy(self.asm.timeline.queues[queue], cycles)

    def _read(self, slice_: int, arrive: Ints, address: Ints, stream: int) -> Ints:
        """Read words so that they are at the edge in those cycles; the reads' ids."""
        asm, at = self.asm, self.chip.slice_position(slice_)
        leave, ids = arrive - abs(self.x - at), asm.take_ids(len(arrive))
        cycles = leave - self.chip.latency["read"]
        self._dispatch(f"mem{slice_}", cycles, "read", ids, address=address, stream=stream)
        asm.claim_each(ids, 0, RESIDENT, False, address)
        asm.timeline.occupy(asm.timeline.reads[slice_], cycles, asm.timeline.banks(address))
        asm.timeline.occupy_stream(stream, at, leave, self.x)
        return ids

    def _write(self, store: Store, vector: Ints, post: Ints, quad: int, sums: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Write quads posted at the edge; slices, addresses, when they may be read, and the writes."""
        asm = self.asm
        which, address = store.at(vector)
        ready, writers = np.zeros(len(vector), np.int64), np.zeros((len(vector), 4), np.int64)
        for k, slices in enumerate(store.sets):
            mine = np.flatnonzero(which == k)
            for plane, slice_ in enumerate(slices if len(mine) else ()):
                at = self.chip.slice_position(slice_)
                cycles, ids = post[mine] + abs(self.x - at), asm.take_ids(len(mine))
                self._dispatch(f"mem{slice_}", cycles, "write", ids, address=address[mine], stream=quad + plane)
                asm.claim_each(ids, 0, sums[mine], False, plane)
                asm.timeline.occupy(asm.timeline.writes[slice_], cycles, asm.timeline.banks(address[mine]))
                asm.timeline.occupy_stream(quad + plane, self.x, post[mine], at)
                asm.outputs.extend((slice_, a, w, False) for a, w in zip(address[mine].tolist(), ids.tolist(),
                                                                         strict=True))
                ready[mine] = np.maximum(ready[mine], cycles + self.chip.latency["write"])
                writers[mine, plane] = ids
        return np.array(store.sets, np.int64)[which], address, ready, writers
