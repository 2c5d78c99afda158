"""Groups of instructions in, batches ready to run out: where each operand lies and where each result goes.

Values are single-assignment.  Two tables hold them: *words* (int32 lanes: results of VXM, activate, accumulate)
and *bytes* (results of MEM and SXM), numbered in the order batches make them, so a batch writes one slice of a
table.  A byte vector is named by one integer, its *source*: ``4 * word + plane``, or ``4 * words + byte``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openlpu.arch.isa import ACCUMULATES, ACTIVATES, ALU, BYTE, IMM, LOADED, QUAD, TABLE
from openlpu.target.chip import levels
from openlpu.target.chip.code import Code, Ints
from openlpu.target.chip.operands import Operands
from openlpu.target.chip.sram import RESIDENT
from openlpu.target.chip.streams import MAP, posts
from openlpu.target.chip.values import I32, Bytes, Words

WORD_UNITS = ("vxm", "mxm.activations", "mxm.accumulate")

Operand = Bytes | Words | I32


@dataclass(frozen=True)
class Batch:
    """Instructions ``rows`` of opcode name ``name``; ``out`` is their slice of the words or bytes table.

    An immediate operand of a VXM batch is an array [n, 1]; an absent one is zeros.
    """

    name: str
    rows: Ints
    out: slice
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Plan:
    """``fetched``: reads of words nobody wrote before, done first; then what other stages sent, ``arriving``.

    ``stored``: last direct writes, done at the end; ``handed``: what leaves for another stage.
    """

    words: int
    bytes: int
    fetched: Ints
    arriving: Ints
    batches: tuple[Batch, ...]
    stored: Ints
    data: Bytes
    handed: Bytes


def plan(code: Code, operands: Operands) -> Plan:
    """Everything about execution that does not depend on values."""
    flow = levels.follow(code, operands)
    groups = levels.groups(code, operands, flow)
    memory, passing = operands.memory, operands.passing
    fetched = memory.reads[memory.writer == RESIDENT]
    numbering = _Numbering(code, flow, [fetched, passing.arriving, *groups])
    stored = memory.last[~np.isin(code.number[memory.last], memory.dynamic)]
    batches = tuple(numbering.batch(rows) for rows in groups)
    data = Bytes(numbering.source(stored, 0), numbering.words)
    handed = Bytes(numbering.source(passing.handed, 0), numbering.words)
    return Plan(numbering.words, numbering.bytes, fetched, passing.arriving, batches, stored, data, handed)


class _Numbering:
    """Numbers all results in running order and looks operands up by them."""

    def __init__(self, code: Code, flow: levels.Flow, groups: list[Ints]) -> None:
        self.code, self.flow = code, flow
        order = np.concatenate(groups)
        word = np.isin(code.op[order], [i.opcode for i in TABLE if i.unit in WORD_UNITS])
        made = np.bincount(posts(code).row, minlength=len(code))[order]
        made[word] = 0
        self.words, self.bytes = int(word.sum()), int(made.sum())
        row = np.where(word, np.cumsum(word) - 1, np.cumsum(made) - made)
        self.first = np.zeros(len(code), np.int64)  # number of the first result
        self.first[order] = row
        self.count = np.zeros(len(code), np.int64)
        self.count[order] = np.where(word, 1, made)
        source = np.zeros(len(code), np.int64)
        source[order] = np.where(word, 4 * row, 4 * self.words + row)
        self.sources = source[flow.writer] + flow.part

    def source(self, rows: Ints, number: Ints | int) -> Ints:
        """Source of operand ``number`` of each row."""
        return self.sources[self.flow.entry(rows, number)]

    def run(self, rows: Ints, number: int, count: int) -> Ints:
        """Sources of ``count`` operands from ``number`` on: [n, count]."""
        return np.stack([self.source(rows, number + k) for k in range(count)], axis=1)

    def batch(self, rows: Ints) -> Batch:
        """The batch of one group."""
        name = TABLE[self.code.op[rows[0]]].name
        start = int(self.first[rows[0]])
        out = slice(start, start + int(self.count[rows].sum()))
        if TABLE[self.code.op[rows[0]]].unit == "vxm":
            operands = self._alu(rows, "a_kind", 0), self._alu(rows, "b_kind", 4)
        elif name in ACCUMULATES:
            operands = self._sums(rows)
        elif name in ACTIVATES:
            operands = Bytes(self.source(rows, 0), self.words), self._array(rows[0])
        else:
            operands = tuple(Bytes(s, self.words) for s in self._streams(name, rows))
        return Batch(name, rows, out, operands)

    def _alu(self, rows: Ints, kind: str, number: int) -> Operand:
        kinds = self.code.field[kind][rows]
        if kinds[0] == BYTE:
            return Bytes(self.source(rows, number), self.words)
        if kinds[0] not in (QUAD, ALU):
            imm = self.code.field["imm"][rows] if kinds[0] == IMM else np.zeros(len(rows))
            return imm.astype(np.int32)[:, None]
        latch = kinds[:, None] == ALU  # one operand for all four bytes
        sources = self.sources[self.flow.entry(rows[:, None], np.where(latch, number, number + np.arange(4)))]
        return Words(np.where(latch, sources + np.arange(4), sources), self.words)

    def _sums(self, rows: Ints) -> tuple[Words, ...]:
        """The arriving sum and, unless cleared, what the accumulator holds."""
        count = 1 if self.code.field["clear"][rows[0]] else 2
        return tuple(Words(self.source(rows, k)[:, None] + np.arange(4), self.words) for k in range(count))

    def _array(self, activate: int) -> Bytes:
        """Sources of the loaded rows of the array an activate uses; -1: not loaded."""
        install = self.flow.writer[self.flow.entry(np.array([activate]), 1)][0]
        span = np.array([install, install + 1]) * levels.OPERANDS
        entries = np.arange(*np.searchsorted(self.flow.key, span))
        group, load = self.flow.key[entries] % levels.OPERANDS, self.flow.writer[entries]
        lanes = self.code.chip.lanes
        rows = np.full((lanes // LOADED, LOADED), -1)
        rows[group] = self.run(load, 0, LOADED)
        return Bytes(rows.reshape(-1), self.words)

    def _streams(self, name: str, rows: Ints) -> tuple[Ints, ...]:
        first = {f: self.code.field[f][rows[0]] for f in ("count", "size")}
        if name == "read":
            return ()
        if name == "ifetch":
            return (self.run(rows, 0, 2),)
        if name == "receive":
            return (self.source(rows, 0),)
        if name == "gather":
            return (self.source(rows, 1),)
        if name == "scatter":
            return self.source(rows, 0), self.source(rows, 1)
        if name in ("write", "transpose", "rotate", "shift"):
            count = {"write": 1, "transpose": LOADED, "rotate": int(first["size"]), "shift": int(first["count"])}
            data = self.run(rows, 0, count[name])
            return (data[:, 0],) if name == "write" else (data,)
        data = self.run(rows, 0, int(first["count"]))
        if name == "permute":
            return data, self.run(rows, MAP, 2)
        assert name == "distribute", f"{name} has a kernel"
        return data, self.source(rows, MAP)
