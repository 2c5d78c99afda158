"""A queue's columns in, the bytes its instruction queue fetches out; and back.

An instruction is its opcode (7 bits) and its fields in table order, least significant bit first, in whole bytes.
Columns carry absolute cycles, bytes do not: an instruction is dispatched one cycle after the one before it, and
``nop n`` adds n cycles.  ``nop 0`` says that the next one shares the cycle of the one before (a MEM slice
dispatches a read and a write at once).  Ids are not encoded: they exist for claims only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.isa import BY_NAME, OPCODE_BITS, TABLE, Instruction, instructions_of, unit_of_queue

NOP = BY_NAME["nop"]
NOP_MAX = (1 << NOP.fields[0].bits) - 1


def size(instruction: Instruction) -> int:
    """Bytes of an encoded instruction."""
    return -(-instruction.bits // 8)


SIZES = np.array([size(i) for i in TABLE])


def extents(cycle: NDArray, op: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Byte offsets in the encoded queue where each instruction starts, its NOPs lying in front, and where it ends."""
    gap = np.diff(cycle.astype(np.int64), prepend=-1)
    delay = np.where(gap == 0, 1, -(-(gap - 1) // NOP_MAX))  # NOPs in front of each instruction
    own = SIZES[op]
    end = np.cumsum(delay * size(NOP) + own)
    return end - own, end


def encode(queue: str, columns: NDArray) -> bytes:
    """The bytes of one queue.  Raises :class:`ProgramError` when a cycle or a field cannot be encoded."""
    gap = np.diff(columns["cycle"].astype(np.int64), prepend=-1)
    if (gap < 0).any():
        raise ProgramError(f"cycles decrease at instruction {int(np.argmax(gap < 0))} of the queue", where=queue)
    start, end = extents(columns["cycle"], columns["op"])
    front = np.append(0, end)[:-1]  # where the NOPs of each instruction start
    delay = (start - front) // size(NOP)
    out = np.zeros(int(end[-1]) if len(end) else 0, np.uint8)
    for op in np.unique(columns["op"]):
        rows = columns["op"] == op
        _put(out, start[rows], TABLE[op], _words(queue, TABLE[op], columns[rows]))
    which = np.repeat(np.arange(len(columns)), delay)
    k = np.arange(len(which)) - np.repeat(np.cumsum(delay) - delay, delay)
    count = np.clip((gap - 1)[which] - k * NOP_MAX, 0, NOP_MAX)
    _put(out, front[which] + k * size(NOP), NOP, _bits(NOP, [count]))
    return out.tobytes()


def _words(queue: str, instruction: Instruction, columns: NDArray) -> NDArray[np.uint8]:
    values = []
    for f in instruction.fields:
        value = columns[f.name].astype(np.int64)
        if f.bits < 32 and ((value < 0) | (value >= 1 << f.bits)).any():
            raise ProgramError(f"{f.name} does not fit in {f.bits} bits", where=f"{queue}, {instruction.name}")
        values.append(value)
    return _bits(instruction, values)


def _bits(instruction: Instruction, values: list[NDArray[np.int64]]) -> NDArray[np.uint8]:
    """Encoded instructions [n, bytes] from their field values."""
    n = len(values[0]) if values else 1
    parts = [(np.full(n, instruction.opcode), OPCODE_BITS)]
    parts += [(value, f.bits) for f, value in zip(instruction.fields, values, strict=True)]
    bits = [(value[:, None] >> np.arange(width)) & 1 for value, width in parts]
    return np.packbits(np.concatenate(bits, axis=1).astype(np.uint8), axis=1, bitorder="little")


def _put(out: NDArray[np.uint8], at: NDArray, instruction: Instruction, words: NDArray[np.uint8]) -> None:
    out[at[:, None] + np.arange(size(instruction))] = words


def decode(queue: str, data: bytes, dtype: np.dtype) -> NDArray:
    """Columns of type ``dtype`` (that of the queue) from bytes; ids are 0.

    Raises :class:`ProgramError` at an opcode that is not the queue's, or at a truncated end.
    """
    cycles, ops, starts = _walk(queue, data)
    columns = np.zeros(len(ops), dtype)
    columns["cycle"], columns["op"] = cycles, ops
    raw = np.frombuffer(data, np.uint8)
    for op in np.unique(ops):
        rows, instruction = np.flatnonzero(ops == op), TABLE[op]
        words = raw[starts[rows][:, None] + np.arange(size(instruction))]
        bits = np.unpackbits(words, axis=1, bitorder="little").astype(np.int64)
        at = OPCODE_BITS
        for f in instruction.fields:
            value = bits[:, at : at + f.bits] @ (1 << np.arange(f.bits))
            columns[f.name][rows] = value.astype(np.uint32).view(np.int32)
            at += f.bits
    return columns


def _walk(queue: str, data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cycle, opcode and byte offset of each instruction that is not a NOP."""
    found: list[tuple[int, int, int]] = []
    at, cycle, shared = 0, -1, False
    unit = unit_of_queue(queue)
    known = {i.opcode for i in (NOP, *instructions_of(unit))}
    while at < len(data):
        op = data[at] & (1 << OPCODE_BITS) - 1
        if op not in known:
            raise ProgramError(f"byte {at}: opcode {op} is not of unit {unit}", where=queue)
        if at + size(TABLE[op]) > len(data):
            raise ProgramError(f"byte {at}: the last instruction is cut off", where=queue)
        if op == NOP.opcode:
            count = int.from_bytes(data[at : at + size(NOP)], "little") >> OPCODE_BITS
            cycle, shared = cycle + count, count == 0
        else:
            cycle += not shared
            shared = False
            found.append((cycle, op, at))
        at += size(TABLE[op])
    table = np.array(found, np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def instruction_bytes(queues: Mapping[str, NDArray]) -> int:
    """Bytes of all queues, NOPs included: what a program's instructions take in SRAM."""
    return sum(len(encode(name, columns)) for name, columns in queues.items())
