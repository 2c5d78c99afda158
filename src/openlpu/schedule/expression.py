"""Trees of VXM operations in; dispatch offsets out, so that every result meets its reader in the right cycle.

An ALU's result stays on its latch for one cycle.  Offsets are as late as possible, counted back from the first root, so
a parent always starts in the very cycle its children finish, whatever their latencies.  Other roots that share a part
with what is there already share its cycle too.

A result that another unit reads may stay on its stream until it is there, and what is made of it comes back into the
same tree: then the way there and back is one more latency.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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


class Opened:
    """Trees without results that are made later: with their vectors, or their trees, which are noted in ``fresh`` in an
    order in which they can be made.  What was shared stays shared.

    What is read in front of a trip to another unit, and again beside what comes back, is read from SRAM then.
    ``checks``: of what is made and not stored."""

    def __init__(self, trees: Sequence[Operand]) -> None:
        self.fresh: dict[int, tuple[Later, Op]] = {}
        self.checks: list[Op] = []
        self._trips: dict[int, int] = {}  # to other units that something stands on
        self._early: set[int] = set()  # what is not made yet, and read before all trips
        self._done: dict[tuple[int, bool], Operand] = {}
        self._again: dict[int, Again] = {}
        self._kept: list[Op] = []  # so that none has the id of another
        seen: set[tuple[int, bool]] = set()
        for tree in trees:
            self._look(tree, late=False, seen=seen)

    def _depth(self, x: Operand | None) -> int:
        if x is None or isinstance(x, float | int | Vec):
            return 0
        if id(x) not in self._trips:
            self._trips[id(x)] = max((self._depth(part) + trip for part, trip in below(x)), default=0)
        return self._trips[id(x)]

    def _look(self, x: Operand | None, *, late: bool, seen: set[tuple[int, bool]]) -> None:
        """Note what is not made yet."""
        if x is None or isinstance(x, float | int | Vec) or (id(x), late) in seen:
            return
        seen.add((id(x), late))
        if isinstance(x, Later) and not late:
            self._early.add(id(x))
        for part, trip in below(x):
            self._look(part, late=self._late(x, part, trip, late=late), seen=seen)

    def _late(self, x: Operand, part: Operand | None, trip: int, *, late: bool) -> bool:
        """Whether a part of something, which may be read late itself, is there long before the rest."""
        return not trip and (late or self._depth(part) < self._depth(x))

    def tree(self, x: Op, *, late: bool = False) -> Op:
        """An op."""
        found = self.operand(x, late=late)
        assert isinstance(found, Op), "a tree stays one"
        return found

    def operand(self, x: Operand | None, *, late: bool = False) -> Operand | None:
        """Any operand."""
        if x is None or isinstance(x, float | int | Vec):
            return x
        if (id(x), late) not in self._done:
            self._done[id(x), late] = self._operand(x, late=late)
        return self._done[id(x), late]

    def _operand(self, x: Operand, *, late: bool) -> Operand:
        if isinstance(x, Later):
            return x.vec or self._later(x, late=late)
        if isinstance(x, Trip) and x.later.vec:
            self._kept.append(x.stored(x.later.vec))
            return self.tree(self._kept[-1], late=late)
        return rebuilt(x, lambda part, trip: self.operand(part, late=self._late(x, part, trip, late=late)))

    def _later(self, x: Later, *, late: bool) -> Operand:
        if late and id(x) in self._early:
            return self._again.setdefault(id(x), Again(x))
        tree = self.tree(x.op)
        if x.passing:
            self.checks += [self.tree(check) for check in x.checks]
        else:
            self.fresh[id(x)] = x, tree
        return tree


def below(x: Operand | None) -> Iterator[tuple[Operand | None, int]]:
    """What an operand is made of, and whether a trip to another unit lies between."""
    if isinstance(x, Trip) and x.later.vec:
        return
    if isinstance(x, Op):
        yield from ((x.a, 0), (x.b, 0))
    elif isinstance(x, Later) and not x.vec:
        yield x.op, 0
    elif isinstance(x, Part):
        yield x.whole, 0
    elif isinstance(x, Relay) and not isinstance(x.source, Vec):
        yield x.source, 1


def rebuilt(x: Operand, part: Callable[[Operand | None, int], Operand | None]) -> Operand:
    """An operand of other parts; ``part`` as :func:`below` yields them."""
    if isinstance(x, Op):
        a, b = part(x.a, 0), part(x.b, 0)
        assert a is not None, "an op has a first operand"
        return x if a is x.a and b is x.b and not isinstance(x, Trip) else Op(x.name, a, b)
    if isinstance(x, Part):
        return replace(x, whole=part(x.whole, 0))
    if isinstance(x, Relay) and not isinstance(x.source, Vec):
        return x.of(part(x.source, 1))
    return x


def exchanged(op: Op, leaves: Mapping[int, Operand], done: dict[int, Operand]) -> Op:
    """The same tree with some leaves exchanged, by their ids."""

    def part(x: Operand | None, _: int = 0) -> Operand | None:
        if x is None or isinstance(x, float | int):
            return x
        if id(x) not in done:
            done[id(x)] = leaves[id(x)] if id(x) in leaves else rebuilt(x, part)
        return done[id(x)]

    found = part(op)
    assert isinstance(found, Op), "a tree stays one"
    return found


def on_the_way(trees: Sequence[Operand]) -> list[Later]:
    """What goes straight to other units and is not made yet, the last ones before each root."""
    found: dict[int, Later] = {}
    seen: set[int] = set()

    def visit(x: Operand | None) -> None:
        if id(x) in seen:
            return
        seen.add(id(x))
        if isinstance(x, Trip) and not x.later.vec:
            found[id(x.later)] = x.later
            return
        for part, _ in below(x):
            visit(part)

    for tree in trees:
        visit(tree)
    return list(found.values())


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


def comes(x: Operand | None) -> bool:
    """Whether an operand comes from another unit."""
    return not isinstance(x, Op | Later | Vec | Again | float | int | None)


def _placed(roots: Sequence[Op], chip: Chip, first: dict[int, int]) -> list[Step]:
    """:func:`steps`; what is in ``first``, offsets by op, is dispatched then."""
    done: dict[tuple[int, int, int | None], int] = {}
    at: dict[int, int] = {}  # the offset at which an op is there first
    apart: set[int] = set()  # what stands on nothing that is there, so far
    out: list[Step] = []
    wait = chip.latency["vxm"]

    def below(x: Operand | None) -> tuple[Op, int, int | None] | None:
        """The op that makes what an operand is, or is made of, the cycles since, and to which edge its result goes."""
        if isinstance(x, Op):
            return x, latency(x, chip), None
        other = relay(x)
        if other is None or not isinstance(other.source, Op):
            return None
        return other.source, latency(other.source, chip) + other.trip, other.hemisphere

    def children(op: Op, offset: int) -> tuple[int | None, int | None]:
        a, b = (visit(x[0], offset - x[1], x[2]) if x else None for x in map(below, (op.a, op.b)))
        return a, b

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
            parts = [(anchor(x[0]), x[1]) for x in map(below, (op.a, op.b)) if x]
            stands = max((offset + wait for offset, wait in parts if offset is not None), default=None)
            if stands is None:
                apart.add(id(op))
            return stands
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
