"""One file per architecture: which variant of the decoder it is, or what an encoder's tensors are called.

In: a checkpoint.  Out: its float graph.
"""

from __future__ import annotations

from openlpu._base.registry import Registry
from openlpu.checkpoint.config import ENCODERS
from openlpu.checkpoint.encoder import EncoderConfig, EncoderTensors
from openlpu.checkpoint.folder import Checkpoint
from openlpu.checkpoint.onnx.model import OnnxTensors
from openlpu.checkpoint.stacked import Unstacked
from openlpu.graph import decoder, encoder, onnx_check
from openlpu.graph.ir import Graph

ARCHITECTURES = Registry(
    "architecture",
    {name: f"openlpu.graph.models.{name}:variant"
     for name in ("llama", "mistral", "qwen2", "qwen3", "mixtral", "gpt_oss", *ENCODERS)},
)


def build(checkpoint: Checkpoint) -> Graph:
    """The float graph of a checkpoint; its parameters stay in the checkpoint's files until they are read.

    Raises :class:`~openlpu._base.errors.BadCheckpoint` for a tensor that is missing or has the wrong shape.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    variant = ARCHITECTURES.get(config.architecture)(config)
    if isinstance(config, EncoderConfig):
        return encoder.build(config, EncoderTensors(tensors, config.architecture), variant)
    if variant.mixture.stacked:
        tensors = Unstacked(tensors, config.experts)
    graph = decoder.build(config, tensors, variant)
    if isinstance(checkpoint.tensors, OnnxTensors):
        onnx_check.compare(graph, checkpoint.tensors)
    return graph
