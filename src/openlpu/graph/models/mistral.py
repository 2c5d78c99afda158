"""Mistral: the plain decoder without any bias, often with an explicit head_dim, and with a sliding window, which is
a number of the configuration."""

from __future__ import annotations

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.decoder import Variant


def variant(config: ModelConfig) -> Variant:
    """Always the same, whatever ``attention_bias`` says: the architecture does not read it."""
    return Variant()
