"""A graph that was read wrongly cannot pass: its logits are compared with those of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openlpu._base.errors import Unsupported
from openlpu.checkpoint.folder import load
from openlpu.graph import build

pytest.importorskip("onnx", reason="needs the onnx package to write graphs")
pytest.importorskip("onnx_ir", reason="needs the onnx-ir package to read them")

from onnx_graphs import Style, export


@pytest.mark.parametrize("style", [Style(), Style(cache="grow"), Style(opset=24, standard=True, cache="slots")])
def test_any_tensor_read_wrongly_is_noticed(models: Path, tmp_path: Path, style: Style) -> None:
    checkpoint = load(export(models / "qwen3", tmp_path / "m.onnx", style))
    build(checkpoint)
    arrays = checkpoint.tensors._arrays
    for name, array in list(arrays.items()):
        arrays[name] = np.roll(array, 1, axis=0) * np.float32(1.01)
        with pytest.raises(Unsupported, match=r"m\.onnx: the decoder read from the graph has other logits"):
            build(checkpoint)
        arrays[name] = array


def test_caches_in_another_order_are_noticed(models: Path, tmp_path: Path) -> None:
    checkpoint = load(export(models / "qwen3", tmp_path / "m.onnx", Style(cache="grow")))
    graph = checkpoint.tensors.graph
    outputs = [graph.outputs[0], *reversed(graph.outputs[1:])]
    object.__setattr__(graph, "outputs", tuple(outputs))
    with pytest.raises(Unsupported, match="other logits"):
        build(checkpoint)
