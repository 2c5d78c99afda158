"""An ``.onnx`` file in, plain operations and constants out: the only file that knows the library which reads them.

Weights outside the file (external data) must lie in its folder.  Numbers narrower than fp32 become fp32 here, so
that everything behind this file computes in one precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from openlpu._base.errors import BadCheckpoint, Unsupported

LEAST_OPSET = 17
_MAIN = ("", "ai.onnx")


@dataclass(frozen=True)
class Operation:
    """One node: ``kind`` is its operator; an optional input or output that is left out has the name ``""``."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"node '{self.name}' ({self.kind})"


@dataclass(frozen=True)
class Port:
    """An input of the graph: its type, and a size, a name or None for each dimension."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """The operations in execution order, and what they start from."""

    path: Path
    opset: int
    operations: tuple[Operation, ...]
    constants: Mapping[str, np.ndarray]
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]

    def where(self, operation: Operation) -> str:
        """``<file>: node '<name>' (<operator>)``, for errors."""
        return f"{self.path}: {operation}"


def read(path: Path) -> OnnxGraph:
    """The graph of a file, local functions expanded.

    Raises :class:`BadCheckpoint` for a file that is broken, :class:`Unsupported` for one that is too old or when the
    library is missing.
    """
    ir = _library(path)
    if not path.is_file():
        raise BadCheckpoint("no such file", where=str(path))
    try:
        model = ir.load(path)
    except Exception as broken:  # the library raises what protobuf and its own checks raise
        why = str(broken).partition("\n")[0]
        raise BadCheckpoint(f"not an ONNX file: {why}", where=str(path), fix="export or download it again") from broken
    graph = of_model(path, model)
    if graph.opset < LEAST_OPSET:
        fix = f"export the model with opset {LEAST_OPSET} or later"
        raise Unsupported(f"opset {graph.opset}", where=str(path), fix=fix)
    return graph


def of_model(path: Path, model: Any) -> OnnxGraph:
    """The graph of a model that the library has read from ``path``, of any opset (0: it names none)."""
    if model.functions:
        from onnx_ir.passes.common import InlinePass

        model = InlinePass()(model).model
    opset = next((model.opset_imports[domain] for domain in _MAIN if domain in model.opset_imports), 0)
    graph = model.graph
    constants = {name: _array(path, name, value.const_value) for name, value in graph.initializers.items()}
    return OnnxGraph(
        path, opset, tuple(_operation(path, at, node) for at, node in enumerate(graph)), constants,
        tuple(_port(path, value) for value in graph.inputs if value.name not in constants),
        tuple(value.name for value in graph.outputs),
    )


def _library(path: Path) -> ModuleType:
    try:
        import onnx_ir
    except ModuleNotFoundError as missing:
        what = "reading ONNX needs the onnx-ir package"
        raise Unsupported(what, where=str(path), fix="pip install 'openlpu[onnx]'") from missing
    return onnx_ir


def _operation(path: Path, at: int, node: Any) -> Operation:
    kind = node.op_type if node.domain in _MAIN else f"{node.domain}.{node.op_type}"
    name = node.name or f"#{at}"
    attributes = {key: _attribute(path, f"node '{name}' ({kind})", a) for key, a in node.attributes.items()}
    inputs = tuple("" if value is None else value.name for value in node.inputs)
    if kind == "Split" and len(inputs) == 1:  # before opset 18 the number of its parts was only that of its outputs
        attributes.setdefault("num_outputs", len(node.outputs))
    return Operation(name, kind, inputs, tuple(value.name or "" for value in node.outputs), attributes)


def _attribute(path: Path, node: str, attribute: Any) -> Any:
    """Numbers, texts, lists of them, arrays; None for a graph, which no operator that openlpu knows has."""
    kind = attribute.type.name
    if kind == "TENSOR":
        return _array(path, node, attribute.value)
    if kind in ("INT", "FLOAT", "STRING"):
        return attribute.value
    if kind in ("INTS", "FLOATS", "STRINGS"):
        return tuple(attribute.value)
    return None


def _array(path: Path, name: str, tensor: Any) -> np.ndarray:
    """The numbers of a tensor, fp32 where they are a narrower float; a view of the file where that can be."""
    where = f"{path}: {name}"
    if tensor is None:
        raise BadCheckpoint("an initializer without data", where=where)
    location = getattr(tensor, "location", None)
    if location is not None and not (path.parent / location).resolve().is_relative_to(path.parent.resolve()):
        raise BadCheckpoint(f"its data lies outside the file's folder, in {location}", where=where)
    try:
        array = np.asarray(tensor.numpy())
    except Exception as broken:  # a file that is missing or short, as the library and the system say it
        raise BadCheckpoint(f"its data cannot be read: {broken}", where=where) from broken
    return widened(array)


def widened(array: np.ndarray) -> np.ndarray:
    """Float types below fp32 as fp32, any other as it is."""
    narrow = array.dtype.kind == "V" or array.dtype.name in ("float16", "bfloat16") or "float8" in array.dtype.name
    return array.astype(np.float32) if narrow else array


def _port(path: Path, value: Any) -> Port:
    if value.dtype is None or value.shape is None:
        raise BadCheckpoint("an input without a type or a shape", where=f"{path}: {value.name}")
    dtype = np.zeros((), value.dtype.numpy())
    return Port(value.name, widened(dtype).dtype, _sizes(value.shape))


def _sizes(shape: Iterable[Any]) -> tuple[int | str | None, ...]:
    return tuple(size if isinstance(size, int) else getattr(size, "value", None) for size in shape)
