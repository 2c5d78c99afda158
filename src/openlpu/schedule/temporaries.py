"""Rows of SRAM for values inside a token: given to a result, taken back when nobody reads it any more, given again.

Calls made later may land in earlier cycles.  So a row that is given back carries the cycle from which it may be
written, the one after its last use, and a result takes it only if it is written then or later.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from openlpu.place.sram import Sram
from openlpu.schedule.expression import Later
from openlpu.schedule.values import Vec

P = ParamSpec("P")
R = TypeVar("R")
Row = tuple[int, int]  # group of slices, address


class Temporaries:
    """Rows in use and free, by group of slices (one address in all of its slices)."""

    def __init__(self, sram: Sram) -> None:
        self.sram, self.per = sram, sram.chip.slices_per_register
        self.free: list[list[tuple[int, int]]] = [[] for _ in range(sram.chip.slices // self.per)]
        self.after: dict[Row, int] = {}  # of rows in use: the cycle after the last use
        self.scopes: list[list[Row]] = [[]]  # what was made since each was entered
        self.trial: list[tuple[int, int, int]] = []  # group, cycle, address: taken since the last commit

    def possible(self, group: int) -> bool:
        """Whether a group has, or will have, a row to give."""
        return bool(self.free[group]) or self._fresh(group)

    def find(self, group: int, cycle: int) -> int | None:
        """The address that :meth:`take` would give."""
        at = bisect_left(self.free[group], (cycle + 1, 0))
        if at:
            return self.free[group][at - 1][1]
        return self.sram.next_temporary(self._slices(group)) if self._fresh(group) else None

    def take(self, group: int, cycle: int) -> tuple[int, int]:
        """A row that is first written in ``cycle``: its address, and the cycle from which it may be written.

        Of rows given back the one that became free last, so that earlier writes find the others.
        """
        freed = self.free[group]
        at = bisect_left(freed, (cycle + 1, 0))
        since, address = freed.pop(at - 1) if at else (0, self.sram.temporary(self._slices(group)))
        self.after[group, address] = cycle + 1
        self.trial.append((group, since, address))
        return address, since

    def use(self, slice_: int, address: int, cycle: int) -> None:
        """A word is read or written; nothing happens if it is of no row in use."""
        row = slice_ // self.per, address
        if cycle >= self.after.get(row, cycle + 1):
            self.after[row] = cycle + 1

    def commit(self) -> None:
        """What was taken since the last time stays taken."""
        self.scopes[-1].extend((group, address) for group, _, address in self.trial)
        self.trial.clear()

    def undo(self) -> None:
        """Give back what was taken since the last commit, as it was."""
        for group, since, address in self.trial:
            del self.after[group, address]
            insort(self.free[group], (since, address))
        self.trial.clear()

    def enter(self) -> None:
        """Begin a scope inside the present one."""
        self.scopes.append([])

    def leave(self, kept: Iterable[Vec]) -> None:
        """End a scope: what was made inside is given back, but for what is kept, which belongs to the scope around."""
        stays = {(vec.slices[0] // self.per, vec.address) for vec in kept}
        for row in self.scopes.pop():
            if row in stays:
                self.scopes[-1].append(row)
            else:
                insort(self.free[row[0]], (self.after.pop(row), row[1]))

    def stay(self, vec: Vec) -> None:
        """What was made inside the present scope lives until the token ends."""
        row = vec.slices[0] // self.per, vec.address
        self.scopes[-1].remove(row)
        self.scopes[0].append(row)

    def _slices(self, group: int) -> tuple[int, ...]:
        return tuple(range(group * self.per, (group + 1) * self.per))

    def _fresh(self, group: int) -> bool:
        return self.sram.has_temporary(self._slices(group))


class Owner(Protocol):
    """What has the temporaries of the program under construction."""

    @property
    def temporaries(self) -> Temporaries: ...


Has = TypeVar("Has", bound=Owner)


def scoped(function: Callable[Concatenate[Has, P], R]) -> Callable[Concatenate[Has, P], R]:
    """Vectors that a function makes and does not return die at its end."""

    @wraps(function)
    def inside(owner: Has, *args: P.args, **kwargs: P.kwargs) -> R:
        owner.temporaries.enter()
        out = function(owner, *args, **kwargs)
        owner.temporaries.leave(vectors(out))
        return out

    return inside


def vectors(x: object, seen: set[int] | None = None) -> Iterator[Vec]:
    """All vectors in a result: in its sequences, tables, dataclasses; of what is made later those it is made of.  What
    is shared counts once (``seen``)."""
    seen = set() if seen is None else seen
    if isinstance(x, Vec):
        yield x
        yield from vectors(x.twin, seen)
    elif id(x) not in seen:
        seen.add(id(x))
        for part in _parts(x):
            yield from vectors(part, seen)


def _parts(x: object) -> Iterable[object]:
    if isinstance(x, Later):
        return (x.vec or x.op,)
    if isinstance(x, tuple | list):
        return x
    if isinstance(x, dict):
        return x.values()
    return [getattr(x, field.name) for field in fields(x)] if is_dataclass(x) else ()
