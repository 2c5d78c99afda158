"""One file per architecture: which variant of the decoder it is, or what an encoder's tensors are called.

In: a checkpoint.  Out: its float graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from openlpu._base.registry import Registry
from openlpu.checkpoint.config import ENCODERS, ModelConfig
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
    if isinstance(config, EncoderConfig):
        return of_tensors(config, EncoderTensors(tensors, config.architecture))
    if ARCHITECTURES.get(config.architecture)(config).mixture.stacked:
        tensors = Unstacked(tensors, config.experts)
    graph = of_tensors(config, tensors)
    if isinstance(checkpoint.tensors, OnnxTensors):
        onnx_check.compare(graph, checkpoint.tensors)
    return graph


def of_tensors(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Graph:
    """The float graph of a configuration and tensors of Hugging Face's names; raises as :func:`build` does."""
    variant = ARCHITECTURES.get(config.architecture)(config)
    if isinstance(config, EncoderConfig):
        return encoder.build(config, tensors, variant)
    return decoder.build(config, tensors, variant)


def shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Hugging Face's name and the shape of every tensor that a graph of this configuration reads."""
    variant = ARCHITECTURES.get(config.architecture)(config)
    if isinstance(config, EncoderConfig):
        return encoder.shapes(config, variant)
    return decoder.shapes(config, variant)
