"""Mistral: the plain decoder without any bias, often with an explicit head_dim and a sliding window.

The window is the configuration's business: a context that it does not cover is refused when the model is loaded.
"""

from __future__ import annotations

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.decoder import Variant


def variant(config: ModelConfig) -> Variant:
    """Always the same, whatever ``attention_bias`` says: the architecture does not read it."""
    return Variant()
