"""A table of instructions in, an error out when one of them could never be dispatched so.

Rules that need no other unit: opcode, field ranges, quads, runs of streams, order and bank conflicts in a queue.
"""

from __future__ import annotations

import numpy as np

from openlpu.arch.isa import (
    ACCUMULATES,
    ALU,
    BY_NAME,
    BYTE,
    IMM,
    LOADED,
    NONE,
    QUAD,
    TABLE,
    instructions_of,
    unit_of_queue,
)
from openlpu.target.chip import deskew
from openlpu.target.chip.code import FIELDS, Code, Ints
from openlpu.target.chip.streams import Uses, posts, reads

UNARY = ("pass", "negate", "relu", "to_float", "to_int", "exp", "rsqrt", "tanh")
WRITE_LIKE = ("write", "scatter")

# Per field its width in each opcode; 32 bits hold any column, so they also stand where a field is absent.
FIELD_BITS = {
    name: np.array([next((f.bits for f in i.fields if f.name == name), 32) for i in TABLE]) for name in FIELDS
}


def check(code: Code) -> None:
    """All rules of this file."""
    _opcodes(code)
    _ranges(code)
    _vxm(code)
    _runs(code, reads(code))
    _runs(code, posts(code))
    _order(code)
    _banks(code)
    _tandem(code)
    deskew.check(code)


def _opcodes(code: Code) -> None:
    code.refuse(np.flatnonzero(code.op >= len(TABLE)), "no such opcode")
    units = [unit_of_queue(name) for name in code.names]
    own = np.array([np.isin(np.arange(len(TABLE)), [i.opcode for i in instructions_of(unit)]) for unit in units], bool)
    own = own.reshape(len(units), len(TABLE))
    code.refuse(np.flatnonzero(~own[code.queue, code.op]), "not an instruction of this queue's unit")


def _ranges(code: Code) -> None:
    chip = code.chip
    for name, value in code.field.items():
        bits = FIELD_BITS[name][code.op]
        outside = (bits < 32) & ((value < 0) | (value >= 1 << bits))
        code.refuse(np.flatnonzero(outside), f"{name} does not fit in its field")
    _limit(code, code.unit("mem"), "address", 0, chip.words_per_slice)
    _limit(code, code.rows("load_weights"), "group", 0, chip.lanes // LOADED)
    _limit(code, code.rows(*ACCUMULATES), "slot", 0, chip.accumulators)
    _limit(code, code.rows("shift"), "amount", 0, chip.lanes)
    _limit(code, code.rows("shift", "permute", "distribute"), "count", 1, 8)
    _limit(code, code.rows("rotate"), "size", 3, 5)


def _limit(code: Code, rows: Ints, name: str, low: int, high: int) -> None:
    value = code.field[name][rows]
    code.refuse(rows[(value < low) | (value >= high)], f"{name} is not in {low}..{high - 1}")


def _vxm(code: Code) -> None:
    rows = code.unit("vxm")
    f = code.field
    for side in ("a", "b"):
        kind, value = f[f"{side}_kind"][rows], f[side][rows]
        code.refuse(rows[kind > IMM], f"operand {side} is of no known kind")
        code.refuse(rows[(kind == ALU) & (value >= code.chip.vxm_alus)], f"operand {side} names an ALU not there")
        code.refuse(rows[(kind == QUAD) & (value % 4 != 0)], f"quad {side} is not a multiple of 4")
    unary = np.isin(code.op[rows], [BY_NAME[name].opcode for name in UNARY])
    code.refuse(rows[f["a_kind"][rows] == NONE], "operand a is missing")
    code.refuse(rows[~unary & (f["b_kind"][rows] == NONE)], "operand b is missing")
    code.refuse(rows[unary & (f["b_kind"][rows] != NONE)], "a unary instruction has an operand b")
    code.refuse(rows[~np.isin(f["dst_kind"][rows], (QUAD, BYTE, ALU))], "the result has no destination")
    code.refuse(rows[(f["dst_kind"][rows] == QUAD) & (f["dst"][rows] % 4 != 0)], "quad dst is not a multiple of 4")
    acc = code.rows(*ACCUMULATES)
    code.refuse(acc[(f["emit"][acc] == 1) & (f["stream"][acc] % 4 != 0)], "quad stream is not a multiple of 4")


def _runs(code: Code, uses: Uses) -> None:
    """Streams of one operand lie in one direction, and the chip has them."""
    outside = (uses.stream >= 64) | (uses.stream % 32 >= code.chip.streams_per_direction)
    crossing = uses.stream // 32 != uses.first // 32
    code.refuse(uses.row[outside | crossing], "its run of streams leaves the streams of one direction")


def _order(code: Code) -> None:
    step = np.diff(code.cycle)
    same_queue = np.diff(code.queue) == 0
    later = np.arange(1, len(code))
    mem = np.array([unit_of_queue(name) == "mem" for name in code.names], bool)[code.queue]
    code.refuse(later[same_queue & (step < 0)], "its cycle is before that of the instruction in front of it")
    code.refuse(later[same_queue & (step == 0) & ~mem[1:]], "two instructions of one queue in one cycle")


def _tandem(code: Code) -> None:
    """For fp16 the first two planes of a hemisphere, the next two, ... work as one, under the queues of the first."""
    rows, planes = code.rows("activate_fp16"), code.chip.mxm_planes_per_hemisphere
    plane = code.number // 2  # in its hemisphere
    code.refuse(rows[(plane[rows] % 2 == 1) | (plane[rows] + 1 >= planes)], "it is not the first of two planes")
    mxm = code.unit("mxm.weights"), code.unit("mxm.activations"), code.unit("mxm.accumulate")
    for part in mxm:
        code.refuse(part[np.isin(code.number[part], code.number[rows] + 2)], "its plane works in tandem with another")


def partners(code: Code) -> Ints:
    """For each instruction the other access of its MEM slice in the same cycle, or -1."""
    pair = _pairs(code)
    fetch = code.op == BY_NAME["ifetch"].opcode
    return np.where(fetch | fetch[pair], -1, pair)


def _pairs(code: Code) -> Ints:
    """For each instruction the other one of its MEM queue in the same cycle, or -1."""
    same = np.flatnonzero((np.diff(code.cycle) == 0) & (np.diff(code.queue) == 0))
    partner = np.full(len(code), -1, np.int64)
    partner[same], partner[same + 1] = same + 1, same
    return partner


def banks(code: Code, addresses: Ints) -> Ints:
    """The SRAM bank of each address: its high part."""
    return addresses // (code.chip.words_per_slice // code.chip.banks)


def _banks(code: Code) -> None:
    pair = _pairs(code)
    paired = np.flatnonzero(pair >= 0)
    code.refuse(paired[pair[pair[paired]] != paired], "a third instruction of one MEM queue in one cycle")
    pair = partners(code)
    first = np.flatnonzero(pair > np.arange(len(code)))
    second = pair[first]
    write = np.isin(code.op, [BY_NAME[name].opcode for name in WRITE_LIKE])
    indirect = np.isin(code.op, [BY_NAME[name].opcode for name in ("gather", "scatter")])
    code.refuse(second[write[first] == write[second]], "two reads or two writes of one slice in one cycle")
    code.refuse(second[indirect[first] & indirect[second]], "a gather and a scatter of one slice in one cycle")
    bank = banks(code, code.field["address"])
    clash = (bank[first] == bank[second]) & ~indirect[first] & ~indirect[second]
    code.refuse(second[clash], "bank conflict: a read and a write of one bank in one cycle")
