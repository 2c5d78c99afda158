"""Instruction fetch on the chip model: each rule of a queue broken once, the bytes compared, mutants refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chip_programs import SHORT, TINY, Board, Line, assemble, claims_of, long_sum, make_claims

from openlpu._base.errors import ProgramError, Unsupported
from openlpu.arch.chip import load_chip
from openlpu.arch.encoding import extents
from openlpu.arch.isa import ALU, BY_NAME, IMM
from openlpu.target.chip.machine import Machine, resolve
from openlpu.target.chip.mutants import Subject, run_mutants

IFETCH = BY_NAME["ifetch"].opcode
ADD = {"a_kind": IMM, "b_kind": IMM, "dst_kind": ALU}


def test_a_queue_longer_than_its_memory_runs() -> None:
    board, words = long_sum()
    queues = board.queues()
    size = int(extents(queues["vxm0"])[1][-1])
    assert SHORT.queue_bytes + SHORT.ifetch_bytes < size <= SHORT.queue_bytes + 2 * SHORT.ifetch_bytes
    out = board.run(words)
    assert (np.ascontiguousarray(out.T).view(np.int32) == 130 * 131 // 2).all()


REFUSED: dict[str, tuple[int, tuple[int, ...], str]] = {
    "none": (130, (), r"cycle \d+, vxm0, add_mod .*: the queue is empty"),
    "one": (130, (147,), r"the queue is empty"),
    "late": (130, (197, 243), r"cycle 230, vxm0, add_mod .* the queue is empty"),
    "no room": (130, (121, 233), r"cycle 121, vxm0, ifetch .* the queue has no room for what it fetches"),
    "filling": (130, (195, 227), r"cycle 227, vxm0, ifetch .*: the fetch before it is still filling"),
    "nothing": (130, (147, 233, 319), r"cycle 319, vxm0, ifetch .*: nothing is left to fetch for this queue"),
    "short": (20, (147,), r"cycle 147, vxm0, ifetch .* no room"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rule_of_a_queue(case: str) -> None:
    count, fetches, message = REFUSED[case]
    board, _ = long_sum(count, fetches)
    with pytest.raises(ProgramError, match=message):
        resolve(SHORT, board.queues())


def test_the_last_cycles_in_which_a_fetch_is_in_time_and_the_first_with_room() -> None:
    """What the queue holds lasts until cycle 230; a page of it was dispatched by 145."""
    for cycle, good in ((145, True), (143, False), (195, True), (197, False)):
        board, words = long_sum(fetches=(cycle, 233))
        if good:
            board.run(words)
        else:
            with pytest.raises(ProgramError, match="empty|no room"):
                board.run(words)


def test_the_delay_before_an_instruction_must_be_there_when_it_begins() -> None:
    """After cycle 114 the next bytes are a NOP that reaches into the page: it is needed in 115, not in 214."""
    for fetch, good in ((81, True), (82, False)):
        board = Board(SHORT)
        for cycle in range(1, 115):
            if cycle != fetch:
                board.put("vxm0", cycle, "add", **ADD, imm=cycle)
        board.put("vxm0", 214, "add", **ADD)
        board.fetch("vxm0", fetch)
        queues = board.queues()
        start, _ = extents(queues["vxm0"])
        assert start[-1] - 3 < SHORT.queue_bytes < start[-1]
        if good:
            board.machine.run(queues)
        else:
            with pytest.raises(ProgramError, match=r"cycle 214, vxm0, add .*: the queue is empty"):
                resolve(SHORT, queues)


def test_a_repeat_must_be_there_in_the_cycle_after_the_first() -> None:
    """After cycle 114 the next bytes are a repeat that reaches into the page: needed in 115, not in 164."""
    for fetch, good in ((81, True), (82, False)):
        board = Board(SHORT)
        for cycle in range(1, 114):
            if cycle != fetch:
                board.put("vxm0", cycle, "add", **ADD, imm=cycle)
        for cycle in (114, 164, 214):
            board.put("vxm0", cycle, "add", **ADD)
        board.fetch("vxm0", fetch)
        queues = board.queues()
        start, end = extents(queues["vxm0"])
        assert end[-3] < SHORT.queue_bytes < end[-2] == start[-2] == start[-1]
        if good:
            board.machine.run(queues)
        else:
            with pytest.raises(ProgramError, match=r"cycle 164, vxm0, add .*: the queue is empty"):
                resolve(SHORT, queues)


def test_what_the_slices_hold_is_compared() -> None:
    for i in range(4):
        board, words = long_sum()
        queues = board.queues()
        board.machine.state.sram[i, 0, 77] ^= 1
        with pytest.raises(ProgramError, match=r"vxm0, ifetch .* what it fetches is not what comes next in this queue"):
            board.machine.run(queues)
    board, words = long_sum()
    queues = board.queues()
    queues["vxm0"]["imm"][-1] += 1
    with pytest.raises(ProgramError, match=r"cycle 233, vxm0, ifetch .* what it fetches is not"):
        board.machine.run(queues)
    queues = board.queues()
    queues["vxm0"]["imm"][1] += 1  # among those the host filled in
    board.machine.run(queues)
    assert board.machine.peek(*np.array(words).T)[0, 0] == (130 * 131 // 2 + 1) % 256


def test_both_vectors_are_operands() -> None:
    board, _ = long_sum()
    queues = board.queues()
    for name in ("mem0", "mem1"):
        with pytest.raises(ProgramError, match=r"cycle 147, vxm0, ifetch .*: stream 31 carries nothing here"):
            resolve(SHORT, {key: q for key, q in queues.items() if key != name})


def test_a_mem_queue_fetches_beside_one_access() -> None:
    """Beside a read or a write it may lie in any bank; a read and a write leave no slot."""
    lines: dict[str, list[Line]] = {"mem3": [(4, "read", {}), (4, "ifetch", {}), (4, "write", {"address": 2048})]}
    with pytest.raises(ProgramError, match="a third instruction of one MEM queue in one cycle"):
        resolve(TINY, assemble(lines))
    for op in ("read", "write"):
        board = Board(SHORT)
        for word in (5, 6):
            board.store(20, word, np.arange(SHORT.lanes, dtype=np.uint8))
        board.feed("mem20", 300, 7, np.arange(SHORT.lanes, dtype=np.uint8))
        for cycle in range(160, 460):  # 4 bytes each
            board.put("mem20", cycle, op if cycle == 300 else "read", address=5 + cycle % 2, stream=7)
        board.fetch("mem20", 300, 9)
        assert len(board.run([(20, 5)])) == 1


def test_claims_name_both_reads() -> None:
    board, words = long_sum()
    queues = board.queues()
    trace = resolve(SHORT, queues)
    claims = claims_of(trace, words)
    resolve(SHORT, queues, claims)
    first = int(queues["vxm0"]["id"][queues["vxm0"]["op"] == IFETCH][0])
    for operand in range(2):
        reads = claims.reads.copy()
        row = np.flatnonzero((reads["reader"] == first) & (reads["operand"] == operand))
        reads["writer"][row] = reads["writer"][(reads["reader"] == first) & (reads["operand"] != operand)]
        with pytest.raises(ProgramError, match=rf"ifetch .* operand {operand} was written by"):
            resolve(SHORT, queues, replace(claims, reads=reads))
    last = (claims.reads["reader"] == first) & (claims.reads["operand"] == 1)
    missing = make_claims([tuple(r) for r in claims.reads[~last]], [tuple(r) for r in claims.outputs])
    with pytest.raises(ProgramError, match="operand 1 is read but not claimed"):
        resolve(SHORT, queues, missing)


def test_no_mutant_of_a_fetching_program_ends_with_other_bits() -> None:
    board, words = long_sum()
    queues = board.queues()
    claims = claims_of(resolve(SHORT, queues), words)
    slices, addresses = np.array(words).T
    report = run_mutants(Subject(board.machine, queues, claims, (slices, addresses)), 600)
    assert report.escaped == []
    assert report.outcome("hardware") and report.outcome("claims")


def test_a_chip_s_queue_holds_whole_fetches(tmp_path: Path) -> None:
    text = (Path(load_chip.__code__.co_filename).parent / "chips" / "tiny.toml").read_text()
    for before, after in (("ifetch_bytes = 512", "ifetch_bytes = 640"), ("queue_bytes = 2048", "queue_bytes = 2000")):
        (tmp_path / "mine.toml").write_text(text.replace(before, after))
        with pytest.raises(Unsupported, match="a fetch is two vectors, 512 bytes"):
            load_chip(str(tmp_path / "mine.toml"))


def test_what_was_never_stored_cannot_be_fetched() -> None:
    board, _ = long_sum()
    queues = board.queues()
    with pytest.raises(ProgramError, match="reads a word that was never written"):
        Machine(SHORT).run(queues)
