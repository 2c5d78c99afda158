"""A graph and a window of tokens in, the meaning of every value that depends on them out.

What does not depend on the tokens' values (shapes, positions, masks, tables of angles, weights however they are turned)
is computed.  What does is a :class:`~openlpu.checkpoint.onnx.form.Form`, and each operator has a rule for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu.checkpoint.onnx import attend, layers, operators
from openlpu.checkpoint.onnx.feeds import Interface
from openlpu.checkpoint.onnx.file import OnnxGraph, Operation
from openlpu.checkpoint.onnx.form import Form, chosen, together
from openlpu.checkpoint.onnx.terms import Cache, Tokens
from openlpu.checkpoint.onnx.traced import Argument, Rule, Traced


def trace(graph: OnnxGraph, interface: Interface, tokens: int) -> Traced:
    """The meaning of all values for ``tokens`` tokens from position 0 on.

    Raises :class:`Unsupported` naming the first node that openlpu cannot make sense of.
    """
    t = Traced(graph, tokens)
    t.values |= {**graph.constants, **interface.feeds([0] * tokens)}
    found = t.term(Tokens(), 1, None)
    t.values[interface.tokens] = Form.of(found.ids((1, tokens)))
    for port in interface.caches:
        array = t.values[port.name]
        t.values[port.name] = Form.of(t.term(Cache(), 0, None).ids(array.shape))
    for operation in graph.operations:
        inputs = [t.values.get(name) if name else None for name in operation.inputs]
        for name, value in zip(operation.inputs, inputs, strict=True):
            if name and value is None:
                raise BadCheckpoint(f"reads '{name}', which nothing before it writes", where=graph.where(operation))
        outputs = _run(t, operation, inputs)
        t.values |= {name: value for name, value in zip(operation.outputs, outputs, strict=False) if name}
    return t


def _run(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    if not any(isinstance(value, Form) for value in inputs):
        return operators.apply(t.graph, operation, [value for value in inputs if not isinstance(value, Form)])
    rule = _RULES.get(operation.kind)
    if rule is None:
        known = ", ".join(sorted(_RULES))
        raise Unsupported(f"openlpu knows no decoder that applies {operation.kind} to what it computes from tokens",
                          where=t.graph.where(operation), fix=f"operators that it can follow are: {known}")
    try:
        with np.errstate(all="ignore"):  # masks are made with infinities
            return rule(t, operation, inputs)
    except operators.NO_FIT as broken:
        raise BadCheckpoint(f"its inputs do not fit each other: {broken}", where=t.graph.where(operation)) from broken


def _move(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """A movement, carried out on what the value is made of."""
    several = {"Concat": range(len(inputs)), "TensorScatter": (0, 1), "ScatterND": (0, 2)}
    moved = several.get(operation.kind, (0,))
    known = [None if isinstance(value, Form) else value for value in inputs]
    if any(isinstance(value, Form) and i not in moved for i, value in enumerate(inputs)):
        return layers.embed(t, operation, inputs)
    if operation.attributes.get("reduction", "none") != "none":
        raise t.refused(operation, "adds up what it scatters")
    forms = [t.form(inputs[i]) for i in moved]
    count = len(operation.outputs) if operation.kind == "Split" else 1

    def run(arrays: list[np.ndarray], output: int) -> np.ndarray:
        filled = list(known)
        for i, array in zip(moved, arrays, strict=True):
            filled[i] = array
        return operators.apply(t.graph, operation, filled)[output]

    return [together(forms, lambda arrays, output=i: run(arrays, output)) for i in range(count)]


def _shape(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    form = inputs[0]
    assert isinstance(form, Form), "rules are for forms"
    return operators.apply(t.graph, operation, [np.broadcast_to(np.float32(0), form.shape)])


def _cast(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """Another type of the same number; what is lost in it is rounding."""
    if operation.attributes.get("to") == 9:
        raise t.refused(operation, "makes truth values of what it computes from tokens")
    return (inputs[0],)


def _neg(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    return (t.form(inputs[0]).times(-1),)


def _add(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    total = t.form(inputs[0])
    for other in inputs[1:]:
        total = layers.settled(t, operation, total.plus(t.form(other)))
    return (total,)


def _sub(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    return (layers.settled(t, operation, t.form(inputs[0]).plus(t.form(inputs[1]).times(-1))),)


def _mul(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    a, b = inputs
    if isinstance(a, Form) and isinstance(b, Form):
        return (layers.product(t, operation, a, b),)
    form, array = (a, b) if isinstance(a, Form) else (b, a)
    t.note_table(operation, operation.inputs[1 if form is a else 0], array)
    return (layers.settled(t, operation, t.form(form).times(np.asarray(array))),)


def _div(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    a, b = inputs
    if isinstance(b, Form):
        return (layers.quotient(t, operation, a, b),)
    with np.errstate(divide="ignore"):
        return (layers.settled(t, operation, t.form(a).times(1 / np.asarray(b, np.float64))),)


def _where(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    condition, yes, no = inputs
    if isinstance(condition, Form):
        raise t.refused(operation, "chooses by what it computes from tokens")
    return (chosen(np.asarray(condition), t.form(yes), t.form(no)),)


def _is_nan(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """Nothing a model computes from tokens is NaN; exporters guard the softmax of a row that sees nothing."""
    return (np.zeros(t.form(inputs[0]).shape, np.bool_),)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(operators.MOVES, _move), "Shape": _shape, "Size": _shape, "Cast": _cast, "CastLike": _cast,
    "Neg": _neg, "Add": _add, "Sum": _add, "Sub": _sub, "Mul": _mul, "Div": _div, "Where": _where, "IsNaN": _is_nan,
    "MatMul": layers.matmul, "Gemm": layers.gemm, "Pow": layers.power, "ReduceMean": layers.mean,
    "ReduceSum": layers.mean, "Sqrt": layers.root, "Reciprocal": layers.reciprocal, "Sigmoid": layers.sigmoid,
    "Swish": layers.swish, "RMSNormalization": layers.rms_norm, "RotaryEmbedding": attend.rotary,
    "Softmax": attend.softmax, "Attention": attend.attention,
}
