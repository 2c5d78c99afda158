"""Programs broken one instruction at a time: with claims, none runs to the end with other bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chip_programs import TINY, claims_of, everything
from random_models import BASE, LLAMA, random_graph, same

from openlpu._base.errors import ProgramError
from openlpu.checkpoint.config import Rope
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.numerics.draw import draw
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.partition.split import Split
from openlpu.place.host import Step
from openlpu.schedule import sweeps
from openlpu.target.base import Chunk
from openlpu.target.chip import run, system
from openlpu.target.chip.machine import resolve
from openlpu.target.chip.mutants import OUTCOMES, Subject, run_mutants, stage_of, step_of
from openlpu.target.chip.mutations import KINDS, mutants

COUNT = 1000


def test_no_mutant_ends_with_other_bits() -> None:
    board, words = everything()
    queues = board.queues()
    trace = resolve(TINY, queues)
    claims = claims_of(trace, words, or_resident=int(trace.code.id[trace.code.rows("scatter")[0]]))
    outputs = np.array([*words, *((25, 500 + i) for i in range(4))]).T
    before = board.machine.state.sram.copy()
    report = run_mutants(Subject(board.machine, queues, claims, (outputs[0], outputs[1])), COUNT)
    assert (board.machine.state.sram == before).all(), "SRAM is as before"
    assert sum(report.counts.values()) == COUNT
    assert report.escaped == [] and report.outcome("other") == 0
    assert min(report.outcome(o) for o in ("hardware", "claims", "same")) > 0
    assert report.silent > 0, "some mutants need claims"
    table = str(report).splitlines()
    assert len(table) == len(KINDS) + 3
    assert table[0].split() == ["mutation", *OUTCOMES]
    assert sum(map(int, table[-2].split()[1:])) == COUNT
    page = Path(__file__).resolve().parents[1] / "docs" / "09-target-chip.md"
    assert str(report) in page.read_text("utf-8"), f"put into the page:\n{report}"


def test_no_mutant_of_a_compiled_layer_ends_with_other_bits(models: Path) -> None:
    """A sample of what ``bench/mutants.py`` counts."""
    graph = lower(build(load(models / "smollm")).truncate(1), Scheme())
    executable = run.load(graph, chip="tiny")
    before = executable.run([Chunk(0, 0, (1, 2, 3, 4))])
    report = run_mutants(step_of(executable, Step(3, (4,))), 100)
    assert sum(report.counts.values()) == 100
    assert report.escaped == [] and report.silent > 0
    assert same(executable.run([Chunk(0, 3, (4,))]), before), "SRAM is as before"


GRAPH = random_graph(replace(BASE, layers=1), LLAMA, Scheme())
PROMPT, STEP = (1, 2, 3), Step(3, (4,))


@pytest.mark.parametrize(("split", "s", "requests"), [
    (Split(2, exchange="sums"), 0, 1), (Split(2, 2, "sums"), 0, 1), (Split(2, 2, "sums"), 1, 1), (Split(1, 2), 1, 2),
], ids=["sums", "first stage of sums", "last stage of sums", "requests"])
def test_no_mutant_of_several_chips_ends_with_other_bits(split: Split, s: int, requests: int) -> None:
    """Logits, what is handed over and the caches of all requests are compared, and the stages beside it."""
    graph = random_graph(replace(BASE, layers=split.stages), LLAMA, Scheme())
    executable = system.load(graph, slots=requests, context=64, system="tiny-node", split=split)
    executable.run([Chunk(slot, 0, PROMPT) for slot in range(requests)])
    subject = stage_of(executable, s, replace(STEP, request=requests - 1))
    for among in ("", "c2c"):
        report = run_mutants(subject, 6, among=among)
        assert report.escaped == [] and sum(report.counts.values()) == 6, str(report)


def test_no_mutant_of_a_request_s_step_ends_with_other_bits() -> None:
    executable = run.load(GRAPH, context=64, chip="tiny", slots=2)
    executable.run([Chunk(slot, 0, PROMPT) for slot in (0, 1)])
    assert run_mutants(step_of(executable, replace(STEP, request=1)), 15).escaped == []


def test_no_mutant_of_a_sweep_ends_with_other_bits() -> None:
    """The last step of each of an encoder's sweeps; states and caches are compared."""
    config = EncoderConfig("bert", 32, 1, 2, 2, 16, 48, 50, 12, 1e-12, Rope(1.0, "none"), True, positions=12)
    executable = run.load(draw(config), chip="tiny", chunks=(4,))
    for step, part in sweeps.steps(executable.program, (2, 17, 44, 3, 9, 31)):
        executable.step(step, part)
        if step.end == step.length:
            assert run_mutants(step_of(executable, step, part), 8).escaped == [], part.name


def test_a_step_must_be_done_when_the_next_begins() -> None:
    executable = run.load(GRAPH, context=64, chip="tiny")
    segment = executable.program.segments[0]
    with pytest.raises(ProgramError, match=r"is not done in cycle \d+, when the next step begins"):
        executable.step(Step(0, (1,)), replace(segment, cycles=segment.cycles - 1))


def test_without_claims_some_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness can see an escape: where claims are not compared, mutants end with other bits."""
    monkeypatch.setattr("openlpu.target.chip.mutants.with_claims", lambda trace, claims: trace)
    board, words = everything()
    queues = board.queues()
    trace = resolve(TINY, queues)
    claims = claims_of(trace, words, or_resident=int(trace.code.id[trace.code.rows("scatter")[0]]))
    outputs = np.array(words).T
    report = run_mutants(Subject(board.machine, queues, claims, (outputs[0], outputs[1])), 150)
    assert report.outcome("other") == len(report.escaped) > 0


def test_mutants_repeat_and_differ() -> None:
    queues = everything()[0].queues()
    first, again = (list(mutants(queues, 200, seed=3)) for _ in range(2))
    assert [m.text for m in first] == [m.text for m in again]
    assert {m.kind for m in first} == set(KINDS)
    for mutant in first:
        changed = [name for name in queues if len(mutant.queues[name]) != len(queues[name])
                   or (mutant.queues[name] != queues[name]).any()]
        assert len(changed) == 1, mutant.text


def test_a_refused_program_has_no_mutants() -> None:
    board, words = everything()
    queues = board.queues()
    outputs = np.array(words).T
    claims = claims_of(resolve(TINY, queues), words, 77)
    with pytest.raises(ProgramError):
        run_mutants(Subject(board.machine, queues, claims, (outputs[0], outputs[1])), 1)
