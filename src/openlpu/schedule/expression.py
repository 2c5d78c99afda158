"""Trees of VXM operations in; dispatch offsets out, so that every result meets its reader in the right cycle.

An ALU's result stays on its latch for one cycle.  Offsets are as late as possible, counted back from the first root, so
a parent always starts in the very cycle its children finish, whatever their latencies.  Other roots that share a part
with what is there already share its cycle too.

A result that another unit reads may stay on its stream until it is there, and what is made of it comes back into the
same tree: then the way there and back is one more latency.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeGuard, Union

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


class Relay(ABC):
    """What another unit makes of a vector, ``source``, and sends to the VXM: of one in SRAM, or of a result that comes
    to it at the edge of a hemisphere on its stream."""

    source: Vec | Op | Later
    hemisphere: int

    @abstractmethod
    def of(self, source: Vec | Op | Later) -> Relay:
        """The same of another vector."""

    @property
    @abstractmethod
    def trip(self) -> int:
        """Cycles from a result's cycle on its stream at the VXM until what is made of it passes there."""

    @abstractmethod
    def earliest(self) -> int:
        """First cycle in which it can pass the VXM, but for what is on its way."""

    @abstractmethod
    def arrive(self, cycle: int, data: Taken | None = None) -> list[Taken] | None:
        """Take all that it needs to pass the VXM in a cycle, ``data`` being on a stream; one vector or several, or
        None."""

    @abstractmethod
    def kept(self, number: int = 0) -> Vec:
        """One of them by way of SRAM."""


@dataclass(frozen=True, eq=False)
class Part:
    """One of several vectors that come together."""

    whole: Relay
    number: int

    def earliest(self) -> int:
        """First cycle in which it can pass the VXM."""
        return self.whole.earliest()

    def kept(self) -> Vec:
        """The same by way of SRAM."""
        return self.whole.kept(self.number)


@dataclass(frozen=True, eq=False)
class Again:
    """A result that is made early in a chain, read from SRAM by what comes late in it."""

    later: Later


Operand = Union["Op", "Later", Vec, Arrival, Relay, Part, Again, float, int]


@dataclass(frozen=True, eq=False)
class Op:
    """One VXM instruction on operands: other ops, vectors in SRAM or on their way, or one immediate (float: fp32; int:
    bits)."""

    name: str
    a: Operand
    b: Operand | None = None


@dataclass(frozen=True, eq=False)
class Trip(Op):
    """The last op of a tree on what a unit makes of ``later``, which goes there straight; once that is in SRAM,
    ``stored`` has the tree of it."""

    later: Later = field(kw_only=True)
    stored: Callable[[Vec], Op] = field(kw_only=True, repr=False)


@dataclass(eq=False)
class Later:
    """A result that is made when it is read first, in one chain with what reads it; or alone, by ``make``.

    ``vec``: what was made; ``reader``: another that is made of it, the last one.  ``passing``: it need not be stored;
    ``checks``: computed beside, for their errors.
    """

    op: Op
    make: Callable[[Later], object] = field(repr=False)
    vec: Vec | None = None
    reader: Later | None = None
    passing: bool = False
    checks: Sequence[Op] = ()

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
    one's last instruction it is, or None; ``to``: the hemisphere to whose edge its result flows, if it does."""

    op: Op
    offset: int
    children: tuple[int | None, int | None]
    root: int | None = None
    to: int | None = None


def relay(x: Operand | None) -> Relay | None:
    """What an operand comes from, if that is another unit which makes it of a vector."""
    whole = x.whole if isinstance(x, Part) else x
    return whole if isinstance(whole, Relay) else None


def latency(op: Op, chip: Chip) -> int:
    """Cycles from an op's dispatch to its result."""
    return chip.latency[BY_NAME[op.name].latency]


def steps(roots: Sequence[Op], chip: Chip) -> list[Step]:
    """All ops of some trees, children before parents; an op read twice in the same cycle is dispatched once, for each
    unit that reads it.  So is one that reads what comes from another unit, which comes once: it is handed on to those
    who read it later."""
    out = _placed(roots, chip, {})
    first: dict[int, int] = {}
    twice = False
    for step in out:  # children before parents
        if any(id(x) in first if isinstance(x, Op) else comes(x) for x in (step.op.a, step.op.b)):
            before = first.setdefault(id(step.op), step.offset)
            first[id(step.op)], twice = min(before, step.offset), twice or before != step.offset
    out = _placed(roots, chip, first) if twice else out
    return _in_time(out) if any(step.to is not None for step in out) else out


def comes(x: Operand | None) -> TypeGuard[Arrival | Relay | Part]:
    """Whether an operand comes from another unit."""
    return not isinstance(x, Op | Later | Vec | Again | float | int | None)


def _maker(x: Operand | None, chip: Chip) -> tuple[Op, int, int | None] | None:
    """The op that makes what an operand is, or is made of, the cycles since, and to which edge its result goes."""
    if isinstance(x, Op):
        return x, latency(x, chip), None
    unit = relay(x)
    if unit is None or not isinstance(unit.source, Op):
        return None
    return unit.source, latency(unit.source, chip) + unit.trip, unit.hemisphere


def _placed(roots: Sequence[Op], chip: Chip, first: dict[int, int]) -> list[Step]:
    """:func:`steps`; what is in ``first``, offsets by op, is dispatched then."""
    done: dict[tuple[int, int, int | None], int] = {}
    at: dict[int, int] = {}  # the offset at which an op is there first
    apart: set[int] = set()  # what stands on nothing that is there, so far
    out: list[Step] = []
    wait = chip.latency["vxm"]

    def children(op: Op, offset: int) -> tuple[int | None, int | None]:
        a, b = (_maker(x, chip) for x in (op.a, op.b))
        return a and visit(a[0], offset - a[1], a[2]), b and visit(b[0], offset - b[1], b[2])

    def visit(op: Op, offset: int, to: int | None) -> int:
        key = (id(op), offset, to)
        if key not in done:
            if first.get(id(op), offset) <= offset - wait:
                handed = (visit(op, offset - wait, None), None)
                found = Step(Op("pass", op), offset + latency(op, chip) - wait, handed, to=to)
            else:
                found = Step(op, offset, children(op, offset), to=to)
                at.setdefault(id(op), offset)
            done[key] = len(out)
            out.append(found)
        return done[key]

    def anchor(op: Op) -> int | None:
        """The offset of an op that may stand on one that is there."""
        if id(op) not in at and id(op) not in apart:
            parts = [(anchor(x[0]), x[1]) for x in (_maker(op.a, chip), _maker(op.b, chip)) if x]
            stands = [offset + since for offset, since in parts if offset is not None]
            if stands:
                return max(stands)
            apart.add(id(op))
        return at.get(id(op))

    for number, root in enumerate(roots):
        apart.clear()
        offset = anchor(root) or 0
        out.append(Step(root, offset, children(root, offset), number))
    return out


def _in_time(plan: Sequence[Step]) -> list[Step]:
    """Steps by their offsets, so that what is read again is stored before."""
    order = sorted(range(len(plan)), key=lambda i: plan[i].offset)
    place = {i: k for k, i in enumerate(order)}

    def moved(i: int | None) -> int | None:
        return None if i is None else place[i]

    return [replace(plan[i], children=(moved(plan[i].children[0]), moved(plan[i].children[1]))) for i in order]


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
