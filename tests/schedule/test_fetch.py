"""Instruction fetch in the scheduler: what is fetched, that it costs no cycle and no bit, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import BASE, LLAMA, random_graph, same, tokens

from openlpu._base.errors import DoesNotFit, ProgramError
from openlpu.arch.chip import load_chip
from openlpu.arch.encoding import decode, encode
from openlpu.arch.isa import BY_NAME
from openlpu.numerics.scheme import Scheme
from openlpu.place import emplace
from openlpu.place.layout import place
from openlpu.schedule import fetch
from openlpu.schedule.program import Program, queue_dtype
from openlpu.schedule.step import schedule
from openlpu.target.base import Chunk
from openlpu.target.chip.machine import resolve
from openlpu.target.chip.run import ChipExecutable
from openlpu.target.ref import run as ref

TINY = replace(load_chip("tiny"), queue_bytes=3 * load_chip("tiny").ifetch_bytes)
ENDLESS = replace(TINY, queue_bytes=TINY.ifetch_bytes << 20)
IFETCH = BY_NAME["ifetch"].opcode


@pytest.fixture(scope="module")
def graph():
    return random_graph(replace(BASE, layers=4), LLAMA, Scheme())


def compiled(graph, machine=TINY) -> Program:
    layout = place(graph, machine)
    return schedule(graph, layout, [32, 64])


def fetches(queue) -> int:
    return int((queue["op"] == IFETCH).sum())


def test_every_queue_fetches_what_it_does_not_hold(graph) -> None:
    program = compiled(graph)
    pages = 0
    for segment in program.segments:
        for name, queue in segment.queues.items():
            size = len(encode(name, queue))
            assert fetches(queue) == -(-max(size - TINY.queue_bytes, 0) // TINY.ifetch_bytes), name
            pages += fetches(queue)
    assert pages > 60
    rows = [item for item in program.resident if item.name.startswith("instructions.")]
    assert {item.name.split(".")[1] for item in rows} == {"32", "64"}
    assert sum(item.slices.size for item in rows) == 2 * pages


def test_sram_holds_the_program(graph) -> None:
    """A queue's bytes, the first as the host fills them, the others found by its fetches' claims, decode to it."""
    program = compiled(graph)
    word = {}
    for item in program.resident:
        if item.name.startswith("instructions."):
            data = emplace.vectors(item.source, len(item.addresses), 1, TINY.lanes, {})
            at = zip(item.slices[:, 0].tolist(), item.addresses.tolist(), strict=True)
            word |= {key: row.tobytes() for key, row in zip(at, data, strict=True)}
    segment = program.segments[1]
    place_of = {
        int(row["id"]): (int(name[3:]), int(row["address"]))
        for name, queue in segment.queues.items() if name.startswith("mem") for row in queue
    }
    writer = {(int(r["reader"]), int(r["operand"])): int(r["writer"]) for r in segment.claims.reads}
    checked = 0
    for name, queue in segment.queues.items():
        code = encode(name, queue)[: TINY.queue_bytes]
        for number in queue["id"][queue["op"] == IFETCH].tolist():
            code += b"".join(word[place_of[writer[number, i]]] for i in range(2))
            checked += 1
        without_ids = queue.copy()
        without_ids["id"] = 0
        assert (decode(name, code[: len(encode(name, queue))], queue_dtype(name)) == without_ids).all()
    assert checked > 30


@pytest.mark.parametrize("pages", [3, 4])
def test_fetching_changes_no_cycle_and_no_bit(graph, pages: int) -> None:
    endless, program = compiled(graph, ENDLESS), compiled(graph, replace(TINY, queue_bytes=pages * TINY.ifetch_bytes))
    assert sum(map(fetches, endless.segments[0].queues.values())) == 0
    assert sum(map(fetches, program.segments[0].queues.values())) > 20
    assert [s.cycles for s in program.segments] == [s.cycles for s in endless.segments]
    ids = tokens(3, graph.config)
    executable = ChipExecutable(program, graph.params)
    assert same(executable.run([Chunk(0, 0, ids, every=True)]), ref.load(graph).run([Chunk(0, 0, ids, every=True)]))


def test_compiling_twice_gives_the_same_bytes(graph) -> None:
    one, two = compiled(graph), compiled(graph)
    rows = [[(i.name, i.addresses.tolist(), None if i.source.data is None else i.source.data.tobytes())
             for i in p.resident] for p in (one, two)]
    assert rows[0] == rows[1]


def test_what_the_scheduler_fetches_the_referee_needs(graph) -> None:
    """Without its last fetch no queue runs to its end."""
    segment = compiled(graph).segments[0]
    for name, queue in segment.queues.items():
        if fetches(queue):
            last = int(np.flatnonzero(queue["op"] == IFETCH)[-1])
            with pytest.raises(ProgramError, match="the queue is empty"):
                resolve(TINY, {**segment.queues, name: np.delete(queue, last)})


def test_a_queue_that_holds_too_little_is_named(graph) -> None:
    message = r"\w+: its bytes from 512 on cannot be fetched before cycle \d+(?s:.)*queue_bytes"
    with pytest.raises(ProgramError, match=message):
        compiled(graph, replace(TINY, queue_bytes=TINY.ifetch_bytes))


def test_full_slices_have_no_room_for_instructions(graph, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fetch.Fetcher.all

    def full(self: fetch.Fetcher) -> None:
        self.left = [1] * len(self.left)
        run(self)

    monkeypatch.setattr(fetch.Fetcher, "all", full)
    with pytest.raises(DoesNotFit, match="no rows are left for instructions"):
        compiled(graph)


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans(), st.integers(1, 6)), min_size=1,
                  max_size=9),
    more=st.lists(st.integers(0, 60), min_size=1, max_size=4),
)
def test_a_queue_grows_as_if_it_were_encoded_anew(runs, more) -> None:
    """What is inserted into runs that repeats stand for, or beside them, moves bytes as a new encoding would."""
    steps = [run[:3] for run in runs for _ in range(run[3])]
    rows = np.zeros(len(steps), queue_dtype("mem0"))
    rows["cycle"] = np.cumsum([gap for gap, _, _ in steps])
    rows["address"] = np.cumsum([step for _, step, _ in steps])
    rows["op"] = [BY_NAME["read" if read else "write"].opcode for _, _, read in steps]
    queue = fetch.queue_of(TINY, rows)
    for cycle in more:
        at = np.searchsorted(queue.cycle, [cycle, cycle + 1], "right")
        new = np.zeros(2, rows.dtype)
        new["cycle"], new["op"], new["address"] = [cycle, cycle + 1], fetch.READ, [cycle, cycle + 1]
        want = fetch.queue_of(TINY, np.insert(queue.columns, at, new))
        longer = queue.with_([cycle, cycle + 1], fetch.READ, address=[cycle, cycle + 1])
        assert longer is not None
        for field in ("columns", "cycle", "start", "end", "joined", "sent"):
            assert (getattr(longer, field) == getattr(want, field)).all(), field
        queue = longer
