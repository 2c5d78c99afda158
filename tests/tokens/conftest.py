"""A small random model for tests of the tokens folder: 3 layers, 96 tokens, 128 positions."""

from __future__ import annotations

import numpy as np
import pytest

from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.graph import decoder
from openlpu.graph.decoder import Variant
from openlpu.graph.ir import Graph
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme

CONFIG = ModelConfig("llama", 32, 3, 4, 2, 8, 48, 96, 128, 1e-5, Rope(10000.0), True)


@pytest.fixture(scope="session")
def tiny() -> Graph:
    rng = np.random.default_rng(7)
    c, width = CONFIG, {"q": CONFIG.heads * 8, "k": CONFIG.kv_heads * 8, "v": CONFIG.kv_heads * 8}

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-1]) / 2)

    tensors = {"model.embed_tokens.weight": draw(c.vocab, c.hidden), "model.norm.weight": draw(c.hidden)}
    for i in range(c.layers):
        at = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = 1 + draw(c.hidden) / 8
        for name, rows in width.items():
            tensors[f"{at}.self_attn.{name}_proj.weight"] = draw(rows, c.hidden)
        tensors[f"{at}.self_attn.o_proj.weight"] = draw(c.hidden, width["q"])
        tensors[f"{at}.mlp.gate_proj.weight"] = draw(c.intermediate, c.hidden)
        tensors[f"{at}.mlp.up_proj.weight"] = draw(c.intermediate, c.hidden)
        tensors[f"{at}.mlp.down_proj.weight"] = draw(c.hidden, c.intermediate)
    return lower(decoder.build(c, tensors, Variant()), Scheme())
