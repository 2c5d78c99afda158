"""A chip's part in a token in; its schedule out, one line an instruction in order of cycles.

Cycles count from the beginning of the chip's stage, as they do in the referee's errors.  Lines are made as they are
asked for: nothing is held but the columns of the queues.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import BadRequest
from openlpu.arch.isa import ALU, BYTE, IMM, NONE, QUAD, TABLE, Instruction, unit_of_queue
from openlpu.schedule.tracks import ChipRun

STREAMS = ("stream", "dst", "map")  # fields that name a stream
EAST = 32  # streams below flow east
HEAD = f"{'cycle':>9}  {'queue':<18} {'instruction':<15} {'operands':<44} operator"


def select(run: ChipRun, unit: str | None = None) -> dict[str, NDArray]:
    """The queues of a chip called ``unit``, or those of a unit of that name (``mem``, ``mxm``, ``mxm.weights``); all
    that are used, without a name.  Raises :class:`BadRequest` for a name that no queue has."""
    units = {name: unit_of_queue(name) for name in run.chip.queues}
    known = {*units, *units.values(), *(u.split(".")[0] for u in units.values())}
    if unit is not None and unit not in known:
        names = ", ".join(dict.fromkeys(u.split(".")[0] for u in units.values()))
        raise BadRequest(f"{run.chip.name} has no unit '{unit}'", where="unit",
                         fix=f"one of {names}, or a queue such as mem3, vxm0, mxmw0.weights")
    return {name: rows for name, rows in run.queues.items()
            if len(rows) and (unit is None or unit in (name, units[name], units[name].split(".")[0]))}


def lines(run: ChipRun, queues: Mapping[str, NDArray], first: int = 0, end: int | None = None) -> Iterator[str]:
    """The instructions of these queues dispatched from cycle ``first`` on and before cycle ``end`` (None: all)."""
    names = list(queues)
    tables = [rows[_within(rows["cycle"], first, end)] for rows in queues.values()]
    queue = np.repeat(np.arange(len(names), dtype=np.int32), [len(rows) for rows in tables])
    cycle = np.concatenate([rows["cycle"] for rows in tables]) if tables else np.zeros(0, np.uint32)
    row = np.concatenate([np.arange(len(rows), dtype=np.int32) for rows in tables]) if tables else queue
    numbers, operators = [number for number, _ in run.origin], run.operators
    for at in np.lexsort((queue, cycle)).tolist():
        name, entry = names[queue[at]], tables[queue[at]][row[at]]
        op = TABLE[entry["op"]]
        operator = operators[max(bisect_right(numbers, int(entry["id"])) - 1, 0)]
        words = operands(op, entry) + _peer(run, name, op)
        yield f"{entry['cycle']:>9}  {name:<18} {op.name:<15} {words:<44} {operator}"


def _peer(run: ChipRun, queue: str, op: Instruction) -> str:
    """The chip at the other end, of what goes over a link inside a stage or to the next."""
    way = {"send": "to", "receive": "from"}.get(op.name)
    return f" {way} {run.peers[queue]}" if way and queue in run.peers else ""


def _within(cycle: NDArray, first: int, end: int | None) -> NDArray[np.bool_]:
    return (cycle >= first) & (cycle < (end if end is not None else 2**32))


def operands(op: Instruction, entry: NDArray) -> str:
    """The fields of an instruction, a row of its queue: streams by direction (``e5``, ``w0``), numbers by name."""
    if op.unit == "vxm":
        second = f", {_operand(entry, 'b')}" if entry["b_kind"] != NONE else ""
        return f"{_operand(entry, 'a')}{second} -> {_place(int(entry['dst_kind']), int(entry['dst']))}"
    return " ".join(f"{f.name} {_stream(int(entry[f.name])) if f.name in STREAMS else entry[f.name]}"
                    for f in op.fields)


def _operand(entry: NDArray, side: str) -> str:
    kind = int(entry[f"{side}_kind"])
    if kind == IMM:
        word = np.int32(entry["imm"])
        return f"{int(word)} ({word.view(np.float32):g})"
    return _place(kind, int(entry[side]))


def _place(kind: int, number: int) -> str:
    """Where the VXM takes or leaves a word: an ALU's latch, four streams, or one byte of one."""
    assert kind in (ALU, QUAD, BYTE), f"an operand of kind {kind} is no place"
    if kind == ALU:
        return f"vxm{number}"
    return f"{_stream(number)}..{_stream(number + 3)}" if kind == QUAD else _stream(number)


def _stream(number: int) -> str:
    return f"e{number}" if number < EAST else f"w{number - EAST}"
