"""gpt-oss: a mixture of experts in every layer, biases everywhere, a sink for each query head, windows in every other
layer, and a gated product that is clamped.

Heads of 64 and a rotary embedding stretched by YaRN are numbers of the configuration; checkpoint/stacked.py shows the
stacked experts one by one.
"""

from __future__ import annotations

from openlpu.checkpoint.config import SWIGLU_LIMIT, ModelConfig
from openlpu.graph.decoder import Mixture, Variant

ALPHA = 1.702
MIXTURE = Mixture("mlp.router", "mlp.experts.{}", "gate_proj", "up_proj", "down_proj", bias=True, stacked=True)


def variant(config: ModelConfig) -> Variant:
    """Always the same: the architecture has all its biases, whatever ``attention_bias`` says."""
    return Variant(qkv_bias=True, o_bias=True, sinks=True, mixture=MIXTURE, swiglu=(ALPHA, SWIGLU_LIMIT))
