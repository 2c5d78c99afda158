"""A token over a pipeline of stages: starts, links, and a critical path that tiles the token, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_models import BASE, CASES, LLAMA, random_graph

from openlpu.arch.chip import load_chip
from openlpu.arch.group import Group, Way, relative
from openlpu.arch.isa import BY_NAME
from openlpu.arch.link import Link
from openlpu.arch.system import load_system
from openlpu.numerics.scheme import Scheme
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.place.layout import place
from openlpu.schedule.program import (
    CLAIM_OUTPUT,
    CLAIM_READ,
    RESIDENT,
    Claims,
    Hop,
    Program,
    Segment,
    StageProgram,
    SystemProgram,
    queue_dtype,
)
from openlpu.schedule.report import Piece, critical_path, report, totals
from openlpu.schedule.step import buckets, schedule
from openlpu.schedule.system import cables, paced, schedule_system
from openlpu.schedule.tracks import duration, interval, of_chip, of_system, tracks
from openlpu.schedule.utilisation import links, units

TINY = load_chip("tiny")


def rows(queue: str, op: str, cycle: int, number: int) -> dict[str, np.ndarray]:
    out = np.zeros(1, queue_dtype(queue))
    out["cycle"], out["op"], out["id"] = cycle, BY_NAME[op].opcode, number
    return {queue: out}


def stage(queues, reads, outputs, cycles: int, **links) -> StageProgram:
    claims = Claims(np.array(reads, CLAIM_READ), np.array(outputs, CLAIM_OUTPUT))
    segment = Segment(256, queues, {}, cycles, claims, ((0, "layers.0.x"),))
    return StageProgram(Program(TINY, (), (), 1, 1, (segment,)), 2, ports=("c2ce0",), **links)


@pytest.fixture
def system() -> SystemProgram:
    """Two stages of two chips.  The first reads a vector and sends it on; the second receives and writes it."""
    first = stage(
        rows("mem0", "read", 0, 1) | rows("c2cw0", "send", 5, 2), [(1, 0, RESIDENT, False, 0), (2, 0, 1, False, 0)],
        [], 9, next="c2cw0",
    )
    second = stage(
        rows("c2cw1", "receive", 0, 1) | rows("mem1", "write", 8, 2),
        [(1, 0, RESIDENT, False, 0), (2, 0, 1, False, 0)], [(1, 0, 2, False)], 10, previous="c2cw1",
    )
    cable = Link("cable", 24, 264, 20.0, 1.0, 18, 22, 4, latency=30)
    pair = Group((Way(1, cable, (1, 0), (1, 1), (1, 1)),), relative(2), ((0, 0),))
    return SystemProgram(Split(2, 2), (first, second), (0, 1), (0, 3), pair, (Hop(cable, leaves=0, arrives=2),))


def test_the_path_runs_through_all_stages_and_over_the_links(system: SystemProgram) -> None:
    """The read's 3 cycles, 2 registers to the edge, 30 on the link; 4 to receive, 2 waiting, 2 registers back, 2."""
    token = of_system(system, 0)
    assert token.path == (
        Piece(0, 3, "MEM", "layers.0.x"), Piece(3, 2, "hops", "layers.0.x"), Piece(5, 30, "links", "layers.0.x"),
        Piece(35, 4, "C2C", "layers.3.x"), Piece(39, 2, "waiting", "layers.3.x"), Piece(41, 2, "hops", "layers.3.x"),
        Piece(43, 2, "MEM", "layers.3.x"),
    )
    assert token.cycles == system.cycles(0) == duration(token.chips) == 45
    assert interval(token.chips) == system.interval(0) == 10


def test_chips_have_names_starts_and_links(system: SystemProgram) -> None:
    chips = of_system(system, 0).chips
    assert [run.name for run in chips] == ["chip 0", "chip 1", "chip 2", "chip 3"]
    assert [run.start for run in chips] == [0, 0, 35, 35] and {run.link_slot for run in chips} == {24}
    assert {run.packet_bytes for run in chips} == {264}
    assert [run.operators for run in chips] == [["layers.0.x"]] * 2 + [["layers.3.x"]] * 2, "as on the path"
    assert chips[0].queues is chips[1].queues is not chips[2].queues
    assert [dict(run.peers) for run in chips] == [
        {"c2ce0": "chip 1", "c2cw0": "chip 2"}, {"c2ce0": "chip 0", "c2cw0": "chip 3"},
        {"c2ce0": "chip 3"}, {"c2ce0": "chip 2"},
    ]


