"""Qwen2 and Qwen2.5: biases on queries, keys and values, none on the attention's output."""

from __future__ import annotations

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.decoder import Variant


def variant(config: ModelConfig) -> Variant:
    """Always the same: the biases are the architecture's, no field of config.json has them."""
    return Variant(qkv_bias=True)
