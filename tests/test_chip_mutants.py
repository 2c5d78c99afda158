"""Programs broken one instruction at a time: with claims, none runs to the end with other bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chip_programs import TINY, claims_of, everything
from random_models import same

from openlpu._base.errors import ProgramError
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.place.host import Step
from openlpu.target.base import Chunk
from openlpu.target.chip import run
from openlpu.target.chip.machine import resolve
from openlpu.target.chip.mutants import OUTCOMES, run_mutants, step_mutants
from openlpu.target.chip.mutations import KINDS, mutants

COUNT = 1000


def test_no_mutant_ends_with_other_bits() -> None:
    board, words = everything()
    queues = board.queues()
    trace = resolve(TINY, queues)
    claims = claims_of(trace, words, or_resident=int(trace.code.id[trace.code.rows("scatter")[0]]))
    outputs = np.array([*words, *((25, 500 + i) for i in range(4))]).T
    before = board.machine.state.sram.copy()
    report = run_mutants(board.machine, queues, claims, (outputs[0], outputs[1]), COUNT)
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
    report = step_mutants(executable, Step(3, (4,)), 100)
    assert sum(report.counts.values()) == 100
    assert report.escaped == [] and report.silent > 0
    assert same(executable.run([Chunk(0, 3, (4,))]), before), "SRAM is as before"


def test_without_claims_some_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness can see an escape: where claims are not compared, mutants end with other bits."""
    monkeypatch.setattr("openlpu.target.chip.mutants.with_claims", lambda trace, claims: trace)
    board, words = everything()
    queues = board.queues()
    trace = resolve(TINY, queues)
    claims = claims_of(trace, words, or_resident=int(trace.code.id[trace.code.rows("scatter")[0]]))
    outputs = np.array(words).T
    report = run_mutants(board.machine, queues, claims, (outputs[0], outputs[1]), 150)
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
    with pytest.raises(ProgramError):
        run_mutants(board.machine, queues, claims_of(resolve(TINY, queues), words, 77), (outputs[0], outputs[1]), 1)
