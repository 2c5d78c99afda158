"""Rules for the parts of a layer that stay within a token: embedding, linear layers, norms, gates, residuals.

Each takes an operation whose inputs are understood and says what it computes, however an exporter cut it into nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openlpu.checkpoint.onnx import attend
from openlpu.checkpoint.onnx.file import Operation
from openlpu.checkpoint.onnx.form import BITS, Form, Term
from openlpu.checkpoint.onnx.terms import (
    Embed,
    Gated,
    Linear,
    Mean,
    Norm,
    Normed,
    Residual,
    Root,
    Sigmoid,
    Silu,
    Square,
    Tokens,
)
from openlpu.checkpoint.onnx.traced import Argument, Traced

CLOSE = 1e-5  # what the rounding of a few fp32 operations on constants may make of them


def embed(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """A Gather of table rows by token id; nothing else may be moved by what is computed from tokens."""
    table, ids = inputs[0], inputs[1]
    term = t.meant(ids, Tokens) if isinstance(ids, Form) else None
    fits = operation.kind == "Gather" and isinstance(table, np.ndarray) and table.ndim == 2
    if not fits or term is None or operation.attributes.get("axis", 0) or len(inputs) != 2:
        raise t.refused(operation, "moves numbers by what it computes from tokens, and is no embedding table")
    assert isinstance(table, np.ndarray) and isinstance(ids, Form), "just looked at"
    if not ids.holds(term.ids(ids.shape)):
        raise t.refused(operation, "looks up the tokens in another order")
    row = t.term(Embed(table), table.shape[1], operation)
    return (Form.of(row.ids((*ids.shape, table.shape[1]))),)


def matmul(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """A linear layer where one factor is a weight; scores, or their weighted sum, where neither is."""
    a, b = inputs
    if isinstance(a, Form) and isinstance(b, Form):
        return (attend.product(t, operation, a, b),)
    if not isinstance(a, Form) or not isinstance(b, np.ndarray) or b.ndim < 2 or b.size != b.shape[-1] * b.shape[-2]:
        raise t.refused(operation, "multiplies what it computes from tokens from the left, or by a stack of matrices")
    return (_linear(t, operation, a, b.reshape(b.shape[-2:]).T, None),)


def gemm(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """A linear layer with its bias."""
    a, b, c = (*inputs, None)[:3]
    factors = [operation.attributes.get(word, default) for word, default in (("alpha", 1), ("beta", 1), ("transA", 0))]
    if not isinstance(a, Form) or not isinstance(b, np.ndarray) or isinstance(c, Form) or factors != [1, 1, 0]:
        raise t.refused(operation, "is no linear layer: it scales, or multiplies from the left")
    weight = b if operation.attributes.get("transB", 0) else b.T
    bias = None if c is None else np.broadcast_to(c.reshape(-1), weight.shape[:1])
    return (_linear(t, operation, a, weight, bias),)


def _linear(t: Traced, operation: Operation, x: Form, weight: np.ndarray, bias: np.ndarray | None) -> Form:
    """weight [N, K] times the last axis of x; columns go with the channels that x has there."""
    vector = t.vector(operation, x)
    channels, size = vector.channels, vector.x.size
    if not np.array_equal(np.sort(channels), np.arange(size)):
        raise t.refused(operation, f"multiplies {len(channels)} of a vector's {size} channels")
    if (channels[1:] < channels[:-1]).any():
        weight = weight[:, np.argsort(channels)]
    term = t.term(Linear(vector.x, weight, bias), len(weight), operation)
    return Form.of(term.ids((*x.shape[:-1], len(weight))))


def settled(t: Traced, operation: Operation, form: Form) -> Form:
    """A sum or a product with constants as the term it completes; as it is where it completes none."""
    if form.pure is not None or not form.parts:
        return form
    if len(form.parts) == 2 and form.constant is None:
        return _residual(t, operation, form) or form
    number = form.single
    if len(form.parts) != 1 or number is None:
        return form
    term, (part,) = t.terms[number], form.parts
    if isinstance(term.meaning, Linear) and term.meaning.bias is None and form.constant is not None:
        bias = per_channel(term, part.ids, form.constant, 0.0) if (part.factor == 1).all() else None
        if bias is not None:
            return _same(t, term, Linear(term.meaning.x, term.meaning.weight, bias), operation, part.ids)
    if isinstance(term.meaning, Normed) and form.constant is None:
        gain = per_channel(term, part.ids, part.factor, 1.0)
        if gain is not None:
            return _same(t, term, Norm(term, gain), operation, part.ids)
    return form


def per_channel(term: Term, ids: NDArray[np.int64], values: np.ndarray, default: float) -> np.ndarray | None:
    """fp32 [size]: the value each channel of a term has for every token; None where tokens differ."""
    channels = (ids - (term.number << BITS)) % term.size
    wide = np.broadcast_to(values, ids.shape)
    out = np.full(term.size, default, np.float32)
    out[channels] = wide
    return out if (out[channels] == wide).all() else None


def _same(t: Traced, old: Term, meaning: object, operation: Operation, ids: NDArray[np.int64]) -> Form:
    """The same numbers of another term with the same channels."""
    term = t.term(meaning, old.size, operation)
    return Form.of(ids + ((term.number - old.number) << BITS))


def _residual(t: Traced, operation: Operation, form: Form) -> Form | None:
    """The sum of two whole vectors of different terms."""
    found = []
    for part in form.parts:
        one = Form((part,), None, form.shape)
        term = t.of(one)
        channels = None if term is None else one.token_major(term, t.tokens)
        if term is None or channels is None or not np.array_equal(channels, np.arange(term.size)):
            return None
        found.append(term)
    a, b = found
    if a is b or a.size != b.size:
        return None
    return Form.of(t.term(Residual(a, b), a.size, operation).ids(form.shape))


def product(t: Traced, operation: Operation, a: Form, b: Form) -> Form:
    """A square, a norm, or a gate."""
    if a.pure is not None and b.holds(a.pure):
        return _square(t, operation, a)
    for x, y in ((a, b), (b, a)):
        root = t.meant(y, Root)
        if root is not None and root.meaning.inverse:
            return _normed(t, operation, x, y)
    for x, y in ((a, b), (b, a)):
        gate, term, ids = t.meant(y, Sigmoid), t.of(x), x.pure
        if gate is None or term is None or ids is None or term is not gate.meaning.x:
            continue
        if y.holds(ids + ((gate.number - term.number) << BITS)):
            return _same(t, term, Silu(term), operation, ids)
    for x, y in ((a, b), (b, a)):
        if t.meant(x, Silu) is not None:
            gate, up = t.vector(operation, x), t.vector(operation, y)
            if len(gate.channels) == len(up.channels) and x.shape == y.shape:
                return Form.of(t.term(Gated(gate, up), len(up.channels), operation).ids(x.shape))
    raise t.refused(operation, "multiplies two things computed from tokens, and is no norm and no gated SiLU")


def quotient(t: Traced, operation: Operation, a: Argument, b: Form) -> Form:
    """1 over a root, or a norm."""
    root = t.meant(b, Root)
    if root is not None and not root.meaning.inverse:
        if isinstance(a, Form):
            return _normed(t, operation, a, b)
        if a is not None and (a == 1).all():
            return _inverse(t, operation, b)
    raise t.refused(operation, "divides by what it computes from tokens, and is no norm")


def power(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """A square, a root or 1 over a root."""
    x, exponent = inputs
    if isinstance(x, Form) and isinstance(exponent, np.ndarray) and exponent.size == 1:
        value = float(exponent.reshape(-1)[0])
        if value == 2:
            return (_square(t, operation, x),)
        if value in (0.5, -0.5):
            return (_root(t, operation, x, inverse=value < 0),)
    raise t.refused(operation, "raises to another power than 2, 0.5 or -0.5")


def _square(t: Traced, operation: Operation, x: Form) -> Form:
    term, ids = t.of(x), x.pure
    if term is None or ids is None or not term.size:
        raise t.refused(operation, "squares something else than a vector")
    return _same(t, term, Square(term), operation, ids)


def mean(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """The mean or the sum of squares over the last axis."""
    x, given = inputs[0], inputs[1] if len(inputs) > 1 else None
    given = operation.attributes.get("axes") if given is None else given
    axes = [] if given is None or isinstance(given, Form) else [int(axis) for axis in np.atleast_1d(given)]
    term = t.meant(x, Square) if isinstance(x, Form) else None
    if term is None or not isinstance(x, Form) or x.pure is None or axes not in ([-1], [len(x.shape) - 1]):
        raise t.refused(operation, "reduces something else than the last axis of squares")
    of = term.meaning.x
    rows = (x.pure + ((of.number - term.number) << BITS)).reshape(-1, x.shape[-1])
    made = t.term(Mean(of, rows), 0, operation)
    kept = (1,) if operation.attributes.get("keepdims", 1) else ()
    form = Form.of(made.ids((*x.shape[:-1], *kept)))
    return (form if operation.kind == "ReduceMean" else form.times(x.shape[-1]),)


def root(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """The root of a mean and eps."""
    return (_root(t, operation, t.form(inputs[0]), inverse=False),)


def reciprocal(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """1 over a root."""
    return (_inverse(t, operation, t.form(inputs[0])),)


def _root(t: Traced, operation: Operation, x: Form, *, inverse: bool) -> Form:
    number = x.single
    term = None if number is None or len(x.parts) != 1 else t.terms[number]
    eps = np.zeros(1) if x.constant is None else np.unique(x.constant)
    if term is None or not isinstance(term.meaning, Mean) or len(eps) != 1 or abs(x.parts[0].factor - 1).max() > CLOSE:
        raise t.refused(operation, "takes the root of something else than mean(x * x) + epsilon")
    return _same(t, term, Root(term, shortest(float(eps[0])), inverse), operation, x.parts[0].ids)


def _inverse(t: Traced, operation: Operation, x: Form) -> Form:
    term, ids = t.meant(x, Root), x.pure
    if term is None or ids is None or term.meaning.inverse:
        raise t.refused(operation, "takes the reciprocal of something else than the root of a mean")
    return _same(t, term, Root(term.meaning.mean, term.meaning.eps, True), operation, ids)


def shortest(value: float) -> float:
    """The shortest decimal that rounds to the same fp32: what somebody wrote before it was one."""
    return float(str(np.float32(value)))


def _normed(t: Traced, operation: Operation, x: Form, over: Form) -> Form:
    """x times 1 over the root mean square of the row it is in."""
    root, term, ids, roots = t.of(over), t.of(x), x.pure, over.pure
    assert root is not None and roots is not None, "the caller has looked"
    average = root.meaning.mean.meaning
    if term is None or ids is None or term is not average.x or np.broadcast_shapes(x.shape, over.shape) != x.shape:
        raise t.refused(operation, "divides a vector by the root mean square of another one")
    row = np.broadcast_to(roots - (root.number << BITS), x.shape)
    if (row != row[..., :1]).any() or not np.array_equal(average.rows[row[..., 0]], ids):
        raise t.refused(operation, "divides channels by the root mean square of others")
    groups = np.unique((average.rows - (term.number << BITS)) % term.size, axis=0)
    return _same(t, term, Normed(term, root.meaning.eps, groups), operation, ids)


def rms_norm(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """The standard's operator: a norm over the last axis and its gain."""
    x, scale = t.form(inputs[0]), inputs[1]
    term, ids = t.of(x), x.pure
    last = operation.attributes.get("axis", -1) in (-1, len(x.shape) - 1)
    if term is None or ids is None or not term.size or not last or not isinstance(scale, np.ndarray):
        raise t.refused(operation, "normalises something else than the last axis of a vector")
    groups = np.unique((ids.reshape(-1, x.shape[-1]) - (term.number << BITS)) % term.size, axis=0)
    eps = shortest(operation.attributes.get("epsilon", 1e-5))
    form = _same(t, term, Normed(term, eps, groups), operation, ids)
    return (settled(t, operation, form.times(scale)),)


def sigmoid(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """Half of a SiLU."""
    x = t.form(inputs[0])
    term, ids = t.of(x), x.pure
    if term is None or ids is None or not term.size:
        raise t.refused(operation, "is the sigmoid of something else than a linear layer's output")
    return (_same(t, term, Sigmoid(term), operation, ids),)


def swish(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """The standard's SiLU."""
    x = t.form(inputs[0])
    term, ids = t.of(x), x.pure
    if term is None or ids is None or not term.size or operation.attributes.get("alpha", 1.0) != 1.0:
        raise t.refused(operation, "is a Swish with an alpha of its own, or of no linear layer's output")
    return (_same(t, term, Silu(term), operation, ids),)
