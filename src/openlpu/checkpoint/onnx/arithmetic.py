"""Operators that compute: element by element, over an axis, and matrix products.  NumPy in fp32.

In: a node's arrays and attributes.  Out: the array it writes.  This is the yardstick an imported model is compared
with, not a target: its last bits change between machines.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from openlpu.checkpoint.onnx.layout import Arrays, Attributes, axes_of, option

Compute = Callable[[Arrays, Attributes], np.ndarray]
HALVES = (10, 16)  # the codes of float16 and bfloat16, computed as fp32
TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_,
         11: np.float64, 12: np.uint32, 13: np.uint64} | dict.fromkeys(HALVES, np.float32)


def plain(function: Callable[..., np.ndarray]) -> Compute:
    """An operator that is one NumPy function of all its inputs."""
    return lambda inputs, attributes: function(*inputs)


def reduced(function: Callable[..., np.ndarray]) -> Compute:
    """A reduction over the axes given, or over all; over none where ``noop_with_empty_axes``."""

    def run(inputs: Arrays, attributes: Attributes) -> np.ndarray:
        axes = axes_of(inputs, attributes)
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return inputs[0]
            axes = None
        return np.asarray(function(inputs[0], axis=axes, keepdims=bool(attributes.get("keepdims", 1))))

    return run


def folded(function: Callable[..., np.ndarray]) -> Compute:
    """An operator of two inputs applied to any number of them."""

    def run(inputs: Arrays, attributes: Attributes) -> np.ndarray:
        out = inputs[0]
        for other in inputs[1:]:
            out = function(out, other)
        return out

    return run


def extreme(function: Callable[..., np.ndarray], of_nothing: float) -> Callable[..., np.ndarray]:
    """A largest or smallest number; of none, an infinity or the type's own limit."""

    def run(x: np.ndarray, axis: tuple[int, ...] | None, keepdims: bool) -> np.ndarray:
        if x.size:
            return function(x, axis=axis, keepdims=keepdims)
        limit = of_nothing if x.dtype.kind in "fb" else getattr(np.iinfo(x.dtype), "max" if of_nothing > 0 else "min")
        return function(x, axis=axis, keepdims=keepdims, initial=limit > 0 if x.dtype == bool else limit)

    return run


def divide(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """A quotient; of integers, cut off towards zero."""
    a, b = inputs
    if np.issubdtype(a.dtype, np.floating):
        return a / b
    away = (a % b != 0) & ((a < 0) != (b < 0))
    return a // b + away.astype(a.dtype)


def power(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """A power of the base's type; its square is a product, which is rounded once."""
    x, exponent = inputs
    if exponent.size == 1 and exponent.reshape(-1)[0] == 2:
        return x * x * np.ones(exponent.shape, x.dtype)
    return np.power(x, exponent).astype(x.dtype)


def modulo(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """The rest with the divisor's sign, or with the dividend's where ``fmod``."""
    return (np.fmod if attributes.get("fmod", 0) else np.mod)(*inputs)


def sigmoid(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """1 / (1 + exp(-x)), in a form in which nothing overflows."""
    x = inputs[0]
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


def swish(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """x * sigmoid(alpha x)."""
    x = inputs[0]
    return x * sigmoid([x.dtype.type(attributes.get("alpha", 1.0)) * x], {})


def clip(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Within the limits given; of two that cross, the upper one holds."""
    x, low, high = inputs[0], option(inputs, 1), option(inputs, 2)
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def cast(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Another type; floats below fp32 are fp32 here."""
    code = attributes["to"]
    if code not in TYPES:
        raise ValueError(f"a cast to type {code}, where openlpu knows {sorted(TYPES)}")
    return inputs[0].astype(TYPES[code])


def cast_like(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """The type of the second input."""
    return inputs[0].astype(inputs[1].dtype)


def shape(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """The sizes of the axes from ``start`` to ``end``."""
    x, start, end = inputs[0], attributes.get("start", 0), attributes.get("end")
    low, high = (min(max(at + x.ndim if at < 0 else at, 0), x.ndim) for at in (start, x.ndim if end is None else end))
    return np.array(x.shape[low:high], np.int64)


def size(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """How many numbers there are."""
    return np.array(inputs[0].size, np.int64)


def constant(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """The value in the node itself."""
    for name, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32),
                        ("value_floats", np.float32)):
        if name in attributes:
            return np.array(attributes[name], dtype)
    return attributes["value"]


def constant_of_shape(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """One value, 0 unless given, everywhere."""
    value = attributes.get("value", np.zeros(1, np.float32))
    return np.full(countable([int(length) for length in inputs[0]]), value.reshape(-1)[0], value.dtype)


def counted(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Range: numbers from a start to before a limit."""
    start, limit, delta = (np.asarray(x).reshape(-1)[0] for x in inputs)
    (count,) = countable([max(int(np.ceil((limit - start) / delta)), 0)])
    return (start + np.arange(count) * delta).astype(start.dtype)


def triangle(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Trilu: the part on one side of a diagonal, zeros on the other."""
    k = option(inputs, 1)
    k = 0 if k is None else int(np.asarray(k).reshape(-1)[0])
    x, rows = inputs[0], np.arange(inputs[0].shape[-2])[:, None]
    columns = np.arange(x.shape[-1])
    kept = columns >= rows + k if attributes.get("upper", 1) else columns <= rows + k
    return np.where(kept, x, x.dtype.type(0))


def running_sum(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """CumSum: each sum with or without its own number, from either end."""
    x, axis = inputs[0], int(np.asarray(inputs[1]).reshape(-1)[0])
    backwards = bool(attributes.get("reverse", 0))
    x = np.flip(x, axis) if backwards else x
    out = np.cumsum(x, axis, dtype=x.dtype)
    out = out - x if attributes.get("exclusive", 0) else out
    return np.flip(out, axis) if backwards else out


def softmax(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Shares along ``axis`` that add up to 1."""
    x, axis = inputs[0], attributes.get("axis", -1)
    if not x.size:
        return x
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return (e / e.sum(axis=axis, keepdims=True)).astype(x.dtype)


def gemm(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """alpha A B + beta C, either factor transposed first where the node says so."""
    a = inputs[0].T if attributes.get("transA", 0) else inputs[0]
    b = inputs[1].T if attributes.get("transB", 0) else inputs[1]
    alpha, beta = (a.dtype.type(attributes.get(word, 1.0)) for word in ("alpha", "beta"))
    y = alpha * (a @ b)
    return y if option(inputs, 2) is None else (y + beta * inputs[2]).astype(a.dtype)


def countable(sizes: list[int]) -> list[int]:
    """Sizes, after making sure that an array of them is no mistake."""
    if prod(sizes) >= 1 << 32:
        raise ValueError(f"an array of {sizes}")
    return sizes


def is_inf(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Whether a number is an infinity of a sign that is asked for."""
    x = inputs[0]
    above, below = attributes.get("detect_positive", 1), attributes.get("detect_negative", 1)
    return np.isinf(x) & (((x > 0) & bool(above)) | ((x < 0) & bool(below)))


def layer_norm(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Mean 0 and variance 1 over the axes from ``axis`` on, times a scale, plus a bias; also both."""
    x, axis = inputs[0], attributes.get("axis", -1)
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(variance + x.dtype.type(attributes.get("epsilon", 1e-5)))
    y = centred * inverse * inputs[1]
    return (y if option(inputs, 2) is None else y + inputs[2]), mean, inverse
