"""The ONNX standard's own tests of the operators that openlpu computes, and whole graphs."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the onnx package, which has the standard's node tests")
ir = pytest.importorskip("onnx_ir", reason="needs the onnx-ir package")

from openlpu.checkpoint.onnx import file, operators  # noqa: E402
from openlpu.checkpoint.onnx.run import evaluate  # noqa: E402

COMPUTED = {"float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}


def cases() -> list[Any]:
    """The standard's node tests, with the models and arrays that the package makes for them."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own arithmetic
        return collect_testcases()


def graph_of(case: Any) -> file.OnnxGraph | None:
    """A case's graph where all its operators are known and its numbers are those that openlpu computes with."""
    model = case.model
    kinds = {node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
             for node in model.graph.node}
    arrays = [array for group in case.data_sets[0] for array in group]
    known = kinds <= set(operators.OPERATORS)
    if not known or not all(isinstance(array, (np.ndarray, np.generic)) for array in arrays):
        return None
    casts = {a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    if {array.dtype.name for array in arrays} <= COMPUTED and not casts & {10, 16}:
        return file.of_model(Path(case.name), ir.from_proto(model))
    return None


def right(case: Any, graph: file.OnnxGraph) -> bool:
    """Whether a case's outputs are what the standard wants."""
    inputs, wanted = case.data_sets[0]
    feeds = dict(zip([port.name for port in graph.inputs], map(np.asarray, inputs), strict=True))
    found = evaluate(graph, feeds, graph.outputs)
    return all(
        found[name].shape == array.shape and found[name].dtype == array.dtype
        and np.allclose(found[name], array, rtol=case.rtol, atol=max(case.atol, 1e-6), equal_nan=True)
        for name, array in zip(graph.outputs, wanted, strict=True)
    )


def test_the_standards_node_tests_pass() -> None:
    """All those whose operators are known and whose numbers are no wider or narrower than what is computed here."""
    passed, failed = Counter(), []
    for case in cases():
        graph = graph_of(case)
        if graph is None:
            continue
        if right(case, graph):
            passed.update({operation.kind for operation in graph.operations})
            passed["cases"] += 1
        else:
            failed.append(case.name)
    print(f"\n{passed['cases']} node tests of ONNX {onnx.__version__} pass, {len(failed)} fail")
    assert not failed, failed
    assert set(operators.OPERATORS) <= set(passed), "an operator that no test of the standard covers"
    assert passed["cases"] >= 500


@pytest.mark.parametrize("name", ["stories260K_opset21", "stories260K_opset23", "stories260K_kv_opset23"])
def test_whole_graphs_give_what_another_runtime_gave(shared: Path, name: str) -> None:
    folder = shared / "models" / "onnx"
    graph, io = file.read(folder / f"{name}.onnx"), np.load(folder / "io" / f"{name}.npz")
    feeds = {port.name: io[f"in:{port.name}"] for port in graph.inputs}
    found = evaluate(graph, feeds, graph.outputs)
    for key in io.files:
        if key.startswith("out:"):
            assert np.allclose(found[key[4:]], io[key], rtol=1e-4, atol=1e-4), key
