"""Whole models on several chips: groups, pipelines and both, with the reference's bits, whatever the links do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from chip_programs import Board
from random_models import BASE, LLAMA, random_graph, same, tokens

from openlpu._base.errors import LinkError, ProgramError
from openlpu.arch.alignment import PPM
from openlpu.arch.link import Link, port_queue
from openlpu.arch.system import System, load_system
from openlpu.numerics.scheme import Scheme
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.place.host import Step
from openlpu.schedule.program import SystemProgram
from openlpu.schedule.system import cables, paced, schedule_system
from openlpu.target.base import Chunk
from openlpu.target.chip import host
from openlpu.target.chip.clocks import DRIFT
from openlpu.target.chip.code import flatten
from openlpu.target.chip.links import Port
from openlpu.target.chip.mutants import CLAIMS, Subject, hop_mutants, run_mutants
from openlpu.target.chip.mutations import trades
from openlpu.target.chip.system import REPLAYS, Fault, SystemExecutable, load
from openlpu.target.chip.turns import Course, Crossing, Turns
from openlpu.target.ref import run as ref

SYSTEM = load_system("tiny-node")
GRAPH = random_graph(replace(BASE, layers=2), LLAMA, Scheme())


def made(split: Split, system: System = SYSTEM) -> SystemProgram:
    local, hops = cables(system, split)
    return schedule_system(shard(GRAPH, split), system.chip, local, hops, contexts=(64,), pace=paced(system, split))


@pytest.fixture(scope="module")
def program() -> SystemProgram:
    """Two stages of two chips."""
    return made(Split(2, 2))


def chunk(count: int = 2) -> Chunk:
    return Chunk(0, 0, tokens(count, GRAPH.config), every=True)


def logits(executable: SystemExecutable, count: int = 2) -> Sequence[np.ndarray]:
    return executable.run([chunk(count)])


def test_two_stages_of_two_chips_have_the_reference_s_bits(program: SystemProgram) -> None:
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    assert same(logits(executable), ref.load(GRAPH).run([chunk()]))
    assert executable.cycles == program.cycles(0) and executable.replays == 0
    starts, traces = program.starts(0), executable.traces(0)
    end = max(s + int((t.code.cycle + t.code.latency).max()) for s, t in zip(starts, traces, strict=True))
    assert program.cycles(0) <= end, "the last logit, then at most what is left of other queues"
    code, rows = traces[-1].code, program.stage(-1).program.segments[0].logits
    words = set(zip(rows.slices.ravel().tolist(), np.repeat(rows.addresses, 4).tolist(), strict=True))
    done = [int(code.cycle[k] + code.latency[k]) for k in code.rows("write").tolist()
            if (int(code.number[k]), int(code.field["address"][k])) in words]
    assert len(done) >= len(words) and program.cycles(0) == starts[-1] + max(done), "logits are written last"


def test_two_requests_interleaved_have_the_bits_of_each_alone() -> None:
    """One program on two stages; one request's token is on the second while the other's is on the first, and a token
    of both runs again."""
    executable = load(GRAPH, slots=2, context=64, system=SYSTEM, split=Split(1, 2), chunks=(2,))
    other = tuple(t % (GRAPH.config.vocab - 1) + 1 for t in reversed(chunk(4).tokens))
    prompts = chunk(3).tokens, other
    chunks = [Chunk(slot, 0, prompt, every=True) for slot, prompt in enumerate(prompts)]
    alone = [ref.load(GRAPH).run([replace(one, slot=0)])[0] for one in chunks]
    executable.faults.append(Fault(1, 1, 0, port_queue(executable.program.hops[0].arrives)))
    assert same(executable.run(chunks), alone) and executable.replays == 2
    again = [replace(one, start=2, tokens=one.tokens[2:]) for one in chunks]
    assert same(executable.run(again), [rows[2:] for rows in alone]), "each cache is still its own"
    assert not same(alone[:1], [alone[1][:3]])
    program, before = executable.program, executable.flow.now
    executable.run([replace(one, tokens=one.tokens[:1]) for one in again])
    assert executable.cycles == executable.flow.now - before == program.cycles(0) + program.gap(0, 0)
    prefilled = executable.run([replace(one, every=False) for one in chunks])
    assert same(prefilled, [rows[-1:] for rows in alone]), "two tokens a step"


def test_requests_of_different_steps_follow_each_other_only_when_there_is_room() -> None:
    """A prompt's chunks and single tokens of other requests, whose steps take different times."""
    executable = load(GRAPH, slots=3, context=64, system=SYSTEM, split=Split(1, 2), chunks=(4,))
    ids, gap = chunk(5).tokens, executable.program.gap
    chunks = [Chunk(0, 0, ids), Chunk(1, 0, ids[:1]), Chunk(2, 0, ids[:4])]
    executable.run(chunks)
    executable.flow._gap = lambda here, behind: gap(here, behind) - 1
    message = r"stage \d, a step that enters in cycle \d+, .*: the stage is at work on the step before for 1 cycle more"
    with pytest.raises(ProgramError, match=message):
        executable.run(chunks)


