"""Trees of VXM operations in; dispatch offsets out, so that every result meets its reader in the right cycle.

An ALU's result stays on its latch for one cycle.  Offsets are as late as possible, counted back from the first root, so
a parent always starts in the very cycle its children finish, whatever their latencies.  Other roots that share a part
with what is there already share its cycle too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Union

import numpy as np

from openlpu.arch.chip import Chip
from openlpu.arch.isa import BY_NAME
from openlpu.schedule.values import Vec

Taken = tuple[int, list[tuple[int, int]]]  # the first stream; per plane the instruction that made it, and its part


class Arrival(Protocol):
    """A vector that comes to the VXM straight from another unit."""

    def earliest(self) -> int:
        """First cycle in which it can pass the VXM."""
        ...

    def arrive(self, cycle: int) -> Taken | None:
        """Take all that it needs to pass the VXM in a cycle, or None."""
        ...

    def kept(self) -> Vec:
        """The same by way of SRAM."""
        ...


Operand = Union["Op", Vec, Arrival, float, int]


@dataclass(frozen=True, eq=False)
class Op:
    """One VXM instruction on operands: other ops, vectors in SRAM or on their way, or one immediate (float: fp32; int:
    bits)."""

    name: str
    a: Operand
    b: Operand | None = None


@dataclass(frozen=True)
class Step:
    """An op at ``offset`` cycles from the first root's dispatch; ``children`` index earlier steps; ``root``: which
    one's last instruction it is, or None."""

    op: Op
    offset: int
    children: tuple[int | None, int | None]
    root: int | None = None


def latency(op: Op, chip: Chip) -> int:
    """Cycles from an op's dispatch to its result."""
    return chip.latency[BY_NAME[op.name].latency]


def steps(roots: Sequence[Op], chip: Chip) -> list[Step]:
    """All ops of some trees, children before parents; an op read twice in the same cycle is dispatched once."""
    done: dict[tuple[int, int], int] = {}
    at: dict[int, int] = {}  # the offset at which an op is there first
    out: list[Step] = []

    def children(op: Op, offset: int) -> tuple[int | None, int | None]:
        a, b = (visit(x, offset - latency(x, chip)) if isinstance(x, Op) else None for x in (op.a, op.b))
        return a, b

    def visit(op: Op, offset: int) -> int:
        key = (id(op), offset)
        if key not in done:
            below = children(op, offset)
            done[key] = len(out)
            at.setdefault(id(op), offset)
            out.append(Step(op, offset, below))
        return done[key]

    def anchor(op: Operand | None) -> int | None:
        """The offset of an op that may stand on one that is there."""
        if not isinstance(op, Op) or id(op) in at:
            return at.get(id(op))
        below = [(anchor(x), latency(x, chip)) for x in (op.a, op.b) if isinstance(x, Op)]
        return max((offset + wait for offset, wait in below if offset is not None), default=None)

    for number, root in enumerate(roots):
        offset = anchor(root) or 0
        out.append(Step(root, offset, children(root, offset), number))
    return out


def immediate(x: float | int) -> int:
    """The 32 bits of an immediate as a signed column value."""
    return int(np.float32(x).view(np.int32)) if isinstance(x, float) else x
