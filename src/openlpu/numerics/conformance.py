"""Nothing in; tiny integer graphs out that together use every integer operator at its edges.

Any target that loads a graph can run them: embed, the operator under test, a head.  What they must give is what
the reference gives; ``tests/test_conformance.py`` runs them on every target and pins the reference's hashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from openlpu.arch.truepoint import blocks as tp
from openlpu.arch.truepoint import draw, rope
from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.graph.ir import Builder, Graph

EPS = 1e-5
VOCAB = 67


@dataclass(frozen=True)
class GraphCase:
    """A graph and the tokens to run from position 0; logits after every token are compared."""

    name: str
    graph: Graph
    tokens: tuple[int, ...]


def graph_cases() -> Iterator[GraphCase]:
    """Every integer operator, with odd sizes, one, some and all channels of two planes, and extreme rows."""
    for size, wide in ((48, 0), (65, 3), (33, 33), (172, 6)):
        yield _embed_quantize(size, wide)
    yield _rms(64, 2)
    yield _tied_head(33)
    yield _bias_and_add(40)
    yield _gated(56)
    yield _headnorm(heads=3, dim=8)
    yield _blocks(40, tied=False)
    yield _blocks(64, tied=True)
    for experts, chosen in ((6, 2), (3, 3)):
        yield _mixture(40, experts, chosen)
    for shape in ((4, 2, 8, 8, 20), (2, 1, 16, 16, 20), (4, 2, 8, 8, 300), (2, 1, 8, 16, 270)):
        yield _attention(*shape)
    for shape in ((4, 2, 8, 4, 20), (2, 1, 10, 4, 270)):
        yield _attention(*shape)
    for shape, window in (((4, 2, 8, 8, 20), 6), ((2, 1, 10, 4, 300), 270), ((2, 1, 16, 16, 530), 20)):
        yield _attention(*shape, window)


def spared_case() -> GraphCase:
    """A mixture that must not be refused: the first expert overflows whatever it is given, and no token chooses it."""
    case = _mixture(24, 3, 2)
    params = {**case.graph.params, "moe.0.up.scale": np.full(31, 3e38, np.float32)}
    params["moe.router.bias"] = np.array([-1e6, 0, 0], np.float32)
    return replace(case, name="spared_expert", graph=replace(case.graph, params=params))


def refused_cases() -> tuple[GraphCase, ...]:
    """Graphs whose step must stop with a NumericsError: a coded magnitude above 2**50, an infinite logit of a token
    or of an expert."""
    loud = _Draft("refused_magnitude", 24)
    loud.b.params["embed.scale"][9] = 2.0**45  # some code of that row is over 32
    infinite = _Draft("refused_logit", 24)
    lost = _mixture(24, 3, 2)
    lost.graph.params["moe.router.scale"][1] = 3e38  # an expert's logit is infinite
    cases = (loud.finish(loud.x), infinite.finish(infinite.x), replace(lost, name="refused_route"))
    cases[1].graph.params["head.scale"][0] = 3e38
    return tuple(replace(case, tokens=(9,)) for case in cases)


class _Draft:
    """A graph that begins with an embedding whose rows hold the edge values."""

    def __init__(self, name: str, hidden: int, *, layers: int = 0, heads: int = 1, groups: int = 1, dim: int = 2,
                 context: int = 64, gain: bool = False, narrow: bool = False) -> None:
        self.name, self.hidden = name, hidden
        config = ModelConfig("llama", hidden, layers, heads, groups, dim, hidden, VOCAB, context, EPS, Rope(10000.0),
                             False)
        self.b = Builder("int", config)
        codes = draw.integers(f"{name}.embed", (VOCAB, hidden), -127, 127)
        codes[1] = 0
        codes[2, ::7] //= 40  # most channels small beside a few large ones
        codes[3], codes[4] = 127, -127
        scale = np.abs(draw.floats(f"{name}.embed.scale", VOCAB, -8, -4))
        scale[5], scale[6] = 2.0**-70, 2.0**10
        self.table = self.matrix("embed", codes, scale, narrow)
        params = dict(self.table)
        if gain:
            params["gain"] = self.param("embed.gain", draw.normal(f"{name}.embed.gain", hidden))
        self.x = self.b.add("embed", "embed", ("token",), hidden, name="embed.out", params=params)

    def param(self, name: str, array: np.ndarray) -> str:
        return self.b.param(name, array)

    def matrix(self, where: str, codes: np.ndarray, scale: np.ndarray, narrow: bool) -> dict[str, str]:
        """The parameters of a matrix; a ``narrow`` one is in 4-bit blocks, its codes the nearest of theirs."""
        coded = _narrow(f"{self.name}.{where}", codes) if narrow else {"codes": codes.astype(np.int8)}
        return {word: self.param(f"{where}.{word}", array) for word, array in {**coded, "scale": scale}.items()}

    def quantize(self, where: str, x: str, wide: int) -> str:
        return self.b.add("quantize", where, (x,), self.b.values[x].size, kind="codes", wide=wide)

    def rms(self, where: str, q: str, reference: str) -> str:
        return self.b.add("rms", where, (q, reference), self.b.values[q].size, kind="codes", eps=EPS)

    def linear(self, where: str, q: str, size: int, bias: bool = False, name: str = "", narrow: bool = False) -> str:
        """Random codes and row scales; row 0 has the largest sum that the codes allow."""
        k = self.b.values[q].size
        codes = draw.integers(f"{self.name}.{where}", (size, k), -127, 127)
        codes[0] = 127
        scale = np.abs(draw.floats(f"{self.name}.{where}.scale", size, -12, -9))
        params = self.matrix(where, codes, scale, narrow)
        if bias:
            params["bias"] = self.param(f"{where}.bias", draw.normal(f"{self.name}.{where}.bias", size))
        return self.b.add("linear", where, (q,), size, name=name, params=params)

    def finish(self, x: str, count: int = 12) -> GraphCase:
        """Codes of two planes into the head, so that most of a value's bits reach the logits."""
        if self.b.values[x].kind == "f32":
            x = self.quantize("head", x, self.b.values[x].size)
        logits = self.linear("head", x, VOCAB, name="logits")
        tokens = draw.integers(f"{self.name}.tokens", count, 0, VOCAB - 1)
        tokens[1:7] = (1, 2, 3, 4, 5, 6)
        return GraphCase(self.name, self.b.finish(logits), tuple(tokens.tolist()))


