"""DistilBERT: half of BERT's layers, no token types, other names."""

from __future__ import annotations

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.encoder import Names


def variant(config: ModelConfig) -> Names:
    """Always the same."""
    return Names(
        layer="transformer.layer.{}", query="attention.q_lin", key="attention.k_lin", value="attention.v_lin",
        out="attention.out_lin", first_norm="sa_layer_norm", up="ffn.lin1", down="ffn.lin2",
        second_norm="output_layer_norm",
    )
