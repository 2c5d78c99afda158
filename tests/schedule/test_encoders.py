"""Encoders on several chips: the reference's bits for any split, every cycle named, links that keep their rules."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from test_sweeps import SMALL, graph_of, same, sequence

from openlpu._base.errors import ProgramError
from openlpu.arch.system import load_system
from openlpu.numerics.outline import outline
from openlpu.partition.split import Split
from openlpu.schedule import encoders, program_file, sequences
from openlpu.schedule.program import HOLD
from openlpu.schedule.system import paced
from openlpu.target.chip.encoders import SystemEncoder, check_sweeps, load
from openlpu.target.ref import run as ref

WIDE = replace(SMALL, layers=2, intermediate=200)  # sums of `down` are fewer bytes than its codes
SPLITS = [Split(1, 2), Split(2, 1, "sums"), Split(2, 2, "codes"), Split(4, 2), Split(4, 1, "codes")]


@pytest.fixture(scope="module")
def wide():
    return graph_of(WIDE)


@pytest.fixture(scope="module")
def four(wide) -> SystemEncoder:
    return load(wide, split=Split(2, 2), chunk=4)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_split_has_the_references_bits(wide, split):
    """Long ones first: what a short one finds in caches and states is another's, and must not show."""
    chunks = [sequence(n) for n in (9, 2)]
    made = load(wide, split=split, chunk=4, context=12)
    assert same(made.run(chunks), ref.load(wide).run(chunks))


def test_steps_follow_each_other_and_hand_over_in_time(four):
    program, way = four.program, encoders.passage(four.program, 40)
    assert [len(way.of(s)) for s in (0, 1)] == [20, 20], "ten chunks through two sweeps each"
    for s in (0, 1):
        own = way.of(s)
        assert all(a.start + encoders.busy(program, a) <= b.start for a, b in pairwise(own))
    hop = program.hops[0].link.latency
    for here, there in pairwise(way.turns):
        if here.stage < there.stage:
            sent = here.start + program.stage(0).handed_over(encoders.part_of(program, here))
            assert there.start + program.stage(1).taken(encoders.part_of(program, there)) == sent + hop
    assert encoders.interval(program, 40) < way.cycles < 2 * encoders.interval(program, 40)


def test_chips_set_their_clocks_right_as_long_as_the_longest_wait_needs(four):
    """A long sequence waits longer between two uses of a link, and so does its program."""
    system = load_system("node", 2)
    long = load(outline(replace(WIDE, layers=4)), split=Split(1, 2), chunk=1).program
    paces = paced(load_system("node", 4), Split(2, 2)), paced(system, Split(1, 2))
    for program, pace in zip((four.program, long), paces, strict=True):
        linked = [rows for stage in program.programs for part in stage.program.segments
                  for name, rows in part.queues.items() if name.startswith("c2c") and len(rows)]
        (wait,) = {int(rows["delay"][0]) for rows in linked if rows["op"][0] == HOLD}
        assert pace and wait >= pace.wait(encoders.alone(program))
        assert (wait > pace.wait(pace.stretch)) == (program is long)
    assert len(list(check_sweeps(system, long, (0, 1), [40]))) == 6


def test_every_cycle_of_a_sequence_has_one_kind_and_every_chip_its_instructions(four):
    token, program = sequences.of_system(four.program, 9), four.program
    use, spent = sequences.account(program, 9)
    assert token.path == use.pieces and token.cycles == encoders.passage(program, 9).cycles == use.cycles
    assert token.path[0].start == 0 and all(a.start + a.cycles == b.start for a, b in pairwise(token.path))
    assert sum(use.path.values()) == use.cycles and {"collectives", "links"} <= use.path.keys()
    assert {p.operator.split(".")[1] for p in token.path if p.operator.startswith("layers.")} == {"0", "1"}
    assert sum(len(rows) for run in token.chips for rows in run.queues.values()) == use.instructions
    assert [run.name for run in token.chips] == [f"chip {i}" for i in range(4)]
    assert {"chip 1", "chip 2"} == {*token.chips[0].peers.values()} and spent.dynamic["links"] > 0


def test_programs_are_stored_and_checked_without_values(four, wide, tmp_path: Path):
    program_file.save_system(four.program, tmp_path / "programs")
    stored, system = program_file.load_system(tmp_path / "programs"), load_system("node", 4)
    found = list(check_sweeps(system, stored, (0, 1), [40]))
    assert [(one.stages, one.chips) for one in found] == [((0,), 2), ((0,), 2), ((1,), 2), ((1,), 2)]
    assert [one.handed > 0 for one in found] == [False, True, False, False]
    assert [one.arriving > 0 for one in found] == [False, False, True, False]
    assert len(list(check_sweeps(system, stored, (1,), [40]))) == 2
    chunks = [sequence(3)]
    assert same(SystemEncoder(stored, wide.params, system).run(chunks), ref.load(wide).run(chunks))


def test_the_referee_refuses_what_comes_too_late(four):
    """The receiving sweep takes a vector a cycle before it is there."""
    program = four.program
    stage = program.stage(1)
    part = stage.program.segments[0]
    queues = {name: rows.copy() for name, rows in part.queues.items()}
    rows = queues[stage.previous]
    rows["cycle"][rows["op"] != HOLD] -= 1
    segments = (replace(part, queues=queues), *stage.program.segments[1:])
    broken = replace(stage, program=replace(stage.program, segments=segments))
    programs = tuple(broken if one is stage else one for one in program.programs)
    with pytest.raises(ProgramError):
        list(check_sweeps(load_system("node", 4), replace(program, programs=programs), (0, 1), [40]))


def test_equal_stages_share_a_program():
    graph = outline(replace(WIDE, layers=4))
    made = load(graph, split=Split(1, 4), chunk=1, context=4)
    assert made.program.stages == (0, 1, 1, 2) and made.program.first == (0, 1, 2, 3)
    assert sequences.of_system(made.program, 3).cycles == encoders.passage(made.program, 3).cycles
    list(check_sweeps(load_system("node", 4), made.program, range(4), [4]))
