"""A queue's columns in, the bytes its instruction queue fetches out; and back.

An instruction is its opcode (7 bits) and its fields in table order, least significant bit first, in whole bytes.
Columns carry absolute cycles, bytes do not: an instruction is dispatched one cycle after the one before it, and
``nop n`` adds n cycles.  ``nop 0`` says that the next one shares the cycle of the one before (a MEM slice
dispatches a read and a write at once).  Ids are not encoded: they exist for claims only.

Columns are always written out; in bytes, three or more equal instructions at equal distances whose address (or weight
buffer group, or accumulator) rises by an equal step are the first of them and a ``repeat``.  So a stream of weights
takes a few bytes, however long it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.isa import BY_NAME, OPCODE_BITS, TABLE, Instruction, instructions_of, unit_of_queue

Ints = NDArray[np.int64]

NOP, REPEAT = BY_NAME["nop"], BY_NAME["repeat"]
NOP_MAX = (1 << NOP.fields[0].bits) - 1
COUNT_MAX, EVERY_MAX, STEP_MAX = ((1 << f.bits) - 1 for f in REPEAT.fields)
RISING = ("address", "group", "slot")  # what a repeat's step is added to; no unit has two of them
RISES = np.array([any(f.name in RISING for f in i.fields) for i in TABLE])
REPEATABLE = np.array([i.unit != "icu" for i in TABLE])


def size(instruction: Instruction) -> int:
    """Bytes of an encoded instruction."""
    return -(-instruction.bits // 8)


SIZES = np.array([size(i) for i in TABLE])


def repeated(columns: NDArray) -> Ints:
    """For each instruction of a queue, 0 if it is written out, k if it is the k-th repetition of one that is."""
    return _again(*_pairs(columns))[: len(columns)]


def _again(gap: Ints, step: Ints, alike: NDArray[np.bool_]) -> Ints:
    """:func:`repeated`, from :func:`_pairs`."""
    out = np.zeros(len(gap) + 1, np.int64)
    if len(gap) < 2:
        return out
    # A stretch is a run of pairs (i, i + 1) of equal gap and step.
    on = alike[1:] & alike[:-1] & (gap[1:] == gap[:-1]) & (step[1:] == step[:-1])
    first, last = np.flatnonzero(alike & ~np.append(False, on)), np.flatnonzero(alike & ~np.append(on, False))
    long = last - first > 0
    first, last = first[long], last[long]
    first[1:] += first[1:] == last[:-1] + 1  # an instruction between two stretches belongs to the one before it
    long = last - first > 0
    first, count = first[long], (last - first + 1)[long]
    k = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + 1
    out[np.repeat(first, count) + k] = k % (COUNT_MAX + 1)
    return out


def _pairs(columns: NDArray) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Of each instruction and the next: cycles between them, the step of what rises, whether a repeat can say it."""
    cycle, op = columns["cycle"].astype(np.int64), columns["op"]
    gap = cycle[1:] - cycle[:-1]
    step = np.zeros(len(gap), np.int64)
    alike = (op[1:] == op[:-1]) & REPEATABLE[op[1:]] & (gap > 0) & (gap <= EVERY_MAX)
    for name in (columns.dtype.names or ())[3:]:
        column = columns[name]
        if name in RISING:
            step = column[1:].astype(np.int64) - column[:-1]
        else:
            alike &= column[1:] == column[:-1]
    return gap, step, alike & (step >= 0) & (step <= STEP_MAX) & ((step == 0) | RISES[op[1:]])


def extents(columns: NDArray) -> tuple[Ints, Ints]:
    """Byte offsets in the encoded queue where each instruction starts, its NOPs lying in front, and where it ends.

    A repetition has no bytes of its own: it starts and ends where the ``repeat`` that stands for it ends.
    """
    return _extents(columns, repeated(columns))


def joints(columns: NDArray) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """:func:`extents`, and of each instruction and the next whether one repeat may say both; where not, the queue's
    parts are encoded each as if it stood alone."""
    pairs = _pairs(columns)
    return *_extents(columns, _again(*pairs)[: len(columns)]), pairs[2]


