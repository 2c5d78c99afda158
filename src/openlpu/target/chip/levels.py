"""Resolved operands in; groups of instructions that can run as one array operation, in a legal order, out.

A result that is read through SRAM, or sent, is followed back to the instruction that made it, so what is left is
dataflow: an instruction's level is one more than that of its latest operand, and equal instructions of one level form
a group.  Only scatters and what touches their slices keep an order of their own, slice by slice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from openlpu.arch.isa import ACCUMULATES, ACTIVATES, ALU, QUAD
from openlpu.target.chip.code import Code, Ints
from openlpu.target.chip.operands import Operands
from openlpu.target.chip.sram import DYNAMIC, RESIDENT


@dataclass(frozen=True)
class Flow:
    """Operands sorted by instruction and number, followed through SRAM: ``writer`` made the value as its ``part``."""

    key: Ints
    row: Ints
    writer: Ints
    part: Ints

    def entry(self, rows: Ints, number: Ints | int) -> Ints:
        """Index of operand ``number`` of each row, which must exist."""
        return np.searchsorted(self.key, rows * OPERANDS + number)


OPERANDS = 32  # more than any instruction's operand numbers


def follow(code: Code, operands: Operands) -> Flow:
    """Replace reads of words written in this run, and sends, by the value's maker."""
    key = operands.row * OPERANDS + operands.number
    order = np.argsort(key, kind="stable")
    flow = Flow(key[order], operands.row[order], operands.writer[order], operands.part[order])
    passing = operands.passing
    received, sent = flow.entry(passing.receives, 0), flow.entry(passing.sends, 0)
    flow.writer[received], flow.part[received] = flow.writer[sent], flow.part[sent]
    stored = np.full(len(code) + 1, RESIDENT)  # one more: writer -1 finds RESIDENT
    stored[operands.memory.reads] = operands.memory.writer
    while (through := (flow.writer >= 0) & (stored[flow.writer] >= 0)).any():
        data = flow.entry(stored[flow.writer[through]], 0)
        flow.writer[through], flow.part[through] = flow.writer[data], flow.part[data]
    return flow


def groups(code: Code, operands: Operands, flow: Flow) -> list[Ints]:
    """Instructions to run, in order of level, grouped by what one kernel call does."""
    memory = operands.memory
    tracked = np.isin(code.number, memory.dynamic)
    run = np.zeros(len(code), bool)
    for unit in ("vxm", "sxm.shift", "sxm.permute", "sxm.distribute", "sxm.rotate", "sxm.transpose"):
        run[code.unit(unit)] = True
    run[code.rows(*ACTIVATES, *ACCUMULATES, "gather", "scatter", "ifetch")] = True
    run[operands.passing.receives] = True
    run[memory.reads[memory.writer == DYNAMIC]] = True
    writes = code.rows("write")
    run[writes[tracked[writes]]] = True
    level = _levels(code, flow, run)
    rows = np.flatnonzero(run)
    variant = _variant(code, flow)
    variant[operands.passing.receives] = operands.passing.peer
    order = rows[np.lexsort((variant[rows], code.op[rows], level[rows]))]
    same = (np.diff(level[order]) == 0) & (np.diff(code.op[order]) == 0) & (np.diff(variant[order]) == 0)
    return np.split(order, np.flatnonzero(~same) + 1) if len(order) else []


def _variant(code: Code, flow: Flow) -> Ints:
    """What besides the opcode must be equal in a group."""
    f = code.field
    variant = np.zeros(len(code), np.int64)
    vxm = code.unit("vxm")
    kinds = [np.where(f[kind][vxm] == ALU, QUAD, f[kind][vxm]) for kind in ("a_kind", "b_kind")]
    variant[vxm] = kinds[0] * 8 + kinds[1]
    activates = code.rows(*ACTIVATES)
    variant[activates] = flow.writer[flow.entry(activates, 1)]
    for names, key in ((ACCUMULATES, "clear"), (("rotate",), "size"), (("permute", "distribute"), "count")):
        rows = code.rows(*names)
        variant[rows] = f[key][rows]
    shifts = code.rows("shift")
    variant[shifts] = (f["amount"][shifts] * 2 + f["north"][shifts]) * 8 + f["count"][shifts]
    return variant


@dataclass
class _Slice:
    """Levels of what was done in one slice with a scatter or gather so far."""

    all_writes: int = 0  # the latest level that may have written any word
    all_reads: int = 0
    scattered: int = 0
    gathered: int = 0
    words: dict[int, tuple[int, int]] = field(default_factory=dict)  # latest level that (wrote, read) a word

    def place(self, name: str, address: int, level: int) -> int:
        """The earliest level from ``level`` on that keeps the order of conflicting accesses; notes it."""
        wrote, read = self.words.get(address, (0, 0))
        if name == "gather":
            level = max(level, self.all_writes + 1)
            self.gathered = max(self.gathered, level)
        elif name == "read":
            level = max(level, self.scattered + 1, wrote + 1)
            self.words[address] = wrote, max(read, level)
        elif name == "scatter":
            level = max(level, self.all_writes + 1, self.all_reads + 1)
            self.scattered = max(self.scattered, level)
        else:
            level = max(level, self.scattered + 1, self.gathered + 1, wrote + 1, read + 1)
            self.words[address] = level, read
        if name in ("gather", "read"):
            self.all_reads = max(self.all_reads, level)
        else:
            self.all_writes = max(self.all_writes, level)
        return level


def _levels(code: Code, flow: Flow, run: np.ndarray) -> Ints:
    """Longest path to each instruction; reads of resident words are at level 0."""
    owner = np.arange(len(code))
    installs = np.flatnonzero(np.isin(flow.row, code.rows("install_weights")))
    owner[flow.writer[installs]] = flow.row[installs]  # what is loaded belongs to the install
    takes = run | np.isin(np.arange(len(code)), code.rows("load_weights", "install_weights"))
    used = (flow.writer >= 0) & takes[flow.row] & (owner[flow.writer] != flow.row)
    reader, maker = owner[flow.row[used]], flow.writer[used]
    order = np.argsort(reader, kind="stable")
    maker = maker[order].tolist()
    start = np.searchsorted(reader[order], np.arange(len(code) + 1)).tolist()
    memory = {int(row): name for name in ("read", "write", "gather", "scatter") for row in code.rows(name) if run[row]}
    slices: dict[int, _Slice] = {}
    level = [0] * len(code)
    acts = takes & ~np.isin(np.arange(len(code)), code.rows("load_weights"))
    for row in np.flatnonzero(acts)[np.argsort(code.cycle[acts], kind="stable")].tolist():
        at = 1 + max([level[i] for i in maker[start[row] : start[row + 1]]], default=0)
        if row in memory:
            state = slices.setdefault(int(code.number[row]), _Slice())
            at = state.place(memory[row], int(code.field["address"][row]), at)
        level[row] = at
    return np.array(level, np.int64)
