"""Qwen3: an RMS norm on every query and key head, and a head_dim of its own (128 where config.json is silent)."""

from __future__ import annotations

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.decoder import Variant


def variant(config: ModelConfig) -> Variant:
    """``attention_bias`` is on all four projections of attention, as in Llama."""
    return Variant(qkv_bias=config.attention_bias, o_bias=config.attention_bias, qk_norm=True)