def _extents(columns: NDArray, again: Ints) -> tuple[Ints, Ints]:
    gap = np.diff(columns["cycle"].astype(np.int64), prepend=-1)
    delay = np.where(gap == 0, 1, -(-(gap - 1) // NOP_MAX))  # NOPs in front of each instruction
    own = SIZES[columns["op"]]
    end = np.cumsum(np.where(again == 0, delay * size(NOP) + own, np.where(again == 1, size(REPEAT), 0)))
    return end - np.where(again == 0, own, 0), end


def encode(queue: str, columns: NDArray) -> bytes:
    """The bytes of one queue.  Raises :class:`ProgramError` when a cycle or a field cannot be encoded."""
    gap = np.diff(columns["cycle"].astype(np.int64), prepend=-1)
    if (gap < 0).any():
        raise ProgramError(f"cycles decrease at instruction {int(np.argmax(gap < 0))} of the queue", where=queue)
    again = repeated(columns)
    start, end = _extents(columns, again)
    out = np.zeros(int(end[-1]) if len(end) else 0, np.uint8)
    for op in np.unique(columns["op"]):
        rows = columns["op"] == op
        words = _words(queue, TABLE[op], columns[rows])
        _put(out, start[rows & (again == 0)], TABLE[op], words[again[rows] == 0])
    _put_nops(out, gap, again, start, end)
    _put_repeats(out, columns, again, end)
    return out.tobytes()


def _put_nops(out: NDArray[np.uint8], gap: Ints, again: Ints, start: Ints, end: Ints) -> None:
    front = np.append(0, end)[:-1]  # where the NOPs of each instruction start
    delay = np.where(again == 0, (start - front) // size(NOP), 0)
    which = np.repeat(np.arange(len(gap)), delay)
    k = np.arange(len(which)) - np.repeat(np.cumsum(delay) - delay, delay)
    count = np.clip((gap - 1)[which] - k * NOP_MAX, 0, NOP_MAX)
    _put(out, front[which] + k * size(NOP), NOP, _bits(NOP, [count]))


def _put_repeats(out: NDArray[np.uint8], columns: NDArray, again: Ints, end: Ints) -> None:
    written = np.append(np.flatnonzero(again == 0), len(again))
    count = np.diff(written) - 1
    first = written[:-1][count > 0]
    every = np.diff(columns["cycle"].astype(np.int64))[first]
    name = next((n for n in RISING if n in (columns.dtype.names or ())), None)
    step = np.diff(columns[name].astype(np.int64))[first] if name else np.zeros(len(first), np.int64)
    _put(out, end[first], REPEAT, _bits(REPEAT, [count[count > 0], every, step]))


def _words(queue: str, instruction: Instruction, columns: NDArray) -> NDArray[np.uint8]:
    values = []
    for f in instruction.fields:
        value = columns[f.name].astype(np.int64)
        if f.bits < 32 and ((value < 0) | (value >= 1 << f.bits)).any():
            raise ProgramError(f"{f.name} does not fit in {f.bits} bits", where=f"{queue}, {instruction.name}")
        values.append(value)
    if not values:
        return np.full((len(columns), size(instruction)), instruction.opcode, np.uint8)
    return _bits(instruction, values)


def _bits(instruction: Instruction, values: list[Ints]) -> NDArray[np.uint8]:
    """Encoded instructions [n, bytes] from their field values."""
    n = len(values[0])
    parts = [(np.full(n, instruction.opcode), OPCODE_BITS)]
    parts += [(value, f.bits) for f, value in zip(instruction.fields, values, strict=True)]
    bits = [(value[:, None] >> np.arange(width)) & 1 for value, width in parts]
    return np.packbits(np.concatenate(bits, axis=1).astype(np.uint8), axis=1, bitorder="little")


def _put(out: NDArray[np.uint8], at: NDArray, instruction: Instruction, words: NDArray[np.uint8]) -> None:
    out[at[:, None] + np.arange(size(instruction))] = words


def decode(queue: str, data: bytes, dtype: np.dtype) -> NDArray:
    """Columns of type ``dtype`` (that of the queue) from bytes; ids are 0.

    Raises :class:`ProgramError` at an opcode that is not the queue's, at a repeat of nothing, or at a truncated end.
    """
    cycle, ops, starts, count, every, step = _walk(queue, data).T
    columns = np.zeros(len(ops), dtype)
    columns["op"] = ops
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
    times = count + 1
    columns = np.repeat(columns, times)
    k = np.arange(len(columns)) - np.repeat(np.cumsum(times) - times, times)
    columns["cycle"] = np.repeat(cycle, times) + k * np.repeat(every, times)
    for name in RISING:
        if name in (dtype.names or ()):
            columns[name] += (k * np.repeat(step, times)).astype(np.int32)
    return columns


def _walk(queue: str, data: bytes) -> Ints:
    """Rows of (cycle, opcode, byte offset, count, every, step): each written instruction and how it is repeated."""
    found: list[list[int]] = []
    at, cycle, shared = 0, -1, False
    unit = unit_of_queue(queue)
    known = {i.opcode for i in (NOP, REPEAT, *instructions_of(unit))}
    while at < len(data):
        op = data[at] & (1 << OPCODE_BITS) - 1
        if op not in known:
            raise ProgramError(f"byte {at}: opcode {op} is not of unit {unit}", where=queue)
        if at + size(TABLE[op]) > len(data):
            raise ProgramError(f"byte {at}: the last instruction is cut off", where=queue)
        fields = _fields(TABLE[op], data, at) if op in (NOP.opcode, REPEAT.opcode) else []
        if op == NOP.opcode:
            cycle, shared = cycle + fields[0], fields[0] == 0
        elif op == REPEAT.opcode:
            if shared or not found or found[-1][3] or not REPEATABLE[found[-1][1]] or cycle != found[-1][0]:
                raise ProgramError(f"byte {at}: there is nothing to repeat", where=queue)
            found[-1][3:] = fields
            cycle += fields[0] * fields[1]
        else:
            cycle += not shared
            shared = False
            found.append([cycle, op, at, 0, 0, 0])
        at += size(TABLE[op])
    return np.array(found, np.int64).reshape(-1, 6)


def _fields(instruction: Instruction, data: bytes, at: int) -> list[int]:
    """The field values of one encoded instruction."""
    word, out = int.from_bytes(data[at : at + size(instruction)], "little") >> OPCODE_BITS, []
    for f in instruction.fields:
        out.append(word & (1 << f.bits) - 1)
        word >>= f.bits
    return out


def instruction_bytes(queues: Mapping[str, NDArray]) -> int:
    """Bytes of all queues, NOPs included: what a program's instructions take in SRAM."""
    return sum(int(extents(columns)[1][-1]) for columns in queues.values() if len(columns))
