"""Reservations against sets of what is taken; many at once against one after the other; the rate of weight loads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu.arch.chip import load_chip
from openlpu.arch.isa import BY_NAME
from openlpu.place.sram import Sram
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.timeline import SPELL, Passage, Timeline
from openlpu.schedule.units.mxm import Mxm
from openlpu.schedule.values import Vec
from openlpu.target.chip.machine import resolve

TINY, REAL = load_chip("tiny"), load_chip("lpu-v1")


class Sets:
    """The same questions answered with sets: a register of a stream is (stream, position, cycle)."""

    def __init__(self, chip):
        self.chip, self.taken, self.ports = chip, set(), {}

    def queue(self, name, cycle):
        return cycle >= 0 and self.take({(name, cycle)})

    def stream(self, stream, start, cycle, end):
        step = 1 if stream < self.chip.streams_per_direction else -1
        return self.take({(stream, x, cycle + abs(x - start)) for x in range(start, end + step, step)})

    def memory(self, slice_, cycle, address, write):
        bank = None if address is None else address * self.chip.banks // self.chip.words_per_slice
        beside = self.ports.get((slice_, cycle, not write), "free")
        clash = beside != "free" and (beside == bank or None in (beside, bank))
        if cycle < 0 or (slice_, cycle, write) in self.ports or clash:
            return False
        self.ports[slice_, cycle, write] = bank
        return True

    def take(self, cells):
        if cells & self.taken:
            return False
        self.taken |= cells
        return True


asks = st.one_of(
    st.tuples(st.just("queue"), st.sampled_from(["vxm0", "mxme0.weights"]), st.integers(-1, 6)),
    st.tuples(st.just("memory"), st.integers(0, 1), st.integers(-1, 4), st.sampled_from([None, 0, 4000]),
              st.booleans()),
    st.tuples(st.just("east"), st.integers(0, 1), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("west"), st.integers(32, 33), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
)


@given(st.lists(asks, max_size=60))
@settings(max_examples=100, deadline=None)
def test_reservations_agree_with_sets(questions):
    timeline, sets = Timeline(TINY), Sets(TINY)
    for kind, *arguments in questions:
        if kind in ("east", "west"):
            stream, a, cycle, b = arguments
            start, end = (min(a, b), max(a, b)) if kind == "east" else (max(a, b), min(a, b))
            kind, arguments = "stream", (stream, start, cycle, end)
        mark = timeline.mark()
        if getattr(timeline, kind)(*arguments):
            timeline.undo(mark)  # leaves no trace
            assert getattr(timeline, kind)(*arguments) and getattr(sets, kind)(*arguments)
        else:
            assert not getattr(sets, kind)(*arguments)


def occupied(seed, share):
    """An assembler on the tiny chip where a share of ports, streams and slots is taken, the same for a seed."""
    asm, rng = Assembler(TINY, Sram(TINY, ())), np.random.default_rng(seed)
    for cycle in range(400):
        for s in rng.integers(0, TINY.slices, int(share * TINY.slices)).tolist():
            asm.timeline.memory(s, cycle, int(rng.integers(0, TINY.words_per_slice)), bool(rng.integers(2)))
        for s in rng.integers(0, 64, rng.binomial(6, share)).tolist():
            low, high = sorted(rng.integers(0, TINY.positions, 2).tolist())
            asm.timeline.stream(s, *((low, cycle + 20, high) if s < 32 else (high, cycle + 20, low)))
        if rng.random() < share:
            asm.timeline.queue("mxmw0.weights", cycle)
    asm.timeline.keep()
    return asm


@pytest.mark.parametrize("share", [0.0, 0.02, 0.06])
@pytest.mark.parametrize("slices", [tuple(range(16)), tuple(range(4, 20)), (17,), (0,)])
def test_many_at_once_are_as_one_after_the_other(share, slices):
    """The same cycles, streams, instructions and claims."""
    for seed in range(3):
        vec = Vec(slices, 40, 9, tuple(range(1, 1 + len(slices))))
        many, one = occupied(seed, share), occupied(seed, share)
        options = (1, 0) if len(slices) == 16 else (3, 5, *range(20, 32))
        start = 12
        cycles, streams, _ = many.fetch_each("mxmw0.weights", vec, 40 + np.arange(12), 0, start, options)
        for k in range(12):
            row = Vec(slices, 40 + k, 9, vec.writers)
            among = [o * len(slices) for o in options]

            def attempt(cycle, asm=one, row=row, among=among):
                got = asm.timeline.queue("mxmw0.weights", cycle) and asm.fetch(row, 0, cycle, among)
                return (cycle, got[0]) if got else None

            cycle, stream = one.search(max(start, one.earliest(vec, 0)), attempt)
            assert (cycle, stream) == (cycles[k], streams[k])
            start = cycle + 1
        (a, claims), (b, wanted) = many.finish(), one.finish()
        assert all(np.array_equal(a[name], b[name]) for name in a)
        assert sorted(claims.reads.tolist()) == sorted(wanted.reads.tolist())
        assert many.timeline.streams[1].rstrip(b"\0") == one.timeline.streams[1].rstrip(b"\0")


def test_a_search_passes_over_what_is_taken():
    asm = Assembler(TINY, Sram(TINY, ()))
    for cycle in range(5000):
        asm.timeline.ifetch("vxm3", cycle)
        asm.timeline.memory(0, cycle + 3000, 7, write=False)
    asm.timeline.keep()
    tried = []

    def attempt(cycle):
        tried.append(cycle)
        return cycle if asm.timeline.queue("vxm3", cycle) and asm.timeline.memory(0, cycle, 7, write=False) else None

    asm.last = 10_000
    assert asm.search(10, attempt) == 8000 and tried == [10, 5000, 8000]


def test_what_an_attempt_takes_itself_is_not_passed_over():
    asm = Assembler(TINY, Sram(TINY, ()))
    asm.timeline.memory(0, 10, 7, write=False)
    asm.timeline.keep()

    def attempt(cycle):
        both = all(asm.timeline.memory(0, at, 7, write=False) for at in (cycle + 1, cycle))
        return cycle if both else None

    assert asm.search(10, attempt) == 11


def test_what_has_an_alternative_is_not_passed_over():
    asm = Assembler(TINY, Sram(TINY, ()))
    for cycle in range(100):
        asm.timeline.memory(0, cycle, 7, write=False)
    asm.timeline.queue("vxm0", 10)
    asm.timeline.keep()

    def attempt(cycle):
        for s in (0, 1):
            mark = asm.timeline.mark()
            if asm.timeline.memory(s, cycle, 7, write=False) and cycle > 12:
                return s, cycle
            asm.timeline.undo(mark)
        return None

    assert asm.search(5, attempt) == (1, 13)


def test_a_search_for_what_cannot_be_is_an_error():
    asm = Assembler(TINY, Sram(TINY, ()))

    def attempt(cycle):
        return (asm.timeline.memory(0, cycle, None, True) and asm.timeline.memory(0, cycle, 0, False)) or None

    with pytest.raises(AssertionError, match="no cycle from 5 on is free"):
        asm.search(5, attempt)


def test_the_way_of_a_passage():
    passage = Passage(TINY, tuple(range(16)), 0)
    assert not passage.east and passage.span == (0, 6)
    assert passage.lead == [2 + s // 4 + 3 for s in range(16)]
    assert passage.way.sum(axis=1).tolist() == [3 + s // 4 for s in range(16)]


def test_weights_flow_at_nearly_the_full_rate_on_all_planes():
    """A tile of 20 loads every 21 cycles on each of four planes: the install takes a slot, activations its streams."""
    asm = Assembler(REAL, Sram(REAL, ()))
    mxm, tiles = Mxm(asm), 40
    side = REAL.slices_per_hemisphere
    row = Vec((side - 3,), 10)
    for number, plane in enumerate(mxm.planes):
        first = 16 * (number // 2) if plane.hemisphere == 0 else 2 * side - 16 * (number // 2 + 1)
        slices = tuple(range(first, first + 16))
        for k in range(tiles + 1):
            if k < tiles:
                rows = Vec(slices, 4080 + 20 * k, 0, (0,) * 16)  # the first over the border of two banks
                mxm.load(plane, 0, rows, 20, steady=True)
            if k:
                mxm.activate(plane, row, 5, clear=k == 1, emit=k == tiles, steady=k < tiles)
            if k < tiles:
                mxm.install(plane)
    queues, claims = asm.finish()
    resolve(REAL, queues, claims)
    loads = [q["cycle"][q["op"] == BY_NAME["load_weights"].opcode] for n, q in queues.items() if n.endswith(".weights")]
    assert [len(c) for c in loads if len(c)] == [20 * tiles] * 4
    assert all(int(c[-1] - c[0]) <= 21 * tiles + 10 for c in loads if len(c))


def test_a_queue_that_is_wanted_in_every_cycle_keeps_slots_to_fetch_in() -> None:
    timeline, name = Timeline(TINY), "sxmw.permute"
    assert all(timeline.queue(name, c) for c in range(SPELL, 0, -1)) and not timeline.queue(name, 0)
    assert not timeline.queue(name, SPELL + 1) and timeline.later() == 1
    later = [c for c in range(SPELL + 2, 10 * SPELL) if timeline.queue(name, c)]
    runs = np.diff([SPELL + 1, *(c for c in range(SPELL + 2, 10 * SPELL) if c not in later)])
    assert runs.max() == SPELL + 1 and timeline.ifetch(name, SPELL + 1), "fetches take what is kept for them"


def test_a_clock_set_right_is_no_run() -> None:
    timeline = Timeline(TINY)
    timeline.hold(0, 10 * SPELL)
    assert timeline.queue("sxmw.permute", 10 * SPELL), "what comes first behind it is waited for by other chips"
