"""Groups of chips: what a link carries, what is refused, and which chip an error names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chip_programs import LINK, PORTS, TINY, Board, assemble, claims_of, exchange, group_ports, make_claims
from cycle_simulator import Generator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError, ProgramError
from openlpu.arch.isa import ALU, BY_NAME, IMM, NONE, QUAD
from openlpu.schedule.program import RESIDENT
from openlpu.target.chip import links, pipeline
from openlpu.target.chip.links import Port
from openlpu.target.chip.machine import Machine, Trace, resolve
from openlpu.target.chip.mutants import Subject, run_mutants
from openlpu.target.chip.mutations import LINK_KINDS

L = TINY.lanes


@pytest.mark.parametrize("roles", [2, 4])
def test_every_chip_gets_its_peer_s_vectors(roles: int) -> None:
    board, kept, sent = exchange(roles)
    board.machine.run(board.queues())
    names = list(group_ports(roles))
    for queue, k, (slice_, address) in kept:
        for role in range(roles):
            got = board.machine.peek(np.array([slice_]), np.array([address]), role)[0]
            assert (got == sent[role ^ PORTS[queue].peer, names.index(queue), k]).all()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 4, 9]))
def test_random_programs_of_groups(seed: int, roles: int, slot: int) -> None:
    """Against the obvious simulator, with sends and receives."""
    link = replace(LINK, cycles=slot)
    links = {queue: replace(port, link=link) for queue, port in group_ports(roles).items()}
    program = Generator(TINY, seed, roles, links)
    slices, addresses = np.array(list(program.sim.words)).T
    machine = Machine(TINY, roles, links)
    before = np.stack(list(program.sim.words.values()), axis=1)
    for role in range(roles):
        machine.load(slices, addresses, before[role], role)
    program.run(50)
    queues = assemble(program.lines)
    sent = sum(int((queues[q]["op"] == BY_NAME["send"].opcode).sum()) for q in links if q in queues)
    assert sent > 3 or roles == 1
    machine.run(queues)
    for role in range(roles):
        expected = np.stack([program.sim.words[int(s), int(a)][role] for s, a in zip(slices, addresses, strict=True)])
        different = np.flatnonzero((machine.peek(slices, addresses, role) != expected).any(axis=1))
        assert not len(different), f"role {role}, words {[(slices[i], addresses[i]) for i in different[:9]]}"


# What is refused


def shifted(op: str, by: int, which: int = 0) -> Callable[[Board], None]:
    """Move one send or receive of port c2cw0, with nothing else."""

    def change(board: Board) -> None:
        lines = board.lines["c2cw0"]
        at = [i for i, line in enumerate(lines) if line[1] == op][which]
        lines[at] = (lines[at][0] + by, *lines[at][1:])

    return change


def dropped(op: str) -> Callable[[Board], None]:
    def change(board: Board) -> None:
        lines = board.lines["c2cw0"]
        lines.remove(next(line for line in reversed(lines) if line[1] == op))

    return change


REFUSED: dict[str, tuple[Callable[[Board], None], str]] = {
    "too early": (
        shifted("receive", -1),
        r"cycle 69, c2cw0, receive \(instruction \d+\): its vector, sent by \[cycle 40, c2cw0, send .*\], arrives in "
        r"cycle 70",
    ),
    "nothing sent": (dropped("send"), r"cycle 76, c2cw0, receive \(instruction \d+\): no vector is sent for it"),
    "nothing received": (
        dropped("receive"), r"cycle 46, c2cw0, send \(instruction \d+\): its vector is never received and stays in the",
    ),
    "busy": (
        shifted("send", -1, 1), r"cycle 42, c2cw0, send .*: the link takes a vector every 3 cycles and is still busy",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_link_rule(case: str) -> None:
    change, message = REFUSED[case]
    board = exchange(2)[0]
    change(board)
    with pytest.raises(ProgramError, match=message):
        resolve(TINY, board.queues(), links=board.machine.links)


def test_a_full_buffer() -> None:
    """A buffer holds what comes early: (30 - 16 + 4) / 3 vectors; more may not wait."""
    port = PORTS["c2cw0"]
    assert port.depth == 6
    resolve(TINY, exchange(2, count=9)[0].queues(), links=group_ports(2))
    message = r"cycle \d+, c2cw0, send .*: its vector can find the buffer of the link full: 6 vectors wait there, "
    with pytest.raises(ProgramError, match=message):
        resolve(TINY, exchange(2, count=9, late=1)[0].queues(), links=group_ports(2))
    board, kept, sent = exchange(2, count=6, late=100)
    board.machine.run(board.queues())
    got = board.machine.peek(*np.array([word for _, _, word in kept]).T, role=1)
    assert (got == sent[0, 0]).all(), "six vectors may wait for as long as they like"


def test_ports_that_lead_nowhere() -> None:
    queues = assemble({"c2cw1": [(4, "send", {"stream": 32})]})
    with pytest.raises(ProgramError, match=r"cycle 4, c2cw1, send .*: there is no link at this port"):
        resolve(TINY, queues, links=group_ports(2))
    with pytest.raises(ProgramError, match="there is no link: this is a single chip"):
        resolve(TINY, queues)
    for op in ("deskew", "transmit"):
        with pytest.raises(ProgramError, match=r"belongs to the start of all chips, in front of cycle 0"):
            resolve(TINY, assemble({"c2cw0": [(4, op, {})]}), links=group_ports(2))


# Errors that only values show name the chip


def test_a_word_one_chip_has_not() -> None:
    machine = Machine(TINY, 4, group_ports(4))
    queues = assemble({"mem3": [(0, "read", {"address": 5})]})
    for role in (0, 1, 3):
        machine.load(np.array([3]), np.array([5]), np.zeros((1, L), np.uint8), role)
    with pytest.raises(ProgramError, match=r"mem3, read \(instruction 1\) on role 2: reads a word that was never"):
        machine.run(queues)
    with pytest.raises(ProgramError, match="the host reads a word that was never written"):
        machine.peek(np.array([3]), np.array([5]), 2)


@pytest.mark.parametrize("op", ["permute", "distribute", "gather"])
def test_a_bad_map_on_one_chip(op: str) -> None:
    board, queue = Board(TINY, 2, group_ports(2)), {"gather": "mem39"}.get(op, f"sxme.{op}")
    low, high = np.arange(L).astype(np.uint8), np.zeros(L, np.uint8)
    good = {"permute": (low, high), "distribute": (low % 16, high), "gather": (high, high)}[op]
    bad = [np.stack([v, v]) for v in good]
    bad[0][1, :2] = {"permute": 7, "distribute": 77, "gather": 254}[op]
    board.store(39, 0, high)
    board.feed(queue, 60, 0, np.zeros((2, L), np.uint8))
    for k, vectors in enumerate(bad):
        board.feed(queue, 60, 4 + k, vectors)
    fields = {"permute": {"dst": 40, "count": 1, "map": 4}, "distribute": {"dst": 40, "count": 1, "map": 4},
              "gather": {"address": 0, "map": 4}}[op]
    board.put(queue, 60, op, stream=9 if op == "gather" else 0, **fields)
    with pytest.raises(ProgramError, match=rf"cycle 60, {queue}, {op} \(instruction \d+\) on role 1: "):
        board.machine.run(board.queues())


def test_a_nan_on_one_chip() -> None:
    board = Board(TINY, 2, group_ports(2))
    words = np.zeros((2, L), np.float32)
    words[1, 9] = np.nan
    for k in range(4):
        board.feed("vxm0", 60, k, words.view(np.uint8).reshape(2, L, 4)[:, :, k])
    board.put("vxm0", 60, "to_int", a_kind=QUAD, a=0, b_kind=NONE, dst_kind=ALU)
    with pytest.raises(NumericsError, match=r"cycle 60, vxm0, to_int \(instruction 5\) on role 1"):
        board.machine.run(board.queues())


def test_groups_of_one_matrix_each() -> None:
    """Every chip multiplies its own array; lanes that move stay on their chip."""
    board, rng = Board(TINY, 2, group_ports(2)), np.random.default_rng(5)
    row, vector = (rng.integers(0, 256, (2, L)).astype(np.uint8) for _ in range(2))
    board.feed("mxme0.weights", 60, 0, row)
    board.put("mxme0.weights", 60, "load_weights", stream=0, group=2, step=0)
    board.put("mxme0.weights", 61, "install_weights")
    board.feed("mxme0.activations", 65, 1, vector)
    board.put("mxme0.activations", 65, "activate", stream=1)
    board.put("mxme0.accumulate", 85, "accumulate", slot=0, clear=1, emit=1, stream=36)
    words = [board.catch("mxme0.accumulate", 87, 36 + k) for k in range(4)]
    board.feed("sxme.shift", 60, 5, vector)
    board.put("sxme.shift", 60, "shift", stream=5, dst=40, amount=3, north=1, count=1)
    words.append(board.catch("sxme.shift", 60 + TINY.latency["shift"], 40))
    board.machine.run(board.queues())
    for role in range(2):
        out = board.machine.peek(*np.array(words).T, role=role)
        sums = np.ascontiguousarray(out[:4].T).view(np.int32).ravel()
        assert (sums[32:48] == row[role].view(np.int8).astype(int) @ vector[role].view(np.int8).astype(int)).all()
        assert (out[4, 3:] == vector[role, :-3]).all() and (out[4, :3] == 0).all()


# Claims


def test_claims_of_receives() -> None:
    board, kept, _ = exchange(2, count=2)
    queues, links = board.queues(), board.machine.links
    trace = resolve(TINY, queues, links=links)
    claims = claims_of(trace, [word for _, _, word in kept])
    board.machine.run(queues, claims)
    receive, send = (trace.code.id[trace.code.rows(op)] for op in ("receive", "send"))
    at = np.flatnonzero(claims.reads["reader"] == receive[0])[0]
    assert tuple(claims.reads[at]) == (receive[0], 0, send[0], False, 1)
    for field, value, message in (
        ("writer", send[1], rf"operand 0 was written by \[.* send \(instruction {send[0]}\)\]; claimed is"),
        ("writer", RESIDENT, "claimed is nobody in this run"),
        ("part", 2, "operand 0 is part 1 of what .* claimed is part 2"),
    ):
        reads = claims.reads.copy()
        reads[field][at] = value
        with pytest.raises(ProgramError, match=message):
            resolve(TINY, queues, make_claims(reads.tolist(), claims.outputs.tolist()), links)


def test_no_mutant_of_an_exchange_ends_with_other_bits() -> None:
    """Wrong ports, a cycle too early, sends dropped or doubled, ports that trade places."""
    board, kept, _ = exchange(4)
    queues = board.queues()
    words = [word for _, _, word in kept]
    claims = claims_of(resolve(TINY, queues, links=board.machine.links), words)
    slices, addresses = np.array(words).T
    for role in range(4):
        board.machine.load(slices, addresses, np.zeros((len(words), L), np.uint8), role)
    report = run_mutants(Subject(board.machine, queues, claims, (slices, addresses)), 300, seed=1, among="c2c")
    assert report.escaped == [] and report.outcome("other") == 0
    assert {kind for kind, _ in report.counts} == {*LINK_KINDS, "cycle", "stream", "direction", "order", "drop"}
    assert report.counts["cross", "claims"] > 0, "ports that trade places are legal: only claims show it"
    assert report.silent > 0
    page = Path(__file__).resolve().parents[1] / "docs" / "09-target-chip.md"
    assert str(report) in page.read_text("utf-8"), f"put into the page:\n{report}"


# Setting clocks right


def waiting(**changes: int) -> None:
    """A read caught before cycle 30, a wait of 20 cycles, a read caught after it."""
    at = {"read": 10, "wait": 30, "again": 50} | changes
    board = Board(TINY, 2, group_ports(2))
    for cycle in (at["read"], at["again"]):
        board.put("mem0", cycle, "read", address=0, stream=3)
        board.put("mem20", cycle + 3 + TINY.slice_position(20) - TINY.slice_position(0), "write", address=9, stream=3)
    board.put("c2cw0", at["wait"], "runtime_deskew", delay=20)
    resolve(TINY, board.queues(), links=group_ports(2))


def test_runtime_deskew() -> None:
    waiting()
    with pytest.raises(ProgramError, match=r"cycle 49, mem0, read .* while the chip waits from cycle 30 to 49"):
        waiting(again=49)
    with pytest.raises(ProgramError, match=r"mem20, write .*: is not done in cycle 20, when the chip waits"):
        waiting(wait=20)
    # A value on a stream: read before the wait, written after it.
    far = assemble({
        "mem0": [(0, "read", {"stream": 3})], "c2cw0": [(5, "runtime_deskew", {"delay": 3})],
        "mem39": [(13, "write", {"stream": 3})],
    })
    with pytest.raises(ProgramError, match=r"cycle 13, mem39, write .*: its operand is on a stream in cycle 5, when"):
        resolve(TINY, far, links=group_ports(2))


# Stages


def two_stages(receive: int = 0, count: int = 3) -> tuple[list[Machine], list[Trace], NDArray, list[tuple[int, int]]]:
    """A stage that hands vectors over by c2ce1, and one that takes them from c2cw1, each of two chips."""
    ports = {**group_ports(2), "c2ce1": Port(LINK, 0, 4), "c2cw1": Port(LINK, 0, 4, inward=True)}
    first, second = Board(TINY, 2, ports), Board(TINY, 2, ports)
    sent = np.random.default_rng(0).integers(0, 256, (count, 2, L)).astype(np.uint8)
    words = []
    for k in range(count):
        first.feed("c2ce1", 40 + 3 * k, 5, sent[k])
        first.put("c2ce1", 40 + 3 * k, "send", stream=5)
        second.put("c2cw1", receive + 3 * k, "receive", stream=2)
        words.append(second.catch("c2cw1", receive + 3 * k + TINY.latency["c2c"], 2))
    machines = [first.machine, second.machine]
    traces = [resolve(TINY, board.queues(), links=ports) for board in (first, second)]
    return machines, traces, sent, words


def test_stages_hand_over() -> None:
    machines, traces, sent, words = two_stages()
    pipeline.check(traces, (0, 40 + LINK.latency), [Port(LINK, 0, 4)])
    handed = machines[0].execute(traces[0])
    machines[1].execute(traces[1], handed)
    for role in range(2):
        assert (machines[1].peek(*np.array(words).T, role=role) == sent[:, role]).all()


def test_stages_that_do_not_fit() -> None:
    hops = [Port(LINK, 0, 4)]
    _, traces, *_ = two_stages()
    message = r"from stage 0 to 1, cycle 0, c2cw1, receive .*: its vector, sent by \[cycle 40, c2ce1, send .*cycle 1"
    with pytest.raises(ProgramError, match=message):
        pipeline.check(traces, (0, 69), hops)
    with pytest.raises(ProgramError, match=r"from stage 0 to 1, cycle 46, c2ce1, send .* stays in the buffer"):
        pipeline.check([traces[0], two_stages(count=2)[1][1]], (0, 70), hops)
    with pytest.raises(ProgramError, match=r"from stage 0 to 1, cycle 6, c2cw1, receive .*: no vector is sent for it"):
        pipeline.check([two_stages(count=2)[1][0], traces[1]], (0, 70), hops)
    with pytest.raises(ProgramError, match=r"from stage 0 to 1, .*c2ce1, send .*: its vector can find the buffer"):
        many = two_stages(count=12)[1]
        pipeline.check(many, (0, 200), hops)
    with pytest.raises(ProgramError, match="receives from a stage before the first"):
        pipeline.check([traces[1], traces[1]], (0, 70), hops)
    with pytest.raises(ProgramError, match="hands over to a stage behind the last"):
        pipeline.check([traces[0], traces[0]], (0, 70), hops)


def test_a_port_to_another_stage_is_used_one_way() -> None:
    """What comes back from the next stage, or goes back to the one before, is not what the other one is wired for."""
    ports = {"c2ce1": Port(LINK, 0, 4), "c2cw1": Port(LINK, 0, 4, inward=True)}
    wrong = assemble({"c2ce1": [(0, "receive", {"stream": 32})]})
    with pytest.raises(ProgramError, match=r"cycle 0, c2ce1, receive .*: the next stage sends nothing back"):
        resolve(TINY, wrong, links=ports)
    board = Board(TINY, 1, ports)
    board.feed("c2cw1", 40, 35, np.zeros((1, L), np.uint8))
    board.put("c2cw1", 40, "send", stream=35)
    with pytest.raises(ProgramError, match=r"cycle 40, c2cw1, send .*: the stage before takes nothing"):
        resolve(TINY, board.queues(), links=ports)


def test_tokens_that_follow_each_other() -> None:
    """Links keep their rules with several tokens under way, and no chip is at two."""
    hops, (_, traces, *_) = [Port(LINK, 0, 4)], two_stages()
    groups = [group_ports(2)] * 2
    end = max(int((trace.code.cycle + np.maximum(trace.code.latency, 1)).max()) for trace in traces)
    pipeline.check_full(traces, (0, 70), hops, groups, end)
    with pytest.raises(ProgramError, match=rf"stage 0, a token every {end - 1} cycles, .*: is not done when the next"):
        pipeline.check_full(traces, (0, 70), hops, groups, end - 1)
    late = 0, 70 + 6 * end
    pipeline.check(traces, late, hops)
    with pytest.raises(ProgramError, match=rf"from stage 0 to 1, a token every {end} cycles, .* find the buffer"):
        pipeline.check_full(traces, late, hops, groups, end)
    board = exchange(2)[0]
    trace = board.machine.resolve(board.queues())
    cycle = trace.code.cycle[trace.code.rows("send")]
    end = int((trace.code.cycle + np.maximum(trace.code.latency, 1)).max())
    pipeline.check_full([trace], (0,), [], [board.machine.links], end)
    slower = {"c2cw0": replace(PORTS["c2cw0"], link=replace(LINK, cycles=4))}
    with pytest.raises(ProgramError, match=rf"stage 0, a token every {end} cycles, .* is still busy with the one"):
        pipeline.check_full([trace], (0,), [], [slower], end)
    again = trace.code, trace.code.rows("send"), trace.code, trace.code.rows("receive"), PORTS["c2cw0"]
    links.again(*again, int(np.ptp(cycle)) + LINK.cycles)
    with pytest.raises(ProgramError, match="is still busy with the one before"):
        links.again(*again, int(np.ptp(cycle)) + LINK.cycles - 1)


def test_what_arrives_is_resident() -> None:
    _, traces, _, words = two_stages()
    claims = claims_of(traces[1], words)
    receives = np.isin(claims.reads["reader"], traces[1].code.id[traces[1].code.rows("receive")])
    assert (claims.reads["writer"][receives] == RESIDENT).all() and (claims.reads["part"][receives] == 0).all()


# Faults


def test_a_damaged_packet_reaches_one_chip_only() -> None:
    board, kept, sent = exchange(2)
    trace = board.machine.resolve(board.queues())
    rows = trace.code.rows("receive")
    board.machine.execute(trace, damaged=[(int(rows[1]), 0)])
    for role in range(2):
        got = board.machine.peek(*np.array([word for _, _, word in kept]).T, role=role)
        wrong = (got != sent[1 - role, 0]).any(axis=1)
        assert wrong.tolist() == [False, role == 0, False]
    board.machine.execute(trace)
    got = board.machine.peek(*np.array([word for _, _, word in kept]).T, role=0)
    assert (got == sent[1, 0]).all(), "the same program run again mends it"


def test_an_immediate_is_on_all_chips() -> None:
    board = Board(TINY, 2, group_ports(2))
    board.put("vxm0", 0, "pass", a_kind=IMM, imm=7, dst_kind=QUAD, dst=8)
    words = [board.catch("vxm0", 2, 8)]
    board.machine.run(board.queues())
    assert all((board.machine.peek(*np.array(words).T, role=role) == 7).all() for role in range(2))
