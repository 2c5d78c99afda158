"""BERT: the encoder under its own names."""

from __future__ import annotations

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.encoder import Names


def variant(config: ModelConfig) -> Names:
    """Always the same."""
    return Names()
