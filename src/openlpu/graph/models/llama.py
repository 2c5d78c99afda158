"""Llama 2, Llama 3 and what shares their layout (SmolLM): the plain decoder, with biases only where config.json
asks for them.

The generations differ in numbers alone: Llama 3 scales its rotary frequencies, groups its queries and has a larger
vocabulary; small models tie the head to the embedding.
"""

from __future__ import annotations

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.decoder import Variant


def variant(config: ModelConfig) -> Variant:
    """``attention_bias`` is on all four projections of attention, ``mlp_bias`` on all three of the MLP."""
    return Variant(qkv_bias=config.attention_bias, o_bias=config.attention_bias, mlp_bias=config.mlp_bias)