def test_the_path_of_one_chip_is_that_of_its_report() -> None:
    graph = random_graph(*CASES["tied"])
    layout = place(graph, TINY)
    program = schedule(graph, layout, buckets(layout.context))
    for segment in program.segments:
        token, made = of_chip(program, segment), report(TINY, segment)
        assert token.path == made.pieces and token.cycles == segment.cycles
        assert sum(made.path.values()) == sum(made.operators.values()) == segment.cycles
        at = 0
        for piece in token.path:
            assert piece.start == at and piece.cycles > 0
            at += piece.cycles
        assert at == segment.cycles
        last = max(int(track.cycle[-1]) for track in tracks(token.chips[0]) if len(track.cycle))
        assert last < segment.cycles, "pictures end with the token"


def test_a_value_that_waits_for_an_array_waits_for_weights() -> None:
    """A value is written in cycle 20 and read in cycle 100, for an array that is installed in cycle 80; the sum of two
    ALUs in a chain was late for what came to the second from elsewhere, not for what came to the first."""
    queues = (
        rows("mem0", "read", 10, 1) | rows("mem1", "write", 18, 2) | rows("mem2", "read", 100, 3)
        | rows("mem3", "read", 60, 4) | rows("mxmw0.weights", "install_weights", 80 - TINY.latency["install"], 6)
        | rows("mxmw0.activations", "activate", 110, 7) | rows("mxmw0.accumulate", "accumulate", 134, 8)
        | rows("mem4", "read", 130, 9) | rows("vxm0", "pass", 139, 10) | rows("vxm1", "add", 141, 11)
        | rows("mem5", "write", 150, 12)
    )
    reads = [(1, 2), (2, 3), (3, 7), (4, 6), (6, 7), (7, 8), (8, 11), (9, 10), (10, 11), (11, 12)]
    claims = Claims(np.array([(reader, i, writer, False, 0) for i, (writer, reader) in enumerate(reads)], CLAIM_READ),
                    np.array([(5, 0, 12, False)], CLAIM_OUTPUT))
    pieces = critical_path(TINY, Segment(256, queues, {}, 152, claims, ((0, "x"),)))
    path = totals((piece.kind, piece.cycles) for piece in pieces)
    assert sum(path.values()) == 152 and path["MXM"] == TINY.latency["matmul"] + TINY.latency["accumulate"]
    (weights,) = (piece for piece in pieces if piece.kind == "weights")
    assert (weights.start, weights.start + weights.cycles) == (20, 70), "10 cycles from its read to its use"


def test_a_compiled_system_has_a_path_through_its_stages() -> None:
    """Two stages of two chips: every cycle of the token once, links among them, layers numbered as in the model."""
    nodes, graph = load_system("tiny-node"), random_graph(replace(BASE, layers=2), LLAMA, Scheme())
    split = Split(2, 2)
    local, hops = cables(nodes, split)
    made = schedule_system(shard(graph, split), nodes.chip, local, hops, contexts=(64,), pace=paced(nodes, split))
    token, at = of_system(made, 0), 0
    for piece in token.path:
        assert piece.start == at and piece.cycles > 0
        at += piece.cycles
    assert at == token.cycles == made.cycles(0) <= duration(token.chips)
    assert interval(token.chips) == made.interval(0)
    over = [piece for piece in token.path if piece.kind == "links"]
    assert sum(piece.cycles for piece in over) >= hops[0].link.latency
    head = made.stage(0).program.segments[0].queues["c2ce0"]["delay"][0]
    assert sum(piece.cycles for piece in token.path if piece.kind == "clock") == head, "once; then links are the wait"
    assert {piece.operator.split(".")[1] for piece in token.path if piece.operator.startswith("layers.")} >= {"0", "1"}
    used, wires = units(token.chips), links(made, 0)
    assert sum(use.count for use in used.values()) == sum(len(q) for run in token.chips for q in run.queues.values())
    sends = sum((q["op"] == BY_NAME["send"].opcode).sum() for run in token.chips for q in run.queues.values())
    assert sum(use.count for use in wires.values()) == sends and set(wires) == {"inside stages", "to the next stage"}
    for use in (*used.values(), *wires.values()):
        assert 0 < use.alone <= use.full <= use.most <= 1
        assert use.full == pytest.approx(use.alone * token.cycles / interval(token.chips))
    for s, run in enumerate(token.chips[::2]):
        queues = [queue for queue, rows in run.queues.items() if queue.startswith("c2c") and len(rows)]
        sending = [q for q in queues if (run.queues[q]["op"] == BY_NAME["send"].opcode).any()]
        assert set(sending) == set(run.peers), f"stage {s}: every queue that sends has somebody at its other end"
