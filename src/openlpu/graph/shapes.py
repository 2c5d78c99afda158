"""A shape's name in, an integer graph with random codes out: what a benchmark runs when there is no checkpoint.

Every matrix is a window of one random stream of bytes, so a model of any depth is drawn in the time of its
largest matrix.  Scales are those of a trained model's order, so activations stay finite.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import BadRequest
from openlpu.arch.truepoint import rope
from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.graph.ir import Builder, Graph

SHAPES = {
    "smollm2-135m": ModelConfig(
        "llama", hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152,
        context=8192, norm_eps=1e-5, rope=Rope(100000.0), tied=True,
    ),
    "qwen2.5-0.5b": ModelConfig(
        "qwen2", hidden=896, layers=24, heads=14, kv_heads=2, head_dim=64, intermediate=4864, vocab=151936,
        context=32768, norm_eps=1e-6, rope=Rope(1000000.0), tied=True, attention_bias=True,
    ),
    "llama-3.2-1b": ModelConfig(
        "llama", hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, intermediate=8192, vocab=128256,
        context=131072, norm_eps=1e-5, rope=Rope(500000.0), tied=True,
    ),
}
STEP = 1009  # bytes between the windows of consecutive matrices; odd, so their rows never line up
CODE_DEVIATION = 73.6  # standard deviation of a uniform code within +-127


def shape(name: str, context: int = 4096) -> ModelConfig:
    """A shape by its name, with at most ``context`` positions; raises :class:`BadRequest` for an unknown one."""
    if name not in SHAPES:
        raise BadRequest(f"unknown shape '{name}'", where="shape", fix=f"one of: {', '.join(SHAPES)}")
    return replace(SHAPES[name], context=min(context, SHAPES[name].context))


def draw(config: ModelConfig, *, seed: int = 0, kv_bits: int = 8) -> Graph:
    """An integer graph of this shape; the same seed draws the same codes."""
    return _Drawing(config, seed, kv_bits).run()


class _Drawing:
    """One graph in the making: methods append operators and return the name of the value they write."""

    def __init__(self, config: ModelConfig, seed: int, kv_bits: int) -> None:
        self.config, self.kv_bits = config, kv_bits
        self.rng = np.random.Generator(np.random.Philox(seed))
        self.graph = Builder("int", config)
        largest = config.hidden * max(config.vocab, config.intermediate, config.heads * config.head_dim)
        stream = np.frombuffer(self.rng.bytes(largest + STEP * (7 * config.layers + 2)), np.int8)
        self.stream = np.maximum(stream, np.int8(-127))
        self.drawn = 0
        freqs = rope.frequencies(config.rope.theta, config.head_dim)
        tables = rope.tables(freqs, config.context)
        self.rope = {word: self.graph.param(f"rope.{word}", t) for word, t in zip(("cos", "sin"), tables, strict=True)}

    def matrix(self, where: str, rows: int, columns: int) -> dict[str, str]:
        """Random codes [rows, columns] and scales [rows] that keep a vector's length about the same."""
        start, self.drawn = STEP * self.drawn, self.drawn + 1
        codes: NDArray[np.int8] = self.stream[start : start + rows * columns].reshape(rows, columns)
        scale = self.rng.uniform(0.7, 1.3, rows) / (CODE_DEVIATION * np.sqrt(columns))
        return {
            "codes": self.graph.param(f"{where}.codes", codes),
            "scale": self.graph.param(f"{where}.scale", scale.astype(np.float32)),
        }

    def run(self) -> Graph:
        c, table = self.config, self.matrix("embed", self.config.vocab, self.config.hidden)
        x = self.graph.add("embed", "embed", ("token",), c.hidden, name="embed.out", params=table)
        for i in range(c.layers):
            x = self.mlp(f"layers.{i}", self.attention(i, x))
        head = table if c.tied else self.matrix("head", c.vocab, c.hidden)
        h = self.norm("norm", x, c.hidden)
        return self.graph.finish(self.graph.add("linear", "head", (h,), c.vocab, name="logits", params=head))

    def codes(self, where: str, x: str, wide: int = 0) -> str:
        size = self.graph.values[x].size
        return self.graph.add("quantize", where, (x,), size, kind="codes", wide=wide)

    def norm(self, where: str, x: str, wide: int = 0) -> str:
        q, size = self.codes(where, x, wide), self.graph.values[x].size
        return self.graph.add("rms", where, (q, q), size, kind="codes", eps=self.config.norm_eps)

    def linear(self, where: str, x: str, size: int, *, bias: bool = False) -> str:
        params = self.matrix(where, size, self.graph.values[x].size)
        if bias:
            values = self.rng.uniform(-0.1, 0.1, size).astype(np.float32)
            params["bias"] = self.graph.param(f"{where}.bias", values)
        return self.graph.add("linear", where, (x,), size, params=params)

    def attention(self, i: int, x: str) -> str:
        c, at = self.config, f"layers.{i}.attn"
        h = self.norm(f"{at}.norm", x)
        sizes = {"q": c.heads * c.head_dim, "k": c.kv_heads * c.head_dim, "v": c.kv_heads * c.head_dim}
        heads = {w: self.linear(f"{at}.{w}", h, size, bias=c.attention_bias) for w, size in sizes.items()}
        for w, count in (("q", c.heads), ("k", c.kv_heads)):
            heads[w] = self.graph.add("rope", f"{at}.{w}", (heads[w],), sizes[w], params=self.rope, heads=count)
        a = self.graph.add(
            "attention", at, tuple(heads.values()), sizes["q"], layer=i, heads=c.heads, kv_heads=c.kv_heads,
            head_dim=c.head_dim, kv_bits=self.kv_bits, softmax_scale=float(np.float32(c.head_dim**-0.5)),
        )
        o = self.linear(f"{at}.o", self.codes(f"{at}.o", a), c.hidden)
        return self.graph.add("add", at, (x, o), c.hidden)

    def mlp(self, layer: str, x: str) -> str:
        c, at = self.config, f"{layer}.mlp"
        h = self.norm(f"{at}.norm", x)
        gate, up = (self.linear(f"{at}.{w}", h, c.intermediate) for w in ("gate", "up"))
        m = self.graph.add("silu_mul", at, (gate, up), c.intermediate)
        down = self.linear(f"{at}.down", self.codes(f"{at}.down", m), c.hidden)
        return self.graph.add("add", at, (x, down), c.hidden, name=f"{layer}.out")
