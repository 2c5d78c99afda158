"""Named tensors in, a float graph out: the pre-norm decoder that every architecture here is a variant of.

The file of an architecture in ``graph/models/`` says which variant; this file says what a layer is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.ir import Builder, Graph


@dataclass(frozen=True)
class Variant:
    """What differs between architectures: biases on q, k, v; an RMS norm on each query and key head."""

    qkv_bias: bool = False
    qk_norm: bool = False


def build(config: ModelConfig, tensors: Mapping[str, np.ndarray], variant: Variant) -> Graph:
    """The float graph of one decode step; parameters are views of ``tensors`` under Hugging Face's names."""
    b = Builder("float", config)

    def take(name: str) -> str:
        return name if name in b.params else b.param(name, tensors[name])

    def linear(where: str, source: str, x: str, size: int, bias: bool = False) -> str:
        params = {"weight": take(f"{source}.weight")}
        if bias:
            params["bias"] = take(f"{source}.bias")
        return b.add("linear", where, (x,), size, params=params)

    def norm(where: str, source: str, x: str) -> str:
        params = {"gain": take(f"{source}.weight")}
        return b.add("rmsnorm", where, (x,), config.hidden, params=params, eps=config.norm_eps)

    table = take("model.embed_tokens.weight")
    x = b.add("embed", "embed", ("token",), config.hidden, name="embed.out", params={"weight": table})
    for i in range(config.layers):
        x = _layer(b, config, variant, i, x, linear, norm, take)
    x = norm("norm", "model.norm", x)
    head = table if config.tied else take("lm_head.weight")
    return b.finish(b.add("linear", "head", (x,), config.vocab, name="logits", params={"weight": head}))


def _layer(b: Builder, c: ModelConfig, variant: Variant, i: int, x: str, linear, norm, take) -> str:
    """One layer: attention and gated MLP, each added to the residual; returns ``layers.<i>.out``."""
    at, src = f"layers.{i}", f"model.layers.{i}"
    sizes = {"q": c.heads * c.head_dim, "k": c.kv_heads * c.head_dim, "v": c.kv_heads * c.head_dim}
    h = norm(f"{at}.attn.norm", f"{src}.input_layernorm", x)
    qkv = {}
    for w, size in sizes.items():
        y = linear(f"{at}.attn.{w}", f"{src}.self_attn.{w}_proj", h, size, variant.qkv_bias)
        heads = size // c.head_dim
        if variant.qk_norm and w != "v":
            gain = {"gain": take(f"{src}.self_attn.{w}_norm.weight")}
            y = b.add("headnorm", f"{at}.attn.{w}", (y,), size, params=gain, heads=heads, eps=c.norm_eps)
        if w != "v":
            y = b.add("rope", f"{at}.attn.{w}", (y,), size, heads=heads)
        qkv[w] = y
    shape = {"layer": i, "heads": c.heads, "kv_heads": c.kv_heads, "head_dim": c.head_dim}
    a = b.add("attention", f"{at}.attn", (qkv["q"], qkv["k"], qkv["v"]), sizes["q"], **shape)
    o = linear(f"{at}.attn.o", f"{src}.self_attn.o_proj", a, c.hidden)
    x = b.add("add", f"{at}.attn", (x, o), c.hidden)
    h = norm(f"{at}.mlp.norm", f"{src}.post_attention_layernorm", x)
    gate = linear(f"{at}.mlp.gate", f"{src}.mlp.gate_proj", h, c.intermediate)
    up = linear(f"{at}.mlp.up", f"{src}.mlp.up_proj", h, c.intermediate)
    m = b.add("silu_mul", f"{at}.mlp", (gate, up), c.intermediate)
    down = linear(f"{at}.mlp.down", f"{src}.mlp.down_proj", m, c.hidden)
    return b.add("add", f"{at}.mlp", (x, down), c.hidden, name=f"{at}.out")
