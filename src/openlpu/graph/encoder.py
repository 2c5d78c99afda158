"""Named tensors in, a float graph out: the post-norm encoder, in which every position sees all.

Its output is the last layer's hidden state of every position; what a head makes of them is the head's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph.ir import Builder, Graph
from openlpu.graph.layers import Layers
from openlpu.graph.parameters import Parameters


@dataclass(frozen=True)
class Names:
    """What the parts of a layer are called: those of a BertModel."""

    layer: str = "encoder.layer.{}"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    out: str = "attention.output.dense"
    first_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    second_norm: str = "output.LayerNorm"


def build(config: EncoderConfig, tensors: Mapping[str, np.ndarray], names: Names) -> Graph:
    """The float graph of a position; its parameters are those of ``tensors``, read when they are asked for.

    Raises what :meth:`Tensors.require` raises when a file's tensor is missing or has the wrong shape or type.
    """
    return _Encoder(config, Parameters(tensors), names).run()


def shapes(config: EncoderConfig, names: Names) -> Mapping[str, tuple[int, ...]]:
    """Hugging Face's name and the shape of every tensor that :func:`build` reads."""
    params = Parameters(None)
    _Encoder(config, params, names).run()
    return params.taken


class _Encoder(Layers):
    """The encoder's parts."""

    def __init__(self, config: EncoderConfig, params: Parameters, names: Names) -> None:
        inputs = ("position", "type") if config.types else ("position",)
        super().__init__(Builder("float", config, params, inputs), params)
        self.config, self.names = config, names

    def run(self) -> Graph:
        x = self.embeddings()
        for i in range(self.config.layers):
            x = self.mlp(i, self.attention(i, x))
        return self.graph.finish(x)

    def embeddings(self) -> str:
        """A norm of the sum of a row for the token, one for its type and one for its position."""
        c, tables = self.config, [("token", "word", self.config.vocab), ("type", "token_type", self.config.types),
                                  ("position", "position", self.config.positions)]
        x = ""
        for kind, word, rows in tables:
            if rows:
                where = "embed" if kind == "token" else f"embed.{kind}"
                params = {"weight": self.params.take(f"embeddings.{word}_embeddings.weight", rows, c.hidden)}
                first: dict[str, Any] = {"first": c.first_position} if kind == "position" else {}
                y = self.graph.add("embed", where, (kind,), c.hidden, params=params, **first)
                x = self.graph.add("add", where, (x, y), c.hidden) if x else y
        return self.norm("embed", "embeddings.LayerNorm", x, "embed.out")

    def attention(self, i: int, x: str) -> str:
        """Projections, attention of every position to all, and the norm of what it adds.

        A key's bias moves all scores of a query alike, which the softmax does not see: it is left out.
        """
        c, at, source, names = self.config, f"layers.{i}.attn", self.names.layer.format(i), self.names
        q = self.linear(f"{at}.q", f"{source}.{names.query}", x, c.hidden, bias=True)
        k = self.linear(f"{at}.k", f"{source}.{names.key}", x, c.hidden)
        v = self.linear(f"{at}.v", f"{source}.{names.value}", x, c.hidden, bias=True)
        a = self.graph.add("attention", at, (q, k, v), c.hidden, layer=i, heads=c.heads, kv_heads=c.kv_heads,
                           head_dim=c.head_dim, causal=False)
        o = self.linear(f"{at}.o", f"{source}.{names.out}", a, c.hidden, bias=True)
        return self.norm(at, f"{source}.{names.first_norm}", self.graph.add("add", at, (x, o), c.hidden))

    def mlp(self, i: int, x: str) -> str:
        """Two matrices with a GELU between, and the norm of what they add; the layer's output, ``layers.<i>.out``."""
        c, at, source, names = self.config, f"layers.{i}.mlp", self.names.layer.format(i), self.names
        up = self.linear(f"{at}.up", f"{source}.{names.up}", x, c.intermediate, bias=True)
        h = self.graph.add("gelu", at, (up,), c.intermediate, form=c.activation)
        down = self.linear(f"{at}.down", f"{source}.{names.down}", h, c.hidden, bias=True)
        added = self.graph.add("add", at, (x, down), c.hidden)
        return self.norm(at, f"{source}.{names.second_norm}", added, f"layers.{i}.out")

    def norm(self, where: str, source: str, x: str, name: str = "") -> str:
        words = {word: self.params.take(f"{source}.{key}", self.config.hidden)
                 for word, key in (("gain", "weight"), ("bias", "bias"))}
        return self.graph.add("layernorm", where, (x,), self.config.hidden, name=name, params=words,
                              eps=self.config.norm_eps)
