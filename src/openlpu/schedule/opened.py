"""Trees with results that are made later in; trees of what is there, and of what is made with them, out.

What is read in front of a trip to another unit, and again beside what comes back, is stored and read again.  What was
shared stays shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from openlpu.schedule.expression import Again, Later, Op, Operand, Part, Relay, Trip
from openlpu.schedule.values import Vec


class Opened:
    """Trees without results that are made later: with their vectors, or their trees, which are noted in ``fresh`` in an
    order in which they can be made.  ``checks``: of what is made and not stored; ``straight``: something goes to other
    units on its way."""

    def __init__(self, trees: Sequence[Operand], *, straight: bool) -> None:
        self.fresh: dict[int, tuple[Later, Op]] = {}
        self.checks: list[Op] = []
        self._trips: dict[int, int] = {}
        self._early: set[int] = set()  # what is not made yet, and read before all trips
        self._done: dict[tuple[int, bool], Operand] = {}
        self._again: dict[int, Again] = {}
        self._kept: list[Op] = []  # so that none has the id of another
        self._straight, seen = straight, set[tuple[int, bool]]()
        for tree in trees if straight else ():
            self._look(tree, late=False, seen=seen)

    def _depth(self, x: Operand | None) -> int:
        """The most trips that something stands on."""
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
        return self._straight and not trip and (late or self._depth(part) < self._depth(x))

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
        source = part(x.source, 1)
        assert isinstance(source, Vec | Op | Later), "a unit makes it of what is there, or is made"
        return x.of(source)
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
