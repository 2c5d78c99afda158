"""Trees of VXM operations in; dispatch offsets out, so that every result meets its reader in the right cycle.

An ALU's result stays on its latch for one cycle.  Offsets are as late as possible, counted back from the first root, so
a parent always starts in the very cycle its children finish, whatever their latencies.  Other roots that share a part
with what is there already share its cycle too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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


class Arrivals(Protocol):
    """Vectors that come to the VXM together."""

    def earliest(self) -> int:
        """First cycle in which they can pass the VXM."""
        ...

    def arrive(self, cycle: int) -> list[Taken] | None:
        """Take all that they need to pass the VXM in a cycle, or None."""
        ...

    def kept(self, number: int) -> Vec:
        """One of them by way of SRAM."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """One of several vectors that come together."""

    whole: Arrivals
    number: int

    def earliest(self) -> int:
        """First cycle in which it can pass the VXM."""
        return self.whole.earliest()

    def kept(self) -> Vec:
        """The same by way of SRAM."""
        return self.whole.kept(self.number)


Operand = Union["Op", "Later", Vec, Arrival, Part, float, int]


@dataclass(frozen=True, eq=False)
class Op:
    """One VXM instruction on operands: other ops, vectors in SRAM or on their way, or one immediate (float: fp32; int:
    bits)."""

    name: str
    a: Operand
    b: Operand | None = None


@dataclass(eq=False)
class Later:
    """A result that is made when it is read first, in one chain with what reads it; or alone, by ``make``.

    ``vec``: what was made; ``reader``: another that is made of it, the last one.
    """

    op: Op
    make: Callable[[Later], object] = field(repr=False)
    vec: Vec | None = None
    reader: Later | None = None

    def made(self) -> Vec:
        """The vector, from now on in SRAM."""
        if self.vec is None:
            self.make(self)
        assert self.vec, "what is made has a vector"
        return self.vec

    def finish(self) -> None:
        """Make it now, with all that is made of it."""
        if self.vec is None and self.reader:
            self.reader.finish()
        self.made()


@dataclass(frozen=True)
class Step:
    """An op at ``offset`` cycles from the first root's dispatch; ``children`` index earlier steps; ``root``: which
    one's last instruction it is, or None."""

    op: Op
    offset: int
    children: tuple[int | None, int | None]
    root: int | None = None


def opened(x: Operand | None, fresh: dict[int, tuple[Later, Op]], done: dict[int, Op]) -> Operand | None:
    """An operand without results that are made later: their vectors, or their trees, which are noted in ``fresh`` in
    an order in which they can be made.  What was shared stays shared (``done``)."""
    if isinstance(x, Later):
        if x.vec:
            return x.vec
        tree = opened(x.op, fresh, done)
        assert isinstance(tree, Op), "a tree stays one"
        fresh[id(x)] = x, tree
        return tree
    if not isinstance(x, Op):
        return x
    if id(x) not in done:
        a, b = opened(x.a, fresh, done), opened(x.b, fresh, done)
        assert a is not None, "an op has a first operand"
        done[id(x)] = x if a is x.a and b is x.b else Op(x.name, a, b)
    return done[id(x)]


def latency(op: Op, chip: Chip) -> int:
    """Cycles from an op's dispatch to its result."""
    return chip.latency[BY_NAME[op.name].latency]


def steps(roots: Sequence[Op], chip: Chip) -> list[Step]:
    """All ops of some trees, children before parents; an op read twice in the same cycle is dispatched once.  So is
    one that reads what comes from another unit, which comes once: it is handed on to those who read it later."""
    out = _placed(roots, chip, {})
    first: dict[int, int] = {}
    twice = False
    for step in out:  # children before parents
        if any(id(x) in first if isinstance(x, Op) else _comes(x) for x in (step.op.a, step.op.b)):
            before = first.setdefault(id(step.op), step.offset)
            first[id(step.op)], twice = min(before, step.offset), twice or before != step.offset
    return _placed(roots, chip, first) if twice else out


def _comes(x: Operand | None) -> bool:
    """Whether an operand comes from another unit."""
    return not isinstance(x, Op | Later | Vec | float | int | None)


def _placed(roots: Sequence[Op], chip: Chip, first: dict[int, int]) -> list[Step]:
    """:func:`steps`; what is in ``first``, offsets by op, is dispatched then."""
    done: dict[tuple[int, int], int] = {}
    at: dict[int, int] = {}  # the offset at which an op is there first
    out: list[Step] = []
    wait = chip.latency["vxm"]

    def children(op: Op, offset: int) -> tuple[int | None, int | None]:
        a, b = (visit(x, offset - latency(x, chip)) if isinstance(x, Op) else None for x in (op.a, op.b))
        return a, b

    def visit(op: Op, offset: int) -> int:
        key = (id(op), offset)
        if key not in done:
            if first.get(id(op), offset) <= offset - wait:
                found = Step(Op("pass", op), offset + latency(op, chip) - wait, (visit(op, offset - wait), None))
            else:
                found = Step(op, offset, children(op, offset))
                at.setdefault(id(op), offset)
            done[key] = len(out)
            out.append(found)
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


def leaves(x: Operand | None) -> Iterator[Operand]:
    """What a tree reads."""
    if isinstance(x, Op):
        yield from leaves(x.a)
        yield from leaves(x.b)
    elif x is not None:
        yield x


def immediate(x: float | int) -> int:
    """The 32 bits of an immediate as a signed column value."""
    return int(np.float32(x).view(np.int32)) if isinstance(x, float) else x
