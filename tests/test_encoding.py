"""Columns to bytes and back; the sizes and the errors of the encoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.encoding import (
    COUNT_MAX,
    EVERY_MAX,
    NOP_MAX,
    RISING,
    STEP_MAX,
    decode,
    encode,
    extents,
    instruction_bytes,
    repeated,
    size,
)
from openlpu.arch.isa import BY_NAME, TABLE, Instruction, instructions_of, unit_of_queue
from openlpu.arch.isa_table import UNITS, render
from openlpu.schedule.program import queue_dtype

QUEUES = (
    "mem0", "vxm15", "mxme1.weights", "mxmw0.activations", "mxme0.accumulate", "sxmw.shift", "sxme.permute",
    "sxmw.distribute", "sxme.rotate", "sxmw.transpose1", "c2ce3",
)


REPEAT = BY_NAME["repeat"]


def chosen(draw: st.DrawFn, columns: NDArray, row: int, instruction: Instruction) -> None:
    columns["op"][row] = instruction.opcode
    for f in instruction.fields:
        low, high = (-(2**31), 2**31 - 1) if f.bits == 32 else (0, 2**f.bits - 1)
        columns[f.name][row] = draw(st.integers(low, high))


@st.composite
def queues(draw: st.DrawFn) -> tuple[str, NDArray]:
    """Instructions of one unit, some followed by others like them at equal distances."""
    queue = draw(st.sampled_from(QUEUES))
    instructions = instructions_of(unit_of_queue(queue))
    gaps = st.sampled_from([0, 1, 1, 2, 3, EVERY_MAX, EVERY_MAX + 1, NOP_MAX, NOP_MAX + 1, NOP_MAX + 2, 3 * NOP_MAX])
    runs = draw(st.lists(st.tuples(gaps, st.sampled_from([0, 0, 1, 2, 3, 9])), max_size=8))
    columns = np.zeros(sum(more + 1 for _, more in runs), queue_dtype(queue))
    cycle, row = -1, 0
    for gap, more in runs:
        instruction, every = draw(st.sampled_from(instructions)), draw(gaps)
        chosen(draw, columns, row, instruction)
        cycle = max(cycle + gap, 0)
        rising = [f for f in instruction.fields if f.name in RISING]
        step = draw(st.sampled_from([-1, 0, 1, 7, STEP_MAX, STEP_MAX + 1])) if rising else 0
        columns["cycle"][row] = cycle
        for k in range(1, more + 1):
            columns[row + k] = columns[row]
            cycle += every
            columns["cycle"][row + k] = cycle
            for f in rising:
                columns[f.name][row + k] = (int(columns[f.name][row]) + k * step) % 2**f.bits
        row += more + 1
    return queue, columns


@given(queues())
@settings(max_examples=150, deadline=None)
def test_round_trip(program: tuple[str, NDArray]) -> None:
    queue, columns = program
    data = encode(queue, columns)
    assert (decode(queue, data, queue_dtype(queue)) == columns).all()
    (start, end), again = extents(columns), repeated(columns)
    assert [data[i] & 127 for i in start[again == 0]] == columns["op"][again == 0].tolist()
    assert all(data[i - size(REPEAT)] & 127 == REPEAT.opcode for i in end[again > 0])
    assert len(data) == (end[-1] if len(end) else 0)


def test_bytes_are_as_the_docs_say() -> None:
    columns = np.zeros(2, queue_dtype("mem0"))
    columns["cycle"], columns["op"], columns["address"], columns["stream"] = (2, 3), BY_NAME["read"].opcode, 5, 63
    read = BY_NAME["read"].opcode | 5 << 7 | 63 << 20
    nop = BY_NAME["nop"].opcode | 2 << 7
    expected = nop.to_bytes(3, "little") + 2 * read.to_bytes(4, "little")
    assert encode("mem0", columns) == expected
    assert instruction_bytes({"mem0": columns, "mem1": columns[:1]}) == len(expected) + 7


def test_size_counts_opcode_and_fields() -> None:
    assert size(BY_NAME["nop"]) == 3
    assert size(BY_NAME["add"]) == 9


def test_what_cannot_be_encoded() -> None:
    columns = np.zeros(2, queue_dtype("mem0"))
    columns["op"] = BY_NAME["read"].opcode
    columns["cycle"] = (5, 4)
    with pytest.raises(ProgramError, match="cycles decrease at instruction 1"):
        encode("mem0", columns)
    columns["cycle"] = (4, 5)
    columns["stream"] = 64
    with pytest.raises(ProgramError, match="stream does not fit in 6 bits"):
        encode("mem0", columns)


def test_what_cannot_be_decoded() -> None:
    columns = np.zeros(1, queue_dtype("mem0"))
    columns["op"] = BY_NAME["read"].opcode
    data = encode("mem0", columns)
    with pytest.raises(ProgramError, match="cut off"):
        decode("mem0", data[:-1], queue_dtype("mem0"))
    with pytest.raises(ProgramError, match="is not of unit vxm"):
        decode("vxm0", data, queue_dtype("vxm0"))


def test_the_page_of_the_table_is_current() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "isa.md"
    assert page.read_text("utf-8") == render(), "run: python -m openlpu.arch.isa_table docs/isa.md"
    assert {i.unit for i in TABLE} == set(UNITS)


def reads(cycles: list[int], addresses: list[int]) -> NDArray:
    columns = np.zeros(len(cycles), queue_dtype("mem0"))
    columns["op"], columns["cycle"], columns["address"] = BY_NAME["read"].opcode, cycles, addresses
    return columns


def test_a_run_is_its_first_and_a_repeat() -> None:
    columns = reads([0, 1, 2, 3, 9, 12, 15], [7, 8, 9, 10, 10, 10, 10])
    first = BY_NAME["read"].opcode | 7 << 7
    repeat = REPEAT.opcode | 3 << 7 | 1 << 19 | 1 << 27
    then = BY_NAME["read"].opcode | 10 << 7
    again = REPEAT.opcode | 2 << 7 | 3 << 19 | 0 << 27
    nop = BY_NAME["nop"].opcode | 5 << 7
    words = b"".join(w.to_bytes(4, "little") for w in (first, repeat, then, again))
    assert encode("mem0", columns) == words[:8] + nop.to_bytes(3, "little") + words[8:]
    start, end = extents(columns)
    assert start.tolist() == [0, 8, 8, 8, 11, 19, 19] and end.tolist() == [4, 8, 8, 8, 15, 19, 19]


def test_weights_of_any_length_take_a_few_bytes() -> None:
    columns = reads(list(range(2 * COUNT_MAX)), [k % 8192 for k in range(2 * COUNT_MAX)])
    data = encode("mem0", columns)
    assert len(data) == 2 * 8 and (decode("mem0", data, columns.dtype) == columns).all()


def test_what_no_repeat_can_say_is_written_out() -> None:
    """Two of a kind, unequal distances, falling addresses, steps and distances too large, the last of another run."""
    for cycles, addresses in (
        ([0, 1], [5, 6]), ([0, 1, 3], [5, 6, 7]), ([0, 1, 2], [7, 6, 5]), ([0, 1, 2], [5, 6, 8]),
        ([0, 0, 1], [5, 6, 7]), ([0, 256, 512], [5, 5, 5]), ([0, 1, 2], [0, 32, 64]),
    ):
        assert not repeated(reads(cycles, addresses)).any()
    assert repeated(reads([0, 1, 2, 5, 8], [5, 5, 5, 5, 5])).tolist() == [0, 1, 2, 0, 0]
    assert repeated(reads([0, 1, 2, 5, 8, 11], [5, 5, 5, 5, 5, 5])).tolist() == [0, 1, 2, 0, 1, 2]


def test_a_repeat_of_nothing_is_refused() -> None:
    run = encode("mem0", reads([0, 1, 2, 3], [0, 1, 2, 3]))
    repeat, nop = run[4:], b"\0\1\0"
    for data in (repeat, run + repeat, run[:4] + nop + repeat):
        with pytest.raises(ProgramError, match="there is nothing to repeat"):
            decode("mem0", data, queue_dtype("mem0"))


def test_fields_are_checked_inside_a_run() -> None:
    with pytest.raises(ProgramError, match="address does not fit in 13 bits"):
        encode("mem0", reads([0, 1, 2], [8190, 8191, 8192]))
