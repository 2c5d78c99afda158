"""Mixtral: Mistral's decoder with several MLPs a layer, the experts, of which a router gives each token a few.

How many there are is a number of the configuration.
"""

from __future__ import annotations

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.decoder import Variant


def variant(config: ModelConfig) -> Variant:
    """Always the same: the architecture has no bias, and the decoder reads the number of experts itself."""
    return Variant()