def test_vectors_of_steps_in_a_row_find_room_on_their_link() -> None:
    """A link that takes a vector every 24 cycles and holds one; each step sends one, which some take late."""
    link = Link("short", cycles=24, packet_bytes=328, mean=20, sigma=1, minimum=18, maximum=22, align=2, latency=30)
    board = Board(SYSTEM.chip)
    board.put("c2cw1", 0, "send", stream=0)
    code, nothing = flatten(SYSTEM.chip, board.queues()), np.zeros(2, np.int64)
    courses = [Course((), nothing, nothing, [Crossing(code, np.array([0]), np.array([0]), np.array([taken]))])
               for taken in (30, 70)]
    for second, segment, message in ((24, 0, ""), (23, 0, "takes a vector every 24 cycles"), (52, 1, ""),
                                     (51, 1, "can find the buffer of the link full: 1 vectors wait there")):
        turns = Turns([Port(link)], courses.__getitem__)
        turns.enter(0, segment)
        where = rf"from stage 0 to 1, a step that enters in cycle {second}, cycle 0, c2cw1, send .*{message}"
        with pytest.raises(ProgramError, match=where) if message else nullcontext():
            turns.enter(second, 0)


def test_logits_come_when_they_are_promised(program: SystemProgram) -> None:
    last = program.stage(1)
    segment = last.program.segments[0]
    sooner = replace(last.program, segments=(replace(segment, cycles=segment.cycles - 1),))
    wrong = replace(program, programs=tuple(replace(p, program=sooner) if p is last else p for p in program.programs))
    with pytest.raises(ProgramError, match=rf"stage 1, .*write .*: logits are promised in cycle {segment.cycles - 1}"):
        logits(SystemExecutable(wrong, GRAPH.params, SYSTEM), 1)


def test_vectors_that_trade_places_between_stages_are_refused_without_values(program: SystemProgram) -> None:
    for one, count in ((program, 20), (made(Split(2, 2, "sums")), 5)):
        report = hop_mutants(SYSTEM, one, 0, count)
        assert not report.escaped and report.silent == report.outcome(CLAIMS) == 2 * count, str(report)
    stage = program.stage(0)
    segment = stage.program.segments[0]
    mutant = next(trades({**segment.queues}, segment.claims, stage.next, 1, seed=1))  # planes 1 and 2
    changed = replace(stage, program=replace(stage.program, segments=(replace(segment, queues=mutant.queues),)))
    wrong = replace(program, programs=tuple(changed if p is stage else p for p in program.programs))
    message = r"from stage 0 to 1, .* receive .*: takes plane \d of vector 0 of the token in place 0, sent by \[.*claim"
    with pytest.raises(ProgramError, match=message):
        logits(SystemExecutable(wrong, GRAPH.params, SYSTEM), 1)
    silent = SystemExecutable(wrong, GRAPH.params, SYSTEM, check=False)
    assert not same(logits(silent, 1), logits(SystemExecutable(program, GRAPH.params, SYSTEM), 1))


