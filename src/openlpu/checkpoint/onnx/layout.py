"""Operators that move numbers and change none: shapes, slices, transpositions, gathers.

In: a node's arrays and attributes.  Out: the arrays it writes.  They also run on arrays that say which numbers are
where (``form.py``), which is how the meaning of any chain of them is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Sequence[Any]  # np.ndarray, or None for an optional input that is left out
Attributes = Mapping[str, Any]


def option(inputs: Arrays, at: int) -> Any:
    """An optional input; None where it is left out."""
    return inputs[at] if len(inputs) > at else None


def axes_of(inputs: Arrays, attributes: Attributes, at: int = 1) -> tuple[int, ...] | None:
    """Axes given as an input or, in older opsets, as an attribute."""
    given = option(inputs, at)
    given = attributes.get("axes") if given is None else given
    return None if given is None else tuple(int(axis) for axis in np.atleast_1d(given))


def identity(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """The first input."""
    return inputs[0]


def reshape(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """A size of 0 keeps the input's unless ``allowzero``, -1 is what is left."""
    x, shape = inputs[0], [int(size) for size in inputs[1]]
    if not attributes.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def transpose(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Axes in the order of ``perm``, or reversed."""
    return np.transpose(inputs[0], attributes.get("perm"))


def squeeze(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Without the axes given, or without all of size 1."""
    return np.squeeze(inputs[0], axes_of(inputs, attributes))


def unsqueeze(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """With axes of size 1 where the result has those given."""
    axes = axes_of(inputs, attributes)
    assert axes is not None, "the standard requires axes"
    return np.expand_dims(inputs[0], axes)


def flatten(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """A matrix: the axes before ``axis`` are its rows."""
    x, axis = inputs[0], attributes.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def expand(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Repeated as broadcasting with the shape given would."""
    x, shape = inputs[0], tuple(int(size) for size in inputs[1])
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, shape))


def tile(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Repeated side by side."""
    return np.tile(inputs[0], [int(count) for count in inputs[1]])


def slices(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """``start:end:step`` of each axis given."""
    x, starts, ends = inputs[:3]
    axes, steps = option(inputs, 3), option(inputs, 4)
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[int(axis)] = _range(int(start), int(end), int(step), x.shape[int(axis)])
    return x[tuple(cut)]


def _range(start: int, end: int, step: int, size: int) -> slice:
    """Python's slice, but for an end before the first when going down, which Python would read from the back."""
    return slice(start, None if step < 0 and end < -size else end, step)


def split(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Parts of the sizes given, or ``num_outputs`` equal ones of which the last may be smaller."""
    x, sizes, axis = inputs[0], option(inputs, 1), attributes.get("axis", 0)
    if sizes is None:
        count = attributes["num_outputs"]
        sizes = [-(-x.shape[axis] // count)] * count
    return tuple(np.split(x, np.cumsum(np.asarray(sizes, np.int64))[:-1], axis))


def concat(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """One behind the other along ``axis``."""
    return np.concatenate(list(inputs), attributes["axis"])


def gather(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """The slices of ``axis`` that the indices name."""
    x, indices = inputs
    axis = attributes.get("axis", 0)
    within(indices, x.shape[axis])
    return np.take(x, indices, axis)


def gather_elements(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """One number for each index, along ``axis``."""
    return np.take_along_axis(inputs[0], inputs[1], attributes.get("axis", 0))


def gather_nd(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """The part of each batch that the tuples in the last axis of the indices name."""
    x, indices = inputs
    batch, depth = attributes.get("batch_dims", 0), indices.shape[-1]
    found = tuple(indices[..., i] for i in range(depth))
    lead = np.ix_(*(np.arange(size) for size in x.shape[:batch])) if batch else ()
    inner = found[0].ndim - batch if found else 0
    return x[(*(at.reshape(at.shape + (1,) * inner) for at in lead), *found)]


def scatter(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """TensorScatter: a cache with an update written from each batch's index on, around its end if ``circular``."""
    cache, update, starts = inputs[0].copy(), inputs[1], option(inputs, 2)
    axis, circular = attributes.get("axis", -2), attributes.get("mode", "linear") == "circular"
    starts = np.zeros(len(cache), np.int64) if starts is None else starts
    for batch, start in enumerate(starts):
        rows = int(start) + np.arange(update.shape[axis])
        if not circular and len(rows) and not 0 <= rows[0] <= rows[-1] < cache.shape[axis]:
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of a cache of {cache.shape[axis]}")
        target, source = np.moveaxis(cache, axis, 1), np.moveaxis(update, axis, 1)
        target[batch, rows % cache.shape[axis]] = source[batch]
    return cache


def scatter_nd(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """A copy of x whose parts that the indices' tuples name are replaced by the updates, or combined with them."""
    x, indices, updates = inputs[0].copy(), inputs[1], inputs[2]
    at = tuple(indices[..., i] for i in range(indices.shape[-1]))
    for axis, found in enumerate(at):
        within(found, x.shape[axis])
    combine = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}.get(
        attributes.get("reduction", "none"))
    if combine is None:
        x[at] = updates
    else:
        combine.at(x, at, updates)
    return x


def within(indices: np.ndarray, size: int) -> None:
    """``IndexError`` for an index beyond an axis; NumPy's own message names neither."""
    if indices.size and not -size <= indices.min() <= indices.max() < size:
        raise IndexError(f"indices {indices.min()} to {indices.max()} into an axis of size {size}")
