"""A float graph and tokens in, fp32 logits out: the model in ordinary floating point.

This is the yardstick of accuracy reports, not a target: sums go in whatever order NumPy likes, so its last bits
change between machines.  All tokens of a window go through an operator together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from openlpu.graph.ir import Graph, Node
from openlpu.graph.rotary import attention_factor, frequencies

F32 = NDArray[np.float32]
Observer = Callable[[Node, F32], None]
Params = Mapping[str, np.ndarray]


def evaluate(
    graph: Graph, tokens: Sequence[int], observe: Observer | None = None, types: Sequence[int] = ()
) -> F32:
    """Logits [T, vocab] after each of ``tokens`` [T], which begin at position 0; of an encoder, the hidden states
    [T, hidden] of tokens of these ``types`` (none given: 0).

    ``observe`` sees every operator and its output [T, size], in execution order.
    """
    return _Window(graph, tokens, types).run(observe)


class _Window:
    """One window of consecutive tokens, and the values computed for it so far."""

    def __init__(self, graph: Graph, tokens: Sequence[int], types: Sequence[int]) -> None:
        assert graph.level == "float", "integer graphs run on a target"
        self.graph = graph
        ids = np.asarray(tokens, np.int64)
        self.values: dict[str, np.ndarray] = {"token": ids, "position": np.arange(len(ids)),
                                              "type": np.asarray(types, np.int64) if types else ids * 0}
        if not any(node.op == "rope" for node in graph.nodes):
            return
        steps = np.array([float(f) for f in frequencies(graph.config.rope, graph.config.head_dim)])
        angles = np.outer(np.arange(len(tokens)), steps)[:, None]
        length = attention_factor(graph.config.rope)
        self.cos, self.sin = ((length * f(angles)).astype(np.float32) for f in (np.cos, np.sin))

    def run(self, observe: Observer | None) -> F32:
        for node in self.graph.nodes:
            param = {word: self.graph.params[key] for word, key in node.params.items()}
            inputs = [self.values[name] for name in node.inputs]
            output = getattr(self, f"_{node.op}")(node, param, *inputs)
            self.values[node.output] = output
            if observe:
                observe(node, output)
        return self.values[self.graph.output]

    def _embed(self, node: Node, p: Params, token: np.ndarray) -> np.ndarray:
        return p["weight"][token + node.attrs.get("first", 0)]

    def _rmsnorm(self, node: Node, p: Params, x: np.ndarray) -> np.ndarray:
        square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(square + np.float32(node.attrs["eps"])) * p["gain"]

    def _layernorm(self, node: Node, p: Params, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        square = np.mean(centred * centred, axis=-1, keepdims=True)
        return centred / np.sqrt(square + np.float32(node.attrs["eps"])) * p["gain"] + p["bias"]

    def _gelu(self, node: Node, p: Params, x: np.ndarray) -> np.ndarray:
        if node.attrs["form"] == "tanh":
            return x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3))) / 2
        return x * (1 + np.vectorize(math.erf, otypes=[np.float32])(x / np.float32(math.sqrt(2)))) / 2

    def _headnorm(self, node: Node, p: Params, x: np.ndarray) -> np.ndarray:
        return self._rmsnorm(node, p, _heads(x, node.attrs["heads"])).reshape(x.shape)

    def _linear(self, node: Node, p: Params, x: np.ndarray) -> np.ndarray:
        y = x @ p["weight"].T
        return y + p["bias"] if "bias" in p else y

    def _rope(self, node: Node, p: Params, x: np.ndarray) -> np.ndarray:
        a, b = np.split(_heads(x, node.attrs["heads"]), 2, axis=-1)
        turned = (a * self.cos - b * self.sin, b * self.cos + a * self.sin)
        return np.concatenate(turned, axis=-1).reshape(x.shape)

    def _attention(self, node: Node, p: Params, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Attention, causal unless an encoder's; a key head serves ``heads / kv_heads`` consecutive query heads."""
        heads, groups = node.attrs["heads"], node.attrs["kv_heads"]
        queries = _heads(q, heads).reshape(len(q), groups, heads // groups, -1).transpose(1, 2, 0, 3)
        keys, values = (_heads(x, groups).transpose(1, 0, 2)[:, None] for x in (k, v))
        scores = queries @ keys.swapaxes(-1, -2) * np.float32(node.attrs["head_dim"] ** -0.5)
        unseen = np.triu(np.ones((len(q), len(q)), bool), 1) & node.attrs.get("causal", True)
        if window := node.attrs.get("window", 0):
            unseen |= np.tril(np.ones((len(q), len(q)), bool), -window)
        scores[..., unseen] = -np.inf
        sinks = p["sinks"].reshape(groups, -1, 1, 1) if "sinks" in p else np.float32(-np.inf)
        top = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
        weights = np.exp(scores - top)
        weights /= weights.sum(axis=-1, keepdims=True) + np.exp(sinks - top)
        return (weights @ values).transpose(2, 0, 1, 3).reshape(q.shape)

    def _silu_mul(self, node: Node, p: Params, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return gate / (1 + np.exp(np.minimum(-gate, 88))) * up  # beyond 88 exp overflows and silu is 0

    def _swiglu(self, node: Node, p: Params, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        alpha, limit = (np.float32(node.attrs[word]) for word in ("alpha", "limit"))
        g, u = np.minimum(gate, limit), np.clip(up, -limit, limit)
        return g / (1 + np.exp(np.minimum(-alpha * g, 88))) * (u + 1)

    def _route(self, node: Node, p: Params, logits: np.ndarray) -> np.ndarray:
        """Softmax over each token's largest logits; of equal ones the first are taken."""
        order = np.argsort(-logits, axis=-1, kind="stable")[:, : node.attrs["chosen"]]
        best = np.take_along_axis(logits, order, axis=-1)
        sizes = np.exp(best - best[:, :1])
        weights = np.zeros_like(logits)
        np.put_along_axis(weights, order, sizes / sizes.sum(axis=-1, keepdims=True), axis=-1)
        return weights

    def _select(self, node: Node, p: Params, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return x * (weights[:, node.attrs["expert"], None] != 0)

    def _mix(self, node: Node, p: Params, weights: np.ndarray, *outputs: np.ndarray) -> np.ndarray:
        return np.einsum("te,etn->tn", weights, np.stack(outputs))

    def _add(self, node: Node, p: Params, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(len(x), heads, -1)
