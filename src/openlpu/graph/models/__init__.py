"""One file per architecture: which variant of the decoder it is.  In: a checkpoint.  Out: its float graph."""

from __future__ import annotations

from openlpu._base.registry import Registry
from openlpu.checkpoint.folder import Checkpoint
from openlpu.checkpoint.onnx.model import OnnxTensors
from openlpu.checkpoint.stacked import Unstacked
from openlpu.graph import decoder, onnx_check
from openlpu.graph.ir import Graph

ARCHITECTURES = Registry(
    "architecture",
    {name: f"openlpu.graph.models.{name}:variant"
     for name in ("llama", "mistral", "qwen2", "qwen3", "mixtral", "gpt_oss")},
)


def build(checkpoint: Checkpoint) -> Graph:
    """The float graph of a checkpoint; its parameters stay in the checkpoint's files until they are read.

    Raises :class:`~openlpu._base.errors.BadCheckpoint` for a tensor that is missing or has the wrong shape.
    """
    variant = ARCHITECTURES.get(checkpoint.config.architecture)(checkpoint.config)
    tensors = checkpoint.tensors
    if variant.mixture.stacked:
        tensors = Unstacked(tensors, checkpoint.config.experts)
    graph = decoder.build(checkpoint.config, tensors, variant)
    if isinstance(checkpoint.tensors, OnnxTensors):
        onnx_check.compare(graph, checkpoint.tensors)
    return graph
