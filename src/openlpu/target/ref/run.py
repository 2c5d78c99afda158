"""Integer graph in, logits out: each operator is one call into :mod:`openlpu.arch.truepoint`.

All tokens of a chunk go through an operator together, as rows.  This file is the meaning of a model; every other
target is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from openlpu._base.errors import NumericsError
from openlpu.arch import truepoint as tp
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph.ir import Graph, Node
from openlpu.target.base import F32, Chunk

Row = F32 | tp.Codes | np.ndarray


class RefExecutable:
    """Runs an integer graph chunk by chunk; KV codes live in int16 arrays [slots, T, KVH, D] per layer."""

    def __init__(self, graph: Graph, slots: int, context: int) -> None:
        assert graph.level == "int", "the reference target runs integer graphs"
        self.graph, self.slots, self.context = graph, slots, context
        self.causal = not isinstance(graph.config, EncoderConfig)
        c = graph.config
        shape = (slots, c.layers, context, c.kv_heads)
        self.k, self.v = (np.zeros((*shape, c.head_dim), np.int16) for _ in range(2))
        self.k_scale, self.v_scale = (np.zeros(shape, np.float32) for _ in range(2))

    def run(
        self, chunks: Sequence[Chunk], observe: Callable[[Node, Row], None] | None = None
    ) -> list[F32]:
        """Logits per chunk; ``observe`` sees every operator's output, for accuracy reports."""
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused where it arrives
            return [self._chunk(chunk, observe) for chunk in chunks]

    def _chunk(self, chunk: Chunk, observe: Callable[[Node, Row], None] | None) -> F32:
        count = len(chunk.tokens)
        assert not chunk.start or self.causal, "an encoder takes a sequence whole"
        env: dict[str, Row] = {"token": np.array(chunk.tokens, np.int64), "position": chunk.start + np.arange(count),
                               "type": np.array(chunk.types or (0,) * count, np.int64)}
        for node in self.graph.nodes:
            env[node.output] = self._node(node, [env[name] for name in node.inputs], chunk)
            if observe:
                observe(node, env[node.output])
        logits = env[self.graph.output]
        assert isinstance(logits, np.ndarray)
        if not np.isfinite(logits).all():
            raise NumericsError("a logit is not finite", where=self.graph.output)
        return logits if chunk.every else logits[-1:]

    def _node(self, node: Node, inputs: list, chunk: Chunk) -> Row:
        param = {word: self.graph.params[key] for word, key in node.params.items()}
        return getattr(self, f"_{node.op}")(node, param, chunk, *inputs)

    def _embed(self, node: Node, p: dict, chunk: Chunk, token: np.ndarray) -> F32:
        return tp.embed(token, p["codes"], p["scale"], p.get("gain"))

    def _quantize(self, node: Node, p: dict, chunk: Chunk, x: F32) -> tp.Codes:
        return tp.quantize(x, node.attrs["wide"])

    def _rms(self, node: Node, p: dict, chunk: Chunk, q: tp.Codes, reference: tp.Codes) -> tp.Codes:
        return replace(q, scale=q.scale * tp.rms_scale(reference, np.float32(node.attrs["eps"])))

    def _layernorm(self, node: Node, p: dict, chunk: Chunk, x: F32) -> F32:
        return tp.layernorm(x, p["gain"], p["bias"], np.float32(node.attrs["eps"]))

    def _gelu(self, node: Node, p: dict, chunk: Chunk, x: F32) -> F32:
        return tp.gelu(x, node.attrs["form"])

    def _headnorm(self, node: Node, p: dict, chunk: Chunk, x: F32) -> F32:
        heads = x.reshape(len(x), node.attrs["heads"], -1)
        return tp.headnorm(heads, p["gain"], np.float32(node.attrs["eps"])).reshape(x.shape)

    def _linear(self, node: Node, p: dict, chunk: Chunk, q: tp.Codes) -> F32:
        return tp.linear(q, p["codes"], p["scale"], p.get("bias"))

    def _rope(self, node: Node, p: dict, chunk: Chunk, x: F32) -> F32:
        heads = x.reshape(len(x), node.attrs["heads"], -1)
        span = slice(chunk.start, chunk.start + len(x))
        return tp.rotate(heads, p["cos"][span, None], p["sin"][span, None]).reshape(x.shape)

    def _attention(self, node: Node, p: dict, chunk: Chunk, q: F32, k: F32, v: F32) -> F32:
        a = node.attrs
        at = (chunk.slot, a["layer"])
        span = slice(chunk.start, chunk.start + len(q))
        k = k - p["centre"] if "centre" in p else k
        for x, codes, scale in ((k, self.k, self.k_scale), (v, self.v, self.v_scale)):
            coded = tp.quantize_cache(x.reshape(len(x), a["kv_heads"], -1), a["kv_bits"])
            codes[at][span], scale[at][span] = coded.codes, coded.scale[..., 0]
        seen = slice(0, chunk.start + len(q))
        cache = tp.Cache(self.k[at][seen], self.k_scale[at][seen], self.v[at][seen], self.v_scale[at][seen])
        query = tp.quantize(q, q.shape[1])
        query = replace(query, codes=query.codes.reshape(len(q), a["heads"], -1))
        out = tp.attend(query, cache, np.float32(a["softmax_scale"]), a.get("window", 0), p.get("sinks"),
                        causal=a.get("causal", True))
        return out.reshape(q.shape)

    def _silu_mul(self, node: Node, p: dict, chunk: Chunk, gate: F32, up: F32) -> F32:
        return tp.silu(gate) * up

    def _swiglu(self, node: Node, p: dict, chunk: Chunk, gate: F32, up: F32) -> F32:
        return tp.swiglu(gate, up, *(np.float32(node.attrs[word]) for word in ("alpha", "limit")))

    def _add(self, node: Node, p: dict, chunk: Chunk, a: F32, b: F32) -> F32:
        return a + b

    def _route(self, node: Node, p: dict, chunk: Chunk, logits: F32) -> F32:
        return tp.route(logits, node.attrs["chosen"])

    def _select(self, node: Node, p: dict, chunk: Chunk, q: tp.Codes, weights: F32) -> tp.Codes:
        return tp.select(q, weights[:, node.attrs["expert"], None])

    def _mix(self, node: Node, p: dict, chunk: Chunk, weights: F32, *outputs: F32) -> F32:
        return tp.mix(weights, outputs)

    def _mul(self, node: Node, p: dict, chunk: Chunk, x: F32) -> F32:
        return x * p["gain"]

    def close(self) -> None:
        """Nothing to release."""


def load(graph: Graph, *, slots: int = 1, context: int = 0) -> RefExecutable:
    """An executable with ``slots`` caches of ``context`` positions (0: the model's own context)."""
    return RefExecutable(graph, slots, context or graph.config.context)


def trace(graph: Graph, tokens: Sequence[int], observe: Callable[[Node, Row], None]) -> F32:
    """Logits after each of ``tokens`` from position 0; ``observe`` sees every operator and its output."""
    return load(graph, context=len(tokens)).run([Chunk(0, 0, tuple(tokens), every=True)], observe)[0]
