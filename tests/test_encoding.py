"""Columns to bytes and back; the sizes and the errors of the encoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.encoding import NOP_MAX, decode, encode, extents, instruction_bytes, size
from openlpu.arch.isa import BY_NAME, TABLE, instructions_of, unit_of_queue
from openlpu.arch.isa_table import UNITS, render
from openlpu.schedule.program import queue_dtype

QUEUES = (
    "mem0", "vxm15", "mxme1.weights", "mxmw0.activations", "mxme0.accumulate", "sxmw.shift", "sxme.permute",
    "sxmw.distribute", "sxme.rotate", "sxmw.transpose1", "c2ce3",
)


@st.composite
def queues(draw: st.DrawFn) -> tuple[str, NDArray]:
    queue = draw(st.sampled_from(QUEUES))
    instructions = instructions_of(unit_of_queue(queue))
    gaps = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, NOP_MAX, NOP_MAX + 1, NOP_MAX + 2, 3 * NOP_MAX]), max_size=12))
    columns = np.zeros(len(gaps), queue_dtype(queue))
    cycle = -1
    for row, gap in enumerate(gaps):
        cycle = max(cycle + gap, 0)
        instruction = draw(st.sampled_from(instructions))
        columns["cycle"][row], columns["op"][row] = cycle, instruction.opcode
        for f in instruction.fields:
            low, high = (-(2**31), 2**31 - 1) if f.bits == 32 else (0, 2**f.bits - 1)
            columns[f.name][row] = draw(st.integers(low, high))
    return queue, columns


@given(queues())
@settings(max_examples=80, deadline=None)
def test_round_trip(program: tuple[str, NDArray]) -> None:
    queue, columns = program
    data = encode(queue, columns)
    assert (decode(queue, data, queue_dtype(queue)) == columns).all()
    start, end = extents(columns["cycle"], columns["op"])
    assert [data[i] & 127 for i in start] == columns["op"].tolist()
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