def test_a_flagged_packet_makes_the_token_run_again(program: SystemProgram) -> None:
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    clean = logits(SystemExecutable(program, GRAPH.params, SYSTEM), 3)
    hop = port_queue(program.hops[0].arrives)
    executable.faults += [Fault(0, 0, 1, port_queue(1)), Fault(1, 1, 0, hop, packet=2, times=2)]
    first = executable.run([Chunk(0, 0, chunk(3).tokens[:2], every=True)])
    assert executable.replays == 3
    gap = program.gap(0, 0)
    assert executable.cycles == 2 * gap + 2 * program.cycles(0), "behind the first's, then once more at once"
    rest = executable.run([Chunk(0, 2, chunk(3).tokens[2:], every=True)])
    assert same([np.concatenate([*first, *rest])], clean)
    assert executable.cycles == program.cycles(0)


@pytest.mark.parametrize("stage", [0, 1])
def test_nothing_of_a_flagged_token_stays_in_the_cache(program: SystemProgram, stage: int) -> None:
    """High bytes of everything received become those of huge numbers and NaN; all stages go on with them."""
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    clean = SystemExecutable(program, GRAPH.params, SYSTEM)
    want = logits(clean, 3)
    receives = executable.traces(0)[stage].code.rows("receive")
    queues = executable.traces(0)[stage].code.queue[receives]
    names = executable.traces(0)[stage].code.names
    executable.faults += [Fault(1, stage, role, names[q], packet=k)
                          for role in range(2) for q in np.unique(queues) for k in range(int((queues == q).sum()))]
    assert same(logits(executable, 3), want) and executable.replays == 2, "it, and the one that ran behind it"
    for text, *machines in zip(executable.stages, executable.machines, clean.machines, strict=True):
        for item in (item for item in text.program.resident if item.name.startswith("kv.")):
            mine, others = ([m.peek(item.slices, item.addresses[:, None], r) for r in range(2)] for m in machines)
            assert np.array_equal(mine, others), item.name


def test_a_scale_that_a_flagged_token_left_does_not_matter(program: SystemProgram) -> None:
    """A position's scales are put into rows that hold those of others, whatever was in its lane: NaN times 0 is NaN."""
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    want = logits(SystemExecutable(program, GRAPH.params, SYSTEM))
    first, second = (Chunk(0, i, chunk().tokens[i : i + 1], every=True) for i in range(2))
    got = executable.run([first])
    for text, machine in zip(executable.stages, executable.machines, strict=True):
        for item in (item for item in text.program.resident if item.name.startswith("kv.") and "scale" in item.name):
            for role in range(2):
                rows = machine.peek(item.slices, item.addresses[:, None], role)
                rows[..., 1] = 0xFF
                machine.load(item.slices, item.addresses[:, None], rows, role)
    assert same([np.concatenate([*got, *executable.run([second])])], want)


def test_an_error_that_stays_names_the_chip(program: SystemProgram) -> None:
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    executable.faults.append(Fault(0, 1, 1, port_queue(1), times=99))
    message = rf"position 0, chip 3 of system tiny-node, {port_queue(1)}: an error that {REPLAYS} replays did not mend"
    with pytest.raises(LinkError, match=message):
        logits(executable, 1)
    assert executable.replays == REPLAYS


def test_replays_for_an_earlier_token_are_not_its_own(program: SystemProgram) -> None:
    """The second token runs again with the first, which takes all its replays, and has an error of its own then."""
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    want = logits(SystemExecutable(program, GRAPH.params, SYSTEM), 2)
    executable.faults += [Fault(at, at, 1, port_queue(1), times=REPLAYS + at) for at in (0, 1)]
    assert same(logits(executable, 2), want) and executable.replays == 2 * REPLAYS + 1


