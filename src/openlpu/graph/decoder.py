"""Named tensors in, a float graph out: the pre-norm decoder that every architecture here is a variant of.

The file of an architecture in ``graph/models/`` says which variant; this file says what a layer is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.ir import Builder, Graph
from openlpu.graph.layers import Layers
from openlpu.graph.parameters import Parameters


@dataclass(frozen=True)
class Mixture:
    """How a layer's tensors call its router and its experts, and whether these have biases and are stacked."""

    router: str = "block_sparse_moe.gate"
    expert: str = "block_sparse_moe.experts.{}"
    gate: str = "w1"
    up: str = "w3"
    down: str = "w2"
    bias: bool = False
    stacked: bool = False


@dataclass(frozen=True)
class Variant:
    """What differs between architectures: where biases are, an RMS norm on each query and key head, a sink for each
    query head, names in a mixture, and (alpha, limit) of a gated product that is ``swiglu`` instead of ``silu_mul``."""

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    mixture: Mixture = Mixture()
    swiglu: tuple[float, float] | None = None


def build(config: ModelConfig, tensors: Mapping[str, np.ndarray], variant: Variant) -> Graph:
    """The float graph of one decode step; its parameters are those of ``tensors``, read when they are asked for.

    Raises what :meth:`Tensors.require` raises when a file's tensor is missing or has the wrong shape or type.
    """
    return _Decoder(config, Parameters(tensors), variant).run()


def shapes(config: ModelConfig, variant: Variant) -> Mapping[str, tuple[int, ...]]:
    """Hugging Face's name and the shape of every tensor that :func:`build` reads."""
    params = Parameters(None)
    _Decoder(config, params, variant).run()
    return params.taken


class _Decoder(Layers):
    """The decoder's parts."""

    def __init__(self, config: ModelConfig, params: Parameters, variant: Variant) -> None:
        super().__init__(Builder("float", config, params), params)
        self.config, self.variant = config, variant

    def run(self) -> Graph:
        c, table = self.config, "model.embed_tokens"
        params = {"weight": self.params.take(f"{table}.weight", c.vocab, c.hidden)}
        x = self.graph.add("embed", "embed", ("token",), c.hidden, name="embed.out", params=params)
        for i in range(c.layers):
            x = (self.mixture if c.experts else self.mlp)(i, self.attention(i, x))
        x = self.norm("norm", "model.norm", x)
        return self.graph.finish(self.linear("head", table if c.tied else "lm_head", x, c.vocab, name="logits"))

    def attention(self, i: int, x: str) -> str:
        """Norm, projections, rotary embedding, attention over the layer's cache; added to the residual ``x``."""
        c, at, source = self.config, f"layers.{i}.attn", f"model.layers.{i}.self_attn"
        h = self.norm(f"{at}.norm", f"model.layers.{i}.input_layernorm", x)
        q = self.rotated(f"{at}.q", f"{source}.q", h, c.heads)
        k = self.rotated(f"{at}.k", f"{source}.k", h, c.kv_heads)
        v = self.linear(f"{at}.v", f"{source}.v_proj", h, c.kv_heads * c.head_dim, bias=self.variant.qkv_bias)
        heads: dict[str, Any] = {"heads": c.heads, "kv_heads": c.kv_heads, "head_dim": c.head_dim}
        if c.window and i not in c.full_layers:
            heads["window"] = c.window
        sinks = {"sinks": self.params.take(f"{source}.sinks", c.heads)} if self.variant.sinks else {}
        a = self.graph.add("attention", at, (q, k, v), c.heads * c.head_dim, params=sinks, layer=i, **heads)
        o = self.linear(f"{at}.o", f"{source}.o_proj", a, c.hidden, bias=self.variant.o_bias)
        return self.graph.add("add", at, (x, o), c.hidden)

    def mlp(self, i: int, x: str) -> str:
        """Norm and gated MLP, added to the residual ``x``; the layer's output, ``layers.<i>.out``."""
        c, at, source, bias = self.config, f"layers.{i}.mlp", f"model.layers.{i}.mlp", self.variant.mlp_bias
        h = self.norm(f"{at}.norm", f"model.layers.{i}.post_attention_layernorm", x)
        gate = self.linear(f"{at}.gate", f"{source}.gate_proj", h, c.intermediate, bias=bias)
        up = self.linear(f"{at}.up", f"{source}.up_proj", h, c.intermediate, bias=bias)
        m = self.gated(at, gate, up)
        down = self.linear(f"{at}.down", f"{source}.down_proj", m, c.hidden, bias=bias)
        return self.graph.add("add", at, (x, down), c.hidden, name=f"layers.{i}.out")

    def mixture(self, i: int, x: str) -> str:
        """Norm, router and a gated MLP per expert, of which each token has a few; added to the residual ``x``."""
        c, at, source, how = self.config, f"layers.{i}.mlp", f"model.layers.{i}", self.variant.mixture
        h = self.norm(f"{at}.norm", f"model.layers.{i}.post_attention_layernorm", x)
        logits = self.linear(f"{at}.router", f"{source}.{how.router}", h, c.experts, bias=how.bias)
        weights = self.graph.add("route", at, (logits,), c.experts, chosen=c.experts_per_token)
        sources = [f"{source}.{how.expert.format(e)}" for e in range(c.experts)]
        outputs = [self.expert(f"{at}.{e}", source, e, h, weights) for e, source in enumerate(sources)]
        y = self.graph.add("mix", at, (weights, *outputs), c.hidden)
        return self.graph.add("add", at, (x, y), c.hidden, name=f"layers.{i}.out")

    def expert(self, at: str, source: str, expert: int, h: str, weights: str) -> str:
        """What one expert makes of ``h`` for the tokens that chose it, before its weight."""
        c, how = self.config, self.variant.mixture
        own = self.graph.add("select", at, (h, weights), c.hidden, expert=expert)
        gate, up = (self.linear(f"{at}.{word}", f"{source}.{key}", own, c.intermediate, bias=how.bias)
                    for word, key in (("gate", how.gate), ("up", how.up)))
        m = self.gated(at, gate, up)
        return self.linear(f"{at}.down", f"{source}.{how.down}", m, c.hidden, bias=how.bias)

    def gated(self, at: str, gate: str, up: str) -> str:
        """The product of an MLP's gate, through its activation, and the other half."""
        if self.variant.swiglu is None:
            return self.graph.add("silu_mul", at, (gate, up), self.config.intermediate)
        alpha, limit = self.variant.swiglu
        return self.graph.add("swiglu", at, (gate, up), self.config.intermediate, alpha=alpha, limit=limit)

    def rotated(self, where: str, source: str, h: str, heads: int) -> str:
        """Query or key heads: projection, a norm per head where the variant has one, rotary embedding."""
        c, size = self.config, heads * self.config.head_dim
        y = self.linear(where, f"{source}_proj", h, size, bias=self.variant.qkv_bias)
        if self.variant.qk_norm:
            gain = {"gain": self.params.take(f"{source}_norm.weight", c.head_dim)}
            y = self.graph.add("headnorm", where, (y,), size, params=gain, heads=heads, eps=c.norm_eps)
        return self.graph.add("rope", where, (y,), size, heads=heads)

    def norm(self, where: str, source: str, x: str) -> str:
        c = self.config
        params = {"gain": self.params.take(f"{source}.weight", c.hidden)}
        return self.graph.add("rmsnorm", where, (x,), c.hidden, params=params, eps=c.norm_eps)
