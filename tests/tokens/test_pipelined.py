"""Requests under way together on the stages of a pipeline: the bits of each alone, a token in every interval."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from random_models import BASE, LLAMA, random_graph

from openlpu._base.errors import LinkError
from openlpu.arch.link import port_queue
from openlpu.arch.system import load_system
from openlpu.numerics.scheme import Scheme
from openlpu.partition.split import Split
from openlpu.schedule.prefill import first_token
from openlpu.target.base import Pipelined
from openlpu.target.chip.flow import Fault
from openlpu.target.chip.system import SystemExecutable, load
from openlpu.target.ref import run as ref
from openlpu.tokens.engine import Engine, Running
from openlpu.tokens.request import Request, Sampling

GRAPH = random_graph(replace(BASE, layers=2), LLAMA, Scheme())
ASKED = (
    Request((3, 1, 4, 1, 5), max_tokens=7), Request((9, 2), Sampling(temperature=1.0, seed=3), max_tokens=6),
    Request((6,), Sampling(repetition_penalty=1.5), max_tokens=8), Request((5, 3, 5), max_tokens=4),
)


@pytest.fixture(scope="module")
def chips() -> SystemExecutable:
    return load(GRAPH, slots=3, context=64, system=load_system("tiny-node"), split=Split(1, 2))


@pytest.fixture(scope="module")
def alone() -> list[Running]:
    found = []
    for request in ASKED:
        engine = Engine(ref.load(GRAPH, context=64), vocab=GRAPH.config.vocab)
        found.append(engine.add(request))
        while not engine.idle:
            engine.step()
    return found


def test_the_bits_of_each_alone_and_a_token_in_every_interval(chips: SystemExecutable, alone: list[Running]) -> None:
    """Four requests, three at a time; another is cancelled while its token is under way, and the fourth takes its
    place; a link's error makes some run again."""
    assert isinstance(chips, Pipelined)
    engine = Engine(chips, vocab=GRAPH.config.vocab)
    running = [engine.add(request) for request in ASKED[:2]]
    left = engine.add(replace(ASKED[3], max_tokens=50))
    done = []
    while len(done) < 9:
        done += [(one, chips.flow.now) for one in engine.step()]
    times = [now for _, now in done]
    interval, cycles = chips.program.interval(0), chips.program.cycles(0)
    assert done[0][0] is running[1] and times[0] == first_token(chips.program, 5), "the fifth step: prompts take turns"
    assert {b - a for a, b in pairwise(times[4:])} == {interval}, "the stages are never idle"
    assert 3 * interval > cycles > interval and running[0].cycles[-1] == 3 * interval, "it waits at the door"
    engine.cancel(left, left.mark())
    running += [engine.add(request) for request in ASKED[2:]]
    chips.faults.append(Fault(3, 1, 0, port_queue(chips.program.hops[0].arrives)))
    while not engine.idle:
        engine.step()
    assert [one.generated for one in running] == [one.generated for one in alone]
    assert [one.logits_sha256 for one in running] == [one.logits_sha256 for one in alone]
    assert chips.replays
    engine.slots.check_integrity()


def test_an_error_leaves_nothing_under_way(chips: SystemExecutable, alone: list[Running]) -> None:
    engine = Engine(chips, vocab=GRAPH.config.vocab)
    first, second = (engine.add(request) for request in ASKED[:2])
    chips.faults.append(Fault(4, 1, 0, port_queue(chips.program.hops[0].arrives), times=99))
    with pytest.raises(LinkError, match="position 4"):
        while True:
            engine.step()
    chips.faults.clear()
    while not engine.idle:
        engine.step()
    assert [first.logits_sha256, second.logits_sha256] == [one.logits_sha256 for one in alone[:2]]