def test_a_damaged_packet_matters(program: SystemProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nobody looked at the flag, the logits would be others: the fault is real."""
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    clean = logits(executable, 1)
    execute = type(executable.machines[0]).execute
    stage = executable.machines[1]
    rows = executable.traces(0)[1].operands.passing.arriving

    def damaged(machine, trace, arriving=None, _=None):
        hurt = [(int(rows[2]), 0)] if machine is stage else None
        return execute(machine, trace, arriving, hurt)

    monkeypatch.setattr(type(stage), "execute", damaged)
    assert not same(logits(executable, 1), clean)


def test_a_token_on_real_clocks_ends_in_time(program: SystemProgram) -> None:
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    timing = executable.timing(0)
    assert len(timing.end) == 1000 and timing.slack.min() > 0
    assert (timing.end <= timing.cycles + timing.bound).all()
    assert timing.cycles >= program.cycles(0)


def test_a_stage_that_starts_too_early_is_refused(program: SystemProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = program.starts(0)
    monkeypatch.setattr(SystemProgram, "starts", lambda self, segment: (first, second - 1))
    message = r"from stage 0 to 1, cycle 42, c2cw1, receive .*: its vector, sent by \[.*\], arrives in cycle 43"
    with pytest.raises(ProgramError, match=message):
        SystemExecutable(program, GRAPH.params, SYSTEM).traces(0)


def test_wires_that_are_not_there(program: SystemProgram) -> None:
    with pytest.raises(ProgramError, match=r"system tiny-line: port 2 of chip \d does not lead to port 2 of chip \d"):
        SystemExecutable(program, GRAPH.params, load_system("tiny-line"))


def test_another_kind_of_chip(program: SystemProgram) -> None:
    with pytest.raises(ProgramError, match="system node: the program is for chips tiny, these are lpu-v1"):
        SystemExecutable(program, GRAPH.params, load_system("node"))


def test_chips_that_are_not_there(program: SystemProgram) -> None:
    with pytest.raises(ProgramError, match=r"system tiny-node: port 2 of chip 0 does not lead to port 2 of chip 2"):
        SystemExecutable(program, GRAPH.params, load_system("tiny-node", 2))
    with pytest.raises(ProgramError, match=r"port 1 of chip 1 does not lead to port 1 of chip 0"):
        SystemExecutable(made(Split(2)), GRAPH.params, load_system("tiny-node", 1))


def test_an_interval_that_is_too_short_is_refused(program: SystemProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    interval = program.interval(0)
    monkeypatch.setattr(SystemProgram, "interval", lambda self, segment: interval - 1)
    message = rf"stage \d, a token every {interval - 1} cycles, cycle \d+, .*: is not done when the next token comes"
    with pytest.raises(ProgramError, match=message):
        SystemExecutable(program, GRAPH.params, SYSTEM).traces(0)


def test_copies_of_a_value_are_all_looked_at(program: SystemProgram) -> None:
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    logits(executable, 1)
    name, rows = next((n, r) for n, r in program.stage(0).program.segments[0].tensors.items() if n.endswith(".whole"))
    executable.value(0, 0, name)
    machine, at = executable.machines[0], (rows.slices[:1, :1], rows.addresses[:1, None])
    machine.load(*at, machine.peek(*at, 0) ^ 1, 0)
    with pytest.raises(ProgramError, match=r"role 0: channel \d+ of a value that several chips hold differs"):
        executable.value(0, 0, name)


def test_a_model_of_the_shared_folder_on_eight_real_chips(shared: Path) -> None:
    from openlpu.compile import compile

    graph = compile(shared / "models" / "stories260K").graph
    system = load_system("node")
    split = Split(4, 2)
    local, hops = cables(system, split)
    made_for = schedule_system(shard(graph, split), system.chip, local, hops, contexts=(256,))
    executable = SystemExecutable(made_for, graph.params, system)
    ids = Chunk(0, 0, (1, 2), every=True)
    assert same(executable.run([ids]), ref.load(graph).run([ids]))
    timing = executable.timing(0, draws=1000)
    assert timing.slack.min() > 0 and (timing.end <= timing.cycles + timing.bound).all()


def test_a_long_token_sets_its_clocks_right() -> None:
    """A chip so slow that a token takes 300,000 cycles: its links are never used longer than their slack allows after
    an alignment, each of which mends more than it can find; without them the clocks part."""
    latency = {**SYSTEM.chip.latency, "vxm": 220, "vxm_special": 560, "permute": 960, "distribute": 960,
               "matmul": 800}
    system = replace(SYSTEM, spec=replace(SYSTEM.spec, chip=replace(SYSTEM.chip, latency=latency)))
    graph = random_graph(replace(BASE, layers=4), LLAMA, Scheme())
    inside = {}
    for split in (Split(2, 1), Split(1, 4)):
        local, hops = cables(system, split)
        pace = paced(system, split)
        assert pace and pace.stretch == 10**6 * system.slack(0) // (2 * PPM) == 85_000
        made_for = schedule_system(shard(graph, split), system.chip, local, hops, contexts=(64,), pace=pace)
        executable = SystemExecutable(made_for, graph.params, system)
        assert same(executable.run([chunk()]), ref.load(graph).run([chunk()]))
        assert made_for.cycles(0) > 250_000
        code = executable.traces(0)[0].code
        holds = np.sort(code.cycle[code.rows("runtime_deskew")])
        used = np.sort(code.cycle[code.rows("send", "receive")])
        assert holds[0] == 0, "every token begins with its clocks right"
        assert (used - holds[np.searchsorted(holds, used) - 1]).max() <= pace.stretch
        inside[split.stages] = len(holds) - 1
        timing = executable.timing(0, draws=1000)
        assert timing.slack.min() > 0 and (timing.end <= timing.cycles + timing.bound).all()
        assert timing.bound <= 12 + 2 * DRIFT * made_for.interval(0)
    assert inside == {1: 3, 4: 0}, "a stage of a pipeline is short enough"
    local, _ = cables(system, Split(2))
    free = schedule_system(shard(graph, Split(2)), system.chip, local, contexts=(64,))
    with pytest.raises(ProgramError, match=r"cycle \d{6}, .*comes in cycle \d{6}\.\d, .* after its receive"):
        SystemExecutable(free, graph.params, system).timing(0)


def test_no_mutant_of_a_compiled_group_ends_with_other_bits() -> None:
    """A decode step of two chips with everything in it, C2C queues broken."""
    program = made(Split(2, 1))
    executable = SystemExecutable(program, GRAPH.params, SYSTEM)
    executable.run([chunk(2)])
    segment, machine = program.stage(0).program.segments[0], executable.machines[0]
    host.write_rows(machine, program.stage(0).program, Step(2, (5,)))
    rows = segment.logits
    words = rows.slices.ravel(), np.repeat(rows.addresses, rows.slices.shape[1])
    report = run_mutants(Subject(machine, program.queues(0, 0), segment.claims, words), 40, among="c2c")
    assert report.escaped == [] and sum(report.counts.values()) == 40
    assert report.outcome("hardware") > 10 and report.outcome("claims") > 0


# A rack of three nodes, of which one stands by.
RACK = """
name = "small-rack"
chip = "tiny"
topology = "rotational"
epoch = 252
[size]
nodes = 3
ports = 4
spares = 1
"""


def test_a_dead_chip_s_work_goes_to_the_spare(tmp_path: Path) -> None:
    """The error names the chip; without it the system has the same wires, and the same program the same bits."""
    links = (resources.files("openlpu.arch") / "systems" / "groqrack.toml").read_text()
    chip = (resources.files("openlpu.arch") / "chips" / "tiny.toml").read_text()
    (tmp_path / "wide.toml").write_text(chip.replace("c2c_links = 8", "c2c_links = 24"))
    file = tmp_path / "rack.toml"
    file.write_text(RACK.replace('"tiny"', '"wide.toml"') + links[links.index("[links.local]"):])
    system = load_system(str(file))
    program = made(Split(2, 2), system)
    executable = SystemExecutable(program, GRAPH.params, system)
    executable.faults.append(Fault(0, 1, 0, port_queue(1), times=99))
    with pytest.raises(LinkError, match=r"chip 2 of system small-rack.*\n.*the system without chip (\d+)") as found:
        logits(executable)
    dead = int(str(found.value).rsplit(" ", 1)[1])
    spared = system.without({dead})
    assert spared.wires.same(system.wires) and dead not in spared.physical
    again = SystemExecutable(program, GRAPH.params, spared)
    assert same(logits(again), ref.load(GRAPH).run([chunk()]))


def test_loaded_in_one_call() -> None:
    executable = load(GRAPH, system=SYSTEM, split=Split(2, 1, "codes"))
    assert executable.context == GRAPH.config.context
    assert same(logits(executable, 1), ref.load(GRAPH).run([chunk(1)]))
