"""A tree of VXM operations in; dispatch offsets out, so that every result meets its reader in the right cycle.

An ALU's result stays on its latch for one cycle.  Offsets are as late as possible, counted back from the root, so a
parent always starts in the very cycle its children finish, whatever their latencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import numpy as np

from openlpu.arch.chip import Chip
from openlpu.arch.isa import BY_NAME
from openlpu.schedule.values import Vec

Operand = Union["Op", Vec, float, int]


@dataclass(frozen=True, eq=False)
class Op:
    """One VXM instruction on operands: other ops, vectors in SRAM, or one immediate (float: fp32; int: bits)."""

    name: str
    a: Operand
    b: Operand | None = None


@dataclass(frozen=True)
class Step:
    """An op at ``offset`` cycles from the root's dispatch (0 or negative); ``children`` index earlier steps."""

    op: Op
    offset: int
    children: tuple[int | None, int | None]


def latency(op: Op, chip: Chip) -> int:
    """Cycles from an op's dispatch to its result."""
    return chip.latency[BY_NAME[op.name].latency]


def steps(root: Op, chip: Chip) -> list[Step]:
    """All ops of a tree, children before parents; an op read twice in the same cycle is dispatched once."""
    done: dict[tuple[int, int], int] = {}
    out: list[Step] = []

    def visit(op: Op, offset: int) -> int:
        key = (id(op), offset)
        if key not in done:
            children = tuple(
                visit(x, offset - latency(x, chip)) if isinstance(x, Op) else None for x in (op.a, op.b)
            )
            done[key] = len(out)
            out.append(Step(op, offset, (children[0], children[1])))
        return done[key]

    visit(root, 0)
    return out


def immediate(x: float | int) -> int:
    """The 32 bits of an immediate as a signed column value."""
    return int(np.float32(x).view(np.int32)) if isinstance(x, float) else x
