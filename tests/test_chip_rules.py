"""Every rule of the chip model and every claim: programs that break exactly one, and the error that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from chip_programs import TINY, Board, Line, assemble, make_claims

from openlpu._base.errors import ProgramError
from openlpu.arch.isa import ALU, BYTE, IMM, QUAD
from openlpu.schedule.program import RESIDENT, Claims
from openlpu.target.chip.machine import Machine, resolve

ADD = {"a_kind": IMM, "b_kind": IMM, "dst_kind": ALU}
PASS = {"a_kind": IMM, "dst_kind": QUAD}
LOAD = {"stream": 0, "group": 0, "step": 0}
# The east MXM is at position 14, slice 39 at 12: what the slice reads at 0 is on a stream there at 3 + 2.
FEED: dict[str, Sequence[Line]] = {"mem39": [(cycle, "read", {}) for cycle in range(8)]}
INSTALLED: dict[str, Sequence[Line]] = {
    **FEED, "mxme0.weights": [(5, "load_weights", LOAD), (6, "install_weights", {})]
}
ACTIVE: dict[str, Sequence[Line]] = {**INSTALLED, "mxme0.activations": [(10, "activate", {})]}

BAD: dict[str, tuple[Mapping[str, Sequence[Line]], str]] = {
    "queue": ({"mem40": [(0, "read", {})]}, r"mem40: tiny has no queue of this name"),
    "unit": ({"mem3": [(4, "add", {})]}, r"cycle 4, mem3, add \(instruction 1\): not an instruction of"),
    "icu": ({"mem3": [(4, "nop", {})]}, r"nop .* not an instruction of this queue's unit"),
    "link": ({"c2ce0": [(4, "send", {})]}, r"cycle 4, c2ce0, send .* there is no link"),
    "field": ({"mem3": [(0, "read", {"stream": 64})]}, r"mem3, read .* stream does not fit in its field"),
    "negative": ({"mem3": [(0, "read", {"address": -1})]}, r"address does not fit in its field"),
    "address": ({"mem3": [(0, "read", {"address": 4096})]}, r"address is not in 0..4095"),
    "group": ({"mxme0.weights": [(0, "load_weights", {"group": 16})]}, r"group is not in 0..15"),
    "amount": ({"sxme.shift": [(0, "shift", {"amount": 256, "count": 1})]}, r"amount is not in 0..255"),
    "count": ({"sxme.shift": [(0, "shift", {})]}, r"count is not in 1..7"),
    "permute count": ({"sxme.permute": [(0, "permute", {})]}, r"count is not in 1..7"),
    "distribute count": ({"sxme.distribute": [(0, "distribute", {})]}, r"count is not in 1..7"),
    "size": ({"sxme.rotate": [(0, "rotate", {"size": 2})]}, r"size is not in 3..4"),
    "kind": ({"vxm0": [(0, "pass", PASS | {"a_kind": 5})]}, r"operand a is of no known kind"),
    "alu": ({"vxm0": [(0, "pass", PASS | {"a_kind": ALU, "a": 16})]}, r"operand a names an ALU not there"),
    "quad a": ({"vxm0": [(0, "pass", PASS | {"a_kind": QUAD, "a": 2})]}, r"quad a is not a multiple of 4"),
    "quad b": ({"vxm0": [(0, "add", ADD | {"b_kind": QUAD, "b": 33})]}, r"quad b is not a multiple of 4"),
    "quad dst": ({"vxm0": [(0, "pass", PASS | {"dst": 3})]}, r"quad dst is not a multiple of 4"),
    "quad sum": ({"mxme0.accumulate": [(0, "accumulate", {"clear": 1, "emit": 1, "stream": 1})]}, r"quad stream"),
    "no a": ({"vxm0": [(0, "pass", {"dst_kind": ALU})]}, r"operand a is missing"),
    "no b": ({"vxm0": [(0, "add", {"a_kind": IMM, "dst_kind": ALU})]}, r"operand b is missing"),
    "unary b": ({"vxm0": [(0, "exp", ADD)]}, r"a unary instruction has an operand b"),
    "no dst": ({"vxm0": [(0, "pass", {"a_kind": IMM})]}, r"the result has no destination"),
    "run of reads": ({"mxme0.weights": [(0, "load_weights", {"stream": 17, "step": 1})]}, r"leaves the streams"),
    "run of posts": ({"sxme.rotate": [(0, "rotate", {"size": 4, "dst": 48 + 1})]}, r"leaves the streams"),
    "order": ({"mem3": [(4, "read", {}), (3, "read", {})]}, r"cycle 3, mem3, .* before that of the instr"),
    "same cycle": ({"vxm0": [(4, "add", ADD), (4, "add", ADD)]}, r"cycle 4, vxm0, .* two instructions of one"),
    "third": (
        {"mem39": [(0, "read", {}), (4, "read", {"stream": 9}), (4, "write", {"address": 2048}), (4, "read", {})]},
        r"\(instruction 4\): a third instruction of one MEM queue",
    ),
    "two reads": ({"mem3": [(4, "read", {}), (4, "read", {"address": 2048})]}, r"two reads or two writes of one slice"),
    "bank": ({"mem3": [(4, "read", {}), (4, "write", {"address": 2047})]}, r"bank conflict: a read and a write"),
    "indirect": ({"mem3": [(4, "gather", {}), (4, "scatter", {})]}, r"a gather and a scatter of one slice"),
    "empty stream": ({"mem3": [(4, "write", {"stream": 7})]}, r"cycle 4, mem3, write .*: stream 7 carries nothing"),
    "upstream": (
        {"mem8": [(0, "read", {"stream": 7})], "mem3": [(5, "write", {"stream": 7})]}, r"stream 7 carries nothing here",
    ),
    "too early": (
        {"mem0": [(0, "read", {"stream": 7})], "mem4": [(3, "write", {"stream": 7})]}, r"stream 7 carries nothing here",
    ),
    "collision": (
        {"mem0": [(3, "read", {"stream": 7})], "mem1": [(3, "read", {"stream": 7})]},
        r"its result meets that of cycle 3, mem[01], read \(instruction [12]\) on stream 7 in cycle 6",
    ),
    "latch": ({"vxm0": [(0, "exp", {"a_kind": IMM, "dst_kind": ALU}), (6, "add", ADD)]}, r"meets an earlier one"),
    "empty latch": (
        {"vxm0": [(0, "add", ADD)], "vxm1": [(3, "add", ADD | {"a_kind": ALU, "a": 0})]},
        r"cycle 3, vxm1, .* operand a: the latch of that ALU is empty in this cycle",
    ),
    "loaded": ({**FEED, "mxme0.weights": [(5, "load_weights", LOAD), (6, "load_weights", LOAD)]}, r"already loaded"),
    "buffer": ({"mxme0.weights": [(6, "install_weights", {})]}, r"install_weights .* the weight buffer is empty"),
    "other buffer": (
        {**FEED, "mxme0.weights": [(5, "load_weights", LOAD)], "mxmw0.weights": [(9, "install_weights", {})]},
        r"mxmw0.weights, install_weights .* the weight buffer is empty",
    ),
    "array": ({**INSTALLED, "mxme0.activations": [(9, "activate", {})]}, r"cycle 9, .* activate .* no array is"),
    "lost sum": (ACTIVE, r"mxme0.activations, activate .* its sum arrives without an accumulate"),
    "no sum": ({**ACTIVE, "mxme0.accumulate": [(31, "accumulate", {"clear": 1})]}, r"accumulate .* no sum arrives"),
    "accumulator": ({**ACTIVE, "mxme0.accumulate": [(30, "accumulate", {})]}, r"the accumulator holds nothing"),
    "in flight": (
        {"mem39": [(0, "read", {}), (3, "write", {"address": 5}), (4, "read", {"address": 5})]},
        r"cycle 4, mem39, read .* the write of this word is still in flight",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_static_rule(case: str) -> None:
    lines, message = BAD[case]
    with pytest.raises(ProgramError, match=message):
        resolve(TINY, assemble(lines))


def test_opcode_outside_the_table() -> None:
    queues = assemble({"mem3": [(4, "read", {})]})
    queues["mem3"]["op"] = 250
    with pytest.raises(ProgramError, match=r"cycle 4, mem3, opcode 250 .* no such opcode"):
        resolve(TINY, queues)


def test_slots_and_streams_are_the_chip_s() -> None:
    small = replace(TINY, accumulators=8, streams_per_direction=16)
    with pytest.raises(ProgramError, match=r"slot is not in 0..7"):
        resolve(small, assemble({"mxme0.accumulate": [(0, "accumulate", {"slot": 8})]}))
    with pytest.raises(ProgramError, match="leaves the streams of one direction"):
        resolve(small, assemble({"mem0": [(0, "read", {"stream": 16})]}))


def test_the_neighbours_of_the_bad_programs_are_good() -> None:
    """The same programs with the one thing put right are accepted."""
    good: list[Mapping[str, Sequence[Line]]] = [
        {"mem3": [(4, "gather", {"map": 1}), (4, "write", {"address": 2048, "stream": 1})],
         "mem0": [(1, "read", {"stream": 1})]},
        {"mem0": [(0, "read", {"stream": 7})], "mem4": [(4, "write", {"stream": 7})]},
        {"mem39": [(0, "read", {}), (3, "write", {"address": 5}), (5, "read", {"address": 5})]},
        {"vxm0": [(0, "exp", {"a_kind": IMM, "dst_kind": ALU}), (7, "add", ADD)]},
        {**ACTIVE, "mxme0.accumulate": [(30, "accumulate", {"clear": 1})]},
        {"vxm0": [(0, "add", ADD)], "vxm1": [(2, "add", ADD | {"a_kind": ALU, "a": 0})]},
    ]
    for lines in good:
        resolve(TINY, assemble(lines))


# Rules that depend on address maps


def indirect(offset: int, later: Sequence[Line] = (), op: str = "scatter", claims: Claims | None = None) -> Machine:
    """A scatter or gather in slice 20 at cycle 60, base address 2040, map ``offset``; then ``later`` in that slice."""
    board = Board()
    maps = np.zeros((TINY.superlanes, 16), np.uint8)
    maps[:, 0], maps[:, 1] = offset & 255, offset >> 8
    board.feed("mem20", 60, 0, np.arange(TINY.lanes).astype(np.uint8))
    board.feed("mem20", 60, 1, maps.reshape(-1))
    if op != "none":
        board.put("mem20", 60, op, address=2040, stream=0 if op == "scatter" else 9, map=1)
    board.store(20, 1, np.zeros(TINY.lanes, np.uint8))
    for cycle, name, fields in later:
        board.put("mem20", cycle, name, **fields)
    board.machine.run(board.queues(), claims)
    return board.machine


def test_map_beyond_the_slice() -> None:
    with pytest.raises(ProgramError, match=r"cycle 60, mem20, scatter .* an address of the map lies beyond the slice"):
        indirect(4096 - 2040)
    indirect(4095 - 2040)


def test_scattered_word_in_flight() -> None:
    with pytest.raises(ProgramError, match=r"cycle 61, mem20, read .* the write of this word is still in flight"):
        indirect(3, [(61, "read", {"address": 2043, "stream": 9})])
    indirect(3, [(62, "read", {"address": 2043, "stream": 9})])
    indirect(3, [(61, "read", {"address": 1, "stream": 9})])


def test_word_that_a_scatter_left_out() -> None:
    with pytest.raises(ProgramError, match=r"cycle 62, mem20, read .* never written"):
        indirect(3, [(62, "read", {"address": 2042, "stream": 9})])
    with pytest.raises(ProgramError, match=r"cycle 60, mem20, gather .* never written"):
        indirect(3, op="gather")


def test_map_that_meets_the_bank_beside_it() -> None:
    beside: Line = (60, "read", {"address": 1, "stream": 9})
    with pytest.raises(ProgramError, match=r"scatter .* bank conflict: its map meets the bank of the access beside it"):
        indirect(3, [beside])
    indirect(8, [beside])  # word 2048 is in the other bank


# Claims


def copy() -> tuple[dict, list[tuple], list[tuple]]:
    """Word 0 of slice 0 plus a number, to slices 20..23; ids 1-4 read, 5 pass, 6 add, 7-10 write; its claims."""
    board, x = Board(), TINY.vxm_position
    for k in range(4):
        board.put(f"mem{k}", 0, "read", stream=k)
    start = 3 + x - TINY.slice_position(0)
    board.put("vxm0", start, "pass", a_kind=QUAD, a=0, dst_kind=ALU)
    board.put("vxm1", start + 2, "add_mod", a_kind=ALU, a=0, b_kind=IMM, imm=9, dst_kind=QUAD, dst=4)
    for k in range(4):
        hops = TINY.slice_position(20 + k) - x
        board.put(f"mem{20 + k}", start + 4 + hops, "write", address=8, stream=4 + k)
    reads = [(k + 1, 0, RESIDENT, False, 0) for k in range(4)]
    reads += [(5, k, k + 1, False, 0) for k in range(4)] + [(6, 0, 5, False, 0)]
    reads += [(7 + k, 0, 6, False, k) for k in range(4)]
    return board.queues(), reads, [(20 + k, 8, 7 + k, False) for k in range(4)]


def test_claims_met() -> None:
    queues, reads, outputs = copy()
    resolve(TINY, queues, make_claims(reads, outputs))
    reads[0] = (1, 0, RESIDENT, True, 0)
    reads[4] = (5, 0, 1, True, 0)
    resolve(TINY, queues, make_claims(reads, outputs))


WRONG_CLAIMS: dict[str, tuple[int, tuple | None, str]] = {
    "writer": (
        8, (6, 0, 4, False, 0),
        r"add_mod \(instruction 6\): operand 0 was written by \[.* pass \(instruction 5\)\]; "
        r"claimed is \[cycle 0, mem3, read \(instruction 4\)\]",
    ),
    "resident": (0, (1, 0, 6, False, 0), r"read \(instruction 1\): operand 0 was written by nobody in this run; cl"),
    "writer absent": (4, (5, 0, 77, False, 0), r"claimed is an instruction that never ran"),
    "reader absent": (4, (55, 0, 1, False, 0), r"claimed reader never ran: instruction 55"),
    "part": (9, (7, 0, 6, False, 1), r"write \(instruction 7\): operand 0 is part 0 of what .* claimed is part 1"),
    "word": (0, (1, 0, RESIDENT, False, 3), r"read \(instruction 1\): operand 0 is part 0 .* claimed is part 3"),
    "not read": (4, (5, 6, 1, False, 0), r"pass \(instruction 5\): operand 6 is claimed but not read"),
    "twice": (4, (5, 1, 2, False, 0), r"pass \(instruction 5\): operand [01] is .*claimed"),
    "unclaimed": (4, None, r"pass \(instruction 5\): operand 0 is read but not claimed"),
}


@pytest.mark.parametrize("case", WRONG_CLAIMS)
def test_claim_not_met(case: str) -> None:
    queues, reads, outputs = copy()
    at, row, message = WRONG_CLAIMS[case]
    reads[at : at + 1] = [] if row is None else [row]
    with pytest.raises(ProgramError, match=message):
        resolve(TINY, queues, make_claims(reads, outputs))


def test_a_claim_made_twice() -> None:
    queues, reads, outputs = copy()
    with pytest.raises(ProgramError, match="operand 0 is claimed twice"):
        resolve(TINY, queues, make_claims([*reads, reads[4]], outputs))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((20, 8, 99, False), r"word 8 of slice 20 is not what an instruction that never ran wrote"),
        ((20, 9, 7, False), r"write \(instruction 7\): is claimed to write word 9 of slice 20"),
        ((20, 8, 7, True), r"write \(instruction 7\): is claimed to write word 8 of slice 20"),
        ((0, 0, 1, False), r"read \(instruction 1\): is claimed to write"),
    ],
)
def test_output_not_there(row: tuple, message: str) -> None:
    queues, reads, outputs = copy()
    with pytest.raises(ProgramError, match=message):
        resolve(TINY, queues, make_claims(reads, [row, *outputs[1:]]))


def test_output_overwritten() -> None:
    queues, reads, outputs = copy()
    more: dict[str, list[Line]] = {
        "mem19": [(30, "read", {"stream": 0})], "mem20": [(0, "read", {}), (35, "write", {"address": 8})]
    }
    again = assemble(more)
    queues["mem19"], late = again["mem19"], again["mem20"][1:]
    queues["mem19"]["id"], late["id"] = 20, 21
    queues["mem20"] = np.concatenate([queues["mem20"], late])
    reads += [(20, 0, RESIDENT, False, 0), (21, 0, 20, False, 0)]
    with pytest.raises(ProgramError, match=r"outputs: after the run word 8 of slice 20 is not .*instruction 7\)\]"):
        resolve(TINY, queues, make_claims(reads, outputs))
    resolve(TINY, queues, make_claims(reads, [*outputs[1:], (20, 8, 21, False)]))


def test_ids_are_unique() -> None:
    queues, reads, outputs = copy()
    queues["mem1"]["id"] = 1
    with pytest.raises(ProgramError, match="two instructions have this id"):
        resolve(TINY, queues, make_claims(reads, outputs))
    queues["mem1"]["id"] = RESIDENT
    with pytest.raises(ProgramError, match="id 0 means resident"):
        resolve(TINY, queues, make_claims(reads, outputs))


SCATTER = [(1, 0, RESIDENT, False, 0), (2, 0, RESIDENT, False, 0), (3, 0, 1, False, 0), (3, 1, 2, False, 0)]


def test_claims_about_scattered_words() -> None:
    """Who wrote a word that a map chose is compared while running."""
    later: list[Line] = [(62, "read", {"address": 2043, "stream": 9}), (64, "read", {"address": 1, "stream": 9})]
    out = [(20, 2040, 3, True)]
    other = (5, 0, RESIDENT, False, 1)
    for writer, either in ((3, False), (3, True)):
        indirect(3, later, claims=make_claims([*SCATTER, (4, 0, writer, either, 2043), other], out))
    indirect(3, later, claims=make_claims([*SCATTER, (4, 0, 3, False, 2043), (5, 0, 3, True, 1)], out))
    with pytest.raises(ProgramError, match=r"read \(instruction 4\): operand 0 was written by \[.*scatter .* nobody"):
        indirect(3, later, claims=make_claims([*SCATTER, (4, 0, RESIDENT, False, 2043), other], out))
    with pytest.raises(ProgramError, match=r"read \(instruction 5\): operand 0 was written by nobody in this run"):
        indirect(3, later, claims=make_claims([*SCATTER, (4, 0, 3, False, 2043), (5, 0, 3, False, 1)], out))


def test_outputs_of_scatters() -> None:
    with pytest.raises(ProgramError, match=r"scatter \(instruction 3\): its words are not claimed as outputs"):
        indirect(3, claims=make_claims(SCATTER))
    reads = [*SCATTER, (4, 0, RESIDENT, False, 1), (5, 0, 4, False, 0)]
    for address, right in ((2044, True), (2043, False)):
        later: list[Line] = [
            (62, "read", {"address": 1, "stream": 9}), (65, "write", {"address": address, "stream": 9})
        ]
        claims = make_claims(reads, [(20, 2040, 3, True), (20, address, 5, False)])
        if right:
            indirect(3, later, claims=claims)
        else:
            with pytest.raises(ProgramError, match=r"word 2040 of slice 20 is not what \[cycle 60, mem20, scatter"):
                indirect(3, later, claims=claims)


def test_byte_and_quad_kinds_are_used() -> None:
    """A byte destination posts one stream, a quad four."""
    one = {"vxm0": [(0, "pass", {"a_kind": IMM, "dst_kind": BYTE, "dst": 9})], "mem20": [(3, "write", {"stream": 9})]}
    resolve(TINY, assemble(one))
    two = {"vxm0": [(0, "pass", {"a_kind": IMM, "dst_kind": BYTE, "dst": 8})], "mem20": [(3, "write", {"stream": 9})]}
    with pytest.raises(ProgramError, match="stream 9 carries nothing here"):
        resolve(TINY, assemble(two))
