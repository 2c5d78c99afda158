"""Stages in, logits out: every role of every stage run with the reference's operators, values crossing as nodes say.

A split value is, per role, [T, width] in the order of its part; a whole one [T, size].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from openlpu.arch import truepoint as tp
from openlpu.arch.truepoint.codes import INV_NARROW, INV_WIDE, SCALE_FLOOR, amax, exact_dot, join
from openlpu.arch.truepoint.elementwise import round_even
from openlpu.graph.ir import Node
from openlpu.partition.split import Shards, Stage
from openlpu.target.base import Chunk

Values = dict[str, list[Any]]  # by name, by role


class StageRun:
    """The chips of one stage, one sequence each."""

    def __init__(self, stage: Stage, context: int) -> None:
        self.stage, self.graph, self.roles = stage, stage.graph, range(stage.tensor)
        self.caches: dict[tuple[str, int], tp.Cache] = {}
        self.context = context

    def run(self, chunk: Chunk, arriving: list[Any]) -> list[Any]:
        """What the stage hands over, or its logits, by role; ``arriving`` is what the stage before handed over."""
        env: Values = {"token": [np.array(chunk.tokens, np.int64)] * len(self.roles)}
        for node in self.graph.nodes:
            if node.op == "arrive":
                env[node.output] = arriving
            elif node.op in ("gather", "max", "sum"):
                env[node.output] = getattr(self, f"_{node.op}")(node, *(env[i] for i in node.inputs))
            else:
                operator = getattr(self, f"_{node.op}")
                env[node.output] = [operator(node, r, chunk, *(env[i][r] for i in node.inputs)) for r in self.roles]
        return env[self.graph.output]

    def cut(self, node: Node, word: str, role: int, axis: int = 0) -> Any:
        """A parameter's entries for the channels that a role makes of a node's output; absent ones are zero."""
        key = node.params.get(word)
        if key is None:
            return None
        param, parts = self.graph.params[key], self.stage.parts.get(node.output)
        if parts is None:
            return param
        taken = np.take(param, np.maximum(parts[role], 0), axis)
        live = (parts[role] >= 0).reshape([-1 if a == axis else 1 for a in range(param.ndim)])
        return np.where(live, taken, param.dtype.type(0))

    # -- what crosses chips ------------------------------------------------------------------------------------

    def _gather(self, node: Node, x: list[Any]) -> list[Any]:
        parts, size = self.stage.parts[node.inputs[0]], self.graph.values[node.output].size
        return [self._whole(x, parts, size, r) for r in self.roles]

    def _whole(self, x: list[Any], parts: np.ndarray, size: int, r: int) -> Any:
        coded = isinstance(x[r], tp.Codes)
        rows = [v.codes if coded else v for v in x]
        out = np.full((len(rows[0]), size), -77, rows[0].dtype)
        for port in self.roles:
            peer = r ^ port
            live = parts[peer] >= 0
            assert not rows[peer][:, ~live].any(), "absent channels are zero"
            out[:, parts[peer][live]] = rows[peer][:, live]
        assert set(np.concatenate(list(parts)).tolist()) - {-1} == set(range(size)), "every channel is made"
        return replace(x[r], codes=out) if coded else out

    def _max(self, node: Node, x: list[Any]) -> list[Any]:
        return [np.max(np.stack([x[r ^ port] for port in self.roles]), axis=0) for r in self.roles]

    def _sum(self, node: Node, sums: list[Any], q: list[Any]) -> list[Any]:
        out = []
        for r, parts in enumerate(self.stage.parts[node.output]):
            high, low = np.sum(sums, axis=0)[:, :, np.maximum(parts, 0)] * (parts >= 0)
            total = join(high, low) if q[r].wide else low.astype(np.float32)
            y, bias = (total * q[r].scale) * self.cut(node, "scale", r), self.cut(node, "bias", r)
            out.append(y if bias is None else y + bias)
        return out

    # -- what each chip does -----------------------------------------------------------------------------------

    def _scale(self, node: Node, r: int, chunk: Chunk, x: Any) -> Any:
        wide = self.stage.parts[node.inputs[0]][r] < node.attrs["wide"]  # an absent channel is zero, wide or not
        own = np.maximum(amax(x[:, ~wide]) * INV_NARROW, amax(x[:, wide]) * INV_WIDE)
        return np.maximum(own, SCALE_FLOOR)

    def _pass(self, node: Node, r: int, chunk: Chunk, x: Any) -> Any:
        return x

    def _embed(self, node: Node, r: int, chunk: Chunk, token: Any) -> Any:
        scale = self.graph.params[node.params["scale"]]
        return tp.embed(token, self.cut(node, "codes", r, 1), scale, self.cut(node, "gain", r))

    def _quantize(self, node: Node, r: int, chunk: Chunk, x: Any, scale: Any = None) -> Any:
        wide = node.attrs["wide"]
        return tp.quantize(x, wide) if scale is None else coded(x, scale, wide)

    def _rms(self, node: Node, r: int, chunk: Chunk, q: Any, reference: Any) -> Any:
        return replace(q, scale=q.scale * tp.rms_scale(reference, np.float32(node.attrs["eps"])))

    def _linear(self, node: Node, r: int, chunk: Chunk, q: Any) -> Any:
        if self.graph.values[node.output].kind == "sums":
            return self._sums(node, r, q)
        return tp.linear(q, self.cut(node, "codes", r), self.cut(node, "scale", r), self.cut(node, "bias", r))

    def _sums(self, node: Node, r: int, q: Any) -> Any:
        """Sums [high and low, T, channels] over the columns of a chip's part; a channel made twice counts once."""
        parts, weights = self.stage.parts[node.inputs[0]], self.graph.params[node.params["codes"]]
        own = np.array([c if c not in parts[:r] and c not in parts[r, :i] else -1 for i, c in enumerate(parts[r])])
        columns = (weights[:, np.maximum(own, 0)] * (own >= 0)).astype(np.int8)
        return np.stack([exact_dot(plane, columns) for plane in tp.planes(q.codes)]).astype(np.int64)

    def _headnorm(self, node: Node, r: int, chunk: Chunk, x: Any) -> Any:
        gain = self.graph.params[node.params["gain"]]
        return tp.headnorm(x.reshape(len(x), -1, len(gain)), gain, np.float32(node.attrs["eps"])).reshape(x.shape)

    def _rope(self, node: Node, r: int, chunk: Chunk, x: Any) -> Any:
        cos, sin = (self.graph.params[node.params[word]] for word in ("cos", "sin"))
        span = slice(chunk.start, chunk.start + len(x))
        return tp.rotate(x.reshape(len(x), -1, 2 * cos.shape[1]), cos[span, None], sin[span, None]).reshape(x.shape)

    def _silu_mul(self, node: Node, r: int, chunk: Chunk, gate: Any, up: Any) -> Any:
        return tp.silu(gate) * up

    def _add(self, node: Node, r: int, chunk: Chunk, a: Any, b: Any) -> Any:
        return a + b

    def _mul(self, node: Node, r: int, chunk: Chunk, x: Any) -> Any:
        return x * self.cut(node, "gain", r)

    def _attention(self, node: Node, r: int, chunk: Chunk, q: Any, k: Any, v: Any, scale: Any = None) -> Any:
        a, count, dim = node.attrs, len(q), node.attrs["head_dim"]
        if "centre" in node.params:
            centre, parts = self.graph.params[node.params["centre"]], self.stage.parts.get(node.inputs[1])
            k = k - (centre if parts is None else centre[parts[r]])
        cache = self.caches.setdefault((node.output, r), self._cache(k.shape[1] // dim, dim))
        at, seen = slice(chunk.start, chunk.start + count), slice(0, chunk.start + count)
        for x, codes, scales in ((k, cache.k, cache.k_scale), (v, cache.v, cache.v_scale)):
            new = tp.quantize_cache(x.reshape(count, -1, dim), a["kv_bits"])
            codes[at], scales[at] = new.codes, new.scale[..., 0]
        query = tp.quantize(q, q.shape[1]) if scale is None else coded(q, scale, q.shape[1])
        query = replace(query, codes=query.codes.reshape(count, -1, dim))
        past = tp.Cache(cache.k[seen], cache.k_scale[seen], cache.v[seen], cache.v_scale[seen])
        return tp.attend(query, past, np.float32(a["softmax_scale"]), a.get("window", 0)).reshape(q.shape)

    def _cache(self, heads: int, dim: int) -> tp.Cache:
        codes, scale = np.zeros((self.context, heads, dim), np.int16), np.zeros((self.context, heads), np.float32)
        return tp.Cache(codes, scale, codes.copy(), scale.copy())


def coded(x: Any, scale: Any, wide: int) -> tp.Codes:
    """Codes under the scale of all chips; ``wide`` counts channels of the model, so of the whole."""
    return tp.Codes(round_even(x * tp.reciprocal(scale)).astype(np.int16), scale, wide)


def run_shards(shards: Shards, chunks: Sequence[Chunk], context: int) -> list[np.ndarray]:
    """Logits [T, vocab] of each chunk, every position."""
    runs = [StageRun(stage, context) for stage in shards.stages]
    out = []
    for chunk in chunks:
        values: list[Any] = []
        for run in runs:
            values = run.run(chunk, values)
        out.append(logits(shards.stages[-1], values))
    return out


def logits(stage: Stage, values: list[Any]) -> np.ndarray:
    """The whole of the last stage's output."""
    parts = stage.parts.get(stage.graph.output)
    if parts is None:
        return values[0]
    out = np.zeros((len(values[0]), stage.graph.values[stage.graph.output].size), np.float32)
    for own, value in zip(parts, values, strict=True):
        out[:, own[own >= 0]] = value[:, own >= 0]
    return out