def _embed_quantize(size: int, wide: int) -> GraphCase:
    d = _Draft(f"quantize{size}_wide{wide}", size, gain=wide == 3)
    return d.finish(d.quantize("norm", d.x, wide))


def _rms(size: int, wide: int) -> GraphCase:
    d = _Draft(f"rms{size}_wide{wide}", size)
    q = d.quantize("norm", d.x, wide)
    return d.finish(d.rms("norm", q, q))


def _tied_head(size: int) -> GraphCase:
    """The norm before a tied head: codes of x * gain carry the rms of x; the head reads the embedding's codes."""
    d = _Draft(f"tied{size}", size)
    gain = d.param("norm.gain", draw.normal("tied.gain", size))
    scaled = d.b.add("mul", "norm", (d.x,), size, params={"gain": gain})
    q = d.rms("norm", d.quantize("norm.scaled", scaled, size), d.quantize("norm", d.x, size))
    d.b.add("linear", "head", (q,), VOCAB, name="logits", params=d.table)
    return GraphCase(d.name, d.b.finish("logits"), tuple(range(12)))


def _bias_and_add(size: int) -> GraphCase:
    d = _Draft(f"bias{size}_add", size)
    y = d.linear("down", d.quantize("down", d.x, 2), size, bias=True)
    return d.finish(d.b.add("add", "add", (d.x, y), size))


def _gated(size: int) -> GraphCase:
    d = _Draft(f"gated{size}", size)
    q = d.quantize("mlp", d.x, 0)
    gate, up = d.linear("gate", q, 2 * size + 1, bias=True), d.linear("up", q, 2 * size + 1)
    return d.finish(d.b.add("silu_mul", "mlp", (gate, up), 2 * size + 1))


def _blocks(size: int, tied: bool) -> GraphCase:
    """4-bit matrices between others: every step, every zero, and codes at both ends of their blocks."""
    d = _Draft(f"blocks{size}{'_tied' * tied}", size, narrow=tied)
    q = d.quantize("mlp", d.x, 3)
    gate, up = d.linear("gate", q, 37, narrow=True), d.linear("up", q, 37)
    y = d.b.add("silu_mul", "mlp", (gate, up), 37)
    y = d.linear("down", d.quantize("down", y, 2), size, bias=True, narrow=True)
    x = d.b.add("add", "add", (d.x, y), size)
    if not tied:
        return d.finish(x)
    q = d.quantize("head", x, size)
    d.b.add("linear", "head", (q,), VOCAB, name="logits", params=d.table)
    return GraphCase(d.name, d.b.finish("logits"), tuple(range(12)))


