"""RoBERTa: BERT's tensors; that its positions begin with row 2 of their table is a number of the configuration."""

from __future__ import annotations

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.encoder import Names


def variant(config: ModelConfig) -> Names:
    """Always the same."""
    return Names()
