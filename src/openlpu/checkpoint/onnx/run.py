"""A graph and what its inputs hold in, the values asked for out: the graph computed in NumPy.

Only what leads to those values is computed, and each is let go of after its last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from openlpu._base.errors import BadCheckpoint
from openlpu.checkpoint.onnx import operators
from openlpu.checkpoint.onnx.file import OnnxGraph, Operation


def evaluate(graph: OnnxGraph, feeds: Mapping[str, np.ndarray], wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """The values named ``wanted``; ``feeds`` are those of the inputs.

    Raises :class:`BadCheckpoint` naming the node whose inputs do not fit or are nowhere written.
    """
    asked = set(wanted)
    needed = _leading_to(graph, asked)
    uses = Counter(name for operation in needed for name in operation.inputs)
    values: dict[str, np.ndarray] = dict(graph.constants) | dict(feeds)
    for operation in needed:
        inputs = [None if not name else _known(graph, operation, values, name) for name in operation.inputs]
        found = operators.apply(graph, operation, inputs)
        values |= {name: value for name, value in zip(operation.outputs, found, strict=False) if name}
        for name in operation.inputs:
            uses[name] -= 1
            if not uses[name] and name not in asked:
                values.pop(name, None)
    missing = sorted(asked - values.keys())
    if missing:
        raise BadCheckpoint(f"'{missing[0]}' is asked for, which no node writes", where=str(graph.path))
    return {name: values[name] for name in asked}


def _leading_to(graph: OnnxGraph, wanted: set[str]) -> list[Operation]:
    """The operations that the values need, in execution order."""
    names, found = set(wanted), []
    for operation in reversed(graph.operations):
        if names.intersection(operation.outputs):
            names.update(operation.inputs)
            found.append(operation)
    return found[::-1]


def _known(graph: OnnxGraph, operation: Operation, values: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in values:
        raise BadCheckpoint(f"reads '{name}', which nothing before it writes", where=graph.where(operation))
    return values[name]