def _mixture(size: int, experts: int, chosen: int) -> GraphCase:
    """Experts of which each token has a few, or all three; two have the same router weights: ties everywhere."""
    d = _Draft(f"experts{experts}_of_which{chosen}", size)
    q = d.quantize("moe.norm", d.x, 3)
    q = d.rms("moe.norm", q, q)
    logits = d.linear("moe.router", q, experts, bias=True)
    for word in ("codes", "scale", "bias"):
        array = d.b.params[f"moe.router.{word}"]
        array[-1] = array[0]
    if experts == chosen:  # a token of zeros has the biases as its logits: the middle weight is subnormal
        d.b.params["moe.router.bias"][:] = 0, -87, 0
    weights = d.b.add("route", "moe", (logits,), experts, chosen=chosen)
    outputs = []
    for e in range(experts):
        own = d.b.add("select", f"moe.{e}", (q, weights), size, kind="codes", expert=e)
        gate, up = (d.linear(f"moe.{e}.{word}", own, 31) for word in ("gate", "up"))
        y = d.b.add("silu_mul", f"moe.{e}", (gate, up), 31)
        outputs.append(d.linear(f"moe.{e}.down", d.quantize(f"moe.{e}.down", y, 2), size, bias=True))
    y = d.b.add("mix", "moe", (weights, *outputs), size)
    return d.finish(d.b.add("add", "moe", (d.x, y), size), 24)


def _narrow(name: str, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Codes near ``codes`` in 4-bit blocks drawn for them."""
    rows, k = codes.shape
    zero = draw.integers(f"{name}.zero", (rows, tp.count(k)), 0, 15)
    step = np.minimum(draw.integers(f"{name}.step", zero.shape, 1, 15), 127 // np.maximum(zero, 15 - zero))
    wide = [np.repeat(each, tp.BLOCK, axis=1)[:, :k] for each in (step, zero)]
    q = np.clip(np.rint(codes / wide[0]) + wide[1], 0, 15)
    blocks = tp.pair(step, zero)
    return {"codes": tp.expand(q.astype(np.uint8), blocks), "blocks": blocks}


def _headnorm(heads: int, dim: int) -> GraphCase:
    size = heads * dim
    d = _Draft(f"headnorm{heads}x{dim}", size, heads=heads, groups=heads, dim=dim)
    gain = d.param("q.gain", draw.normal("headnorm.gain", dim))
    return d.finish(d.b.add("headnorm", "q", (d.x,), size, params={"gain": gain}, heads=heads, eps=EPS))


def _attention(heads: int, groups: int, dim: int, bits: int, count: int, window: int = 0) -> GraphCase:
    """Projections, rotary embedding and attention over up to three blocks of positions, or a window of them."""
    name = f"attention_h{heads}_g{groups}_d{dim}_kv{bits}_t{count}" + (f"_w{window}" if window else "")
    d = _Draft(name, 32, layers=1, heads=heads, groups=groups, dim=dim, context=count)
    cos, sin = rope.tables(rope.frequencies(10000.0, dim), count)
    tables = {"cos": d.param("rope.cos", cos), "sin": d.param("rope.sin", sin)}
    at = "layers.0.attn"
    codes = d.quantize(f"{at}.norm", d.x, 1)
    q = d.rms(f"{at}.norm", codes, codes)
    sizes = {"q": (heads, heads * dim), "k": (groups, groups * dim), "v": (groups, groups * dim)}
    read = []
    for word, (count_of, size) in sizes.items():
        y = d.linear(f"{at}.{word}", q, size, bias=word == "k")
        if word != "v":
            y = d.b.add("rope", f"{at}.{word}", (y,), size, params=tables, heads=count_of)
        read.append(y)
    scale = float(np.float32(1) / np.sqrt(np.float32(dim)))
    hidden: dict[str, Any] = {"window": window} if window else {}
    centre = {"centre": d.param(f"{at}.centre", draw.normal(f"{name}.centre", groups * dim))} if bits == 4 else {}
    y = d.b.add(
        "attention", at, tuple(read), heads * dim, params=centre,
        layer=0, heads=heads, kv_heads=groups, head_dim=dim, kv_bits=bits, softmax_scale=scale,
        **hidden,
    )
    return d.finish(y, count)
