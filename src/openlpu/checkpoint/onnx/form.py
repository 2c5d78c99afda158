"""What a value of the graph is made of: a sum of constants times numbers of terms.

A *term* is something the model computes from its tokens, such as the output of a linear layer.  A *form* says for
each number of an ONNX value which numbers of terms it is made of: ``constant + sum of coefficient * number``.  Every
chain of reshapes, transpositions, slices and repetitions, and every multiplication by a table, is then read by carrying
it out on the form, whatever nodes an exporter wrote it with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 40  # of a number's id that say which number of its term it is
NOTHING = -1  # the id in a part that an element does not have

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Term:
    """Something computed: its number, its meaning (a class of ``terms.py``) and the operation that computes it.

    ``size`` is its numbers per token, token by token; 0 where they have another order.
    """

    number: int
    meaning: Any
    size: int
    origin: Any

    def ids(self, shape: Sequence[int]) -> Numbers:
        """The ids of all its numbers in order, in this shape."""
        count = int(np.prod(shape, dtype=np.int64))
        return (np.arange(count, dtype=np.int64) + (self.number << BITS)).reshape(tuple(shape))


@dataclass(frozen=True)
class Part:
    """Coefficients and the ids of the numbers they are for, in the shape of the value."""

    factor: NDArray[np.float64]
    ids: Numbers


@dataclass(frozen=True)
class Form:
    """A value: ``constant`` (None: zero) plus its parts, all of one shape."""

    parts: tuple[Part, ...]
    constant: NDArray[Any] | None
    shape: tuple[int, ...]

    @classmethod
    def of(cls, ids: Numbers) -> Form:
        """These numbers as they are."""
        return cls((Part(np.broadcast_to(np.float64(1), ids.shape), ids),), None, ids.shape)

    @classmethod
    def known(cls, array: np.ndarray) -> Form:
        """An array that does not depend on the tokens."""
        return cls((), array, array.shape)

    @property
    def pure(self) -> Numbers | None:
        """The ids, where the value is numbers of terms as they are; else None."""
        if len(self.parts) != 1 or self.constant is not None or not (self.parts[0].factor == 1).all():
            return None
        return self.parts[0].ids

    @property
    def single(self) -> int | None:
        """The number of the only term it is made of; None when there are several."""
        found = {int(n) for part in self.parts for n in np.unique(part.ids >> BITS) if n >= 0}
        return found.pop() if len(found) == 1 else None

    def moved(self, move: Callable[[np.ndarray], np.ndarray]) -> Form:
        """The form of the value after a movement."""
        parts = tuple(Part(move(part.factor), move(part.ids)) for part in self.parts)
        constant = None if self.constant is None else move(self.constant)
        return Form(parts, constant, (parts[0].ids if parts else np.asarray(constant)).shape)

    def broadcast(self, shape: tuple[int, ...]) -> Form:
        """Repeated to a larger shape."""
        return self if shape == self.shape else self.moved(lambda x: np.broadcast_to(x, shape))

    def holds(self, ids: Numbers) -> bool:
        """Whether the value is these numbers as they are."""
        return self.pure is not None and np.array_equal(self.pure, ids)

    def times(self, array: np.ndarray | float) -> Form:
        """Each number times one of an array."""
        by = np.asarray(array, np.float64)
        shape = np.broadcast_shapes(self.shape, by.shape)
        wide = self.broadcast(shape)
        constant = None if wide.constant is None else wide.constant * by
        return Form(tuple(Part(part.factor * by, part.ids) for part in wide.parts), constant, shape)

    def plus(self, other: Form) -> Form:
        """The sum of two values."""
        shape = np.broadcast_shapes(self.shape, other.shape)
        a, b = self.broadcast(shape), other.broadcast(shape)
        constant = b.constant if a.constant is None else a.constant if b.constant is None else a.constant + b.constant
        return Form(a.parts + b.parts, constant, shape)

    def token_major(self, term: Term, tokens: int) -> Numbers | None:
        """The channels [n] of ``term`` that the last axis holds, for each token in turn; None where it does not."""
        ids = self.pure
        if ids is None or self.single != term.number or not term.size or ids.size % tokens:
            return None
        rows = (ids - (term.number << BITS)).reshape(tokens, -1)
        if self.shape[-1] != rows.shape[1]:
            return None
        channels = rows[0]
        steps = term.size * np.arange(tokens)[:, None]
        return channels if channels.size and channels.max() < term.size and (rows == channels + steps).all() else None


def together(forms: Sequence[Form], move: Callable[[list[np.ndarray]], np.ndarray]) -> Form:
    """The form of a value that a movement makes of several, such as a concatenation."""
    parts = []
    for i in range(max(len(form.parts) for form in forms)):
        have = [form.parts[i] if i < len(form.parts) else _absent(form.shape) for form in forms]
        parts.append(Part(move([part.factor for part in have]), move([part.ids for part in have])))
    constant = None
    if any(form.constant is not None for form in forms):
        constant = move([np.zeros(f.shape, np.float64) if f.constant is None else f.constant for f in forms])
        constant = constant if constant.any() or not parts else None
    return Form(tuple(parts), constant, (parts[0].ids if parts else np.asarray(constant)).shape)


def chosen(condition: np.ndarray, yes: Form, no: Form) -> Form:
    """Numbers of one form where a condition holds, of the other elsewhere."""
    shape = np.broadcast_shapes(condition.shape, yes.shape, no.shape)
    return together((yes.broadcast(shape), no.broadcast(shape)), lambda x: np.where(condition, x[0], x[1]))


def _absent(shape: tuple[int, ...]) -> Part:
    return Part(np.broadcast_to(np.float64(0), shape), np.broadcast_to(np.int64(NOTHING), shape))
