"""The engine: what shares a step, how prompts are cut and who waits never change an answer; ends are right."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu._base.errors import BadRequest
from openlpu.target.base import F32, Chunk
from openlpu.target.ref import run as ref
from openlpu.tokens.engine import Engine, Running
from openlpu.tokens.request import Request, Sampling
from openlpu.tokens.slots import Slots


class Recorder:
    """An executable that notes the chunks it was given and then runs them."""

    def __init__(self, inner: ref.RefExecutable) -> None:
        self.inner, self.slots, self.context = inner, inner.slots, inner.context
        self.steps: list[list[Chunk]] = []

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        self.steps.append(list(chunks))
        return self.inner.run(chunks)

    def close(self) -> None:
        self.inner.close()


def drain(engine: Engine) -> None:
    while not engine.idle:
        engine.step()


def alone(graph, request: Request, **options) -> Running:
    engine = Engine(ref.load(graph, context=64), vocab=96, **options)
    running = engine.add(request)
    drain(engine)
    return running


REQUESTS = [
    Request((5, 9, 77), max_tokens=6),
    Request(tuple(range(20, 41)), Sampling(temperature=1.0, seed=3), max_tokens=4),
    Request((1,), Sampling(temperature=0.7, top_k=9, top_p=0.9, seed=3, choice=1), max_tokens=7),
    Request((95, 0), Sampling(repetition_penalty=1.5), max_tokens=5),
]


@settings(max_examples=12, deadline=None)
@given(
    slots=st.integers(1, 4), chunk=st.sampled_from([0, 1, 2, 7]),
    arrivals=st.lists(st.integers(0, 5), min_size=4, max_size=4), order=st.permutations(range(4)),
)
def test_neighbours_chunks_and_arrival_change_no_bit(tiny, slots, chunk, arrivals, order):
    engine = Engine(ref.load(tiny, slots=slots, context=64), vocab=96, chunk=chunk)
    running: dict[int, Running] = {}
    for i in order:
        for _ in range(arrivals[i]):
            engine.step()
        running[i] = engine.add(REQUESTS[i])
    drain(engine)
    for i, request in enumerate(REQUESTS):
        want = alone(tiny, request)
        assert (running[i].ids, running[i].logits_sha256) == (want.ids, want.logits_sha256)


def test_a_step_takes_a_chunk_of_each_request_and_frees_slots_in_order(tiny):
    engine = Engine(recorder := Recorder(ref.load(tiny, slots=2, context=64)), vocab=96, chunk=2)
    engine.add(Request((1, 2, 3), max_tokens=2))
    engine.add(Request((4,), max_tokens=1))
    engine.add(Request((6,), max_tokens=1))
    drain(engine)
    shape = [[(c.slot, c.start, len(c.tokens)) for c in step] for step in recorder.steps]
    assert shape == [[(0, 0, 2), (1, 0, 1)], [(0, 2, 1), (1, 0, 1)], [(0, 3, 1)]]


def test_every_way_to_end(tiny):
    free = alone(tiny, Request((5, 9, 77), max_tokens=8))
    third = free.generated[2]
    at = free.generated.index(third)
    assert (free.finish, len(free.generated)) == ("max_tokens", 8)
    by_eos = alone(tiny, free.request, eos=(third,))
    by_id = alone(tiny, Request((5, 9, 77), max_tokens=8, stop_ids=(third,)))
    assert (by_eos.finish, by_id.finish) == ("eos", "stop")
    assert by_eos.generated == by_id.generated == free.generated[: at + 1]
    engine = Engine(ref.load(tiny, context=64), vocab=96)
    seen: list[int] = []
    watched = engine.add(free.request, lambda token: bool(seen.append(token)) or len(seen) == 4)
    drain(engine)
    assert (watched.finish, watched.generated) == ("stop", seen) and seen == free.generated[:4]
    full = Engine(ref.load(tiny, context=5), vocab=96)
    running = full.add(Request((5, 9, 77), max_tokens=8))
    drain(full)
    assert (running.finish, running.generated) == ("context", free.generated[:3])


def test_a_cancelled_request_gives_its_slot_back(tiny):
    engine = Engine(ref.load(tiny, slots=1, context=64), vocab=96)
    first, second = engine.add(REQUESTS[0]), engine.add(REQUESTS[3])
    engine.step()
    engine.end(first, "cancelled")
    drain(engine)
    assert first.finish == "cancelled" and len(first.generated) == 1
    assert second.ids == alone(tiny, REQUESTS[3]).ids
    third = engine.add(REQUESTS[0])
    engine.end(third, "cancelled")
    assert engine.idle


def test_threads_that_read_answers_of_one_engine_take_turns(tiny):
    inside: list[int] = []
    overlaps: list[int] = []

    class Slow(Recorder):
        def run(self, chunks: Sequence[Chunk]) -> list[F32]:
            inside.append(1)
            overlaps.append(len(inside))
            time.sleep(0.001)
            logits = super().run(chunks)
            inside.pop()
            return logits

    engine = Engine(Slow(ref.load(tiny, slots=2, context=64)), vocab=96)
    running = [engine.add(request) for request in REQUESTS]
    threads = [threading.Thread(target=drain, args=(engine,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(overlaps) == 1
    assert [one.ids for one in running] == [alone(tiny, request).ids for request in REQUESTS]


def test_a_bad_prompt_is_refused_before_it_waits(tiny):
    engine = Engine(ref.load(tiny, context=4), vocab=96)
    for prompt, words in (((), "empty"), ((96,), "token id 96"), ((1,) * 5, "do not fit the context of 4")):
        with pytest.raises(BadRequest, match=words):
            engine.add(Request(prompt))
    assert engine.idle


def test_the_ledger_notices_a_lost_slot():
    slots = Slots(2, 8)
    assert (slots.take(), slots.take(), slots.take()) == (0, 1, None)
    slots.give_back(1)
    slots.check_integrity()
    assert slots.take() == 1
    slots._owned.clear()
    with pytest.raises(AssertionError, match="lost or doubled"):
        slots.check_integrity()
