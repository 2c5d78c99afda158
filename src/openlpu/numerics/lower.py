"""Float graph in, integer graph out: every linear gets integer weights, every linear's input integer codes.

An rms norm's gain is folded into the weights that read it, so the codes of a norm are the codes of its input and the
norm itself is one factor in their scale.  Only a tied head cannot fold (its weights are the embedding's): there
the gain stays a multiplication.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from math import ceil

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError
from openlpu.arch.truepoint import rope as rope_tables
from openlpu.graph.ir import Builder, Graph, Node, layer_of, routers
from openlpu.graph.rotary import attention_factor, frequencies
from openlpu.numerics import blocks, prune
from openlpu.numerics.scheme import Scheme
from openlpu.numerics.workers import in_order

F32 = NDArray[np.float32]


ROWS = 1024  # rows at a time: a vocabulary's table never stands in memory as fp32

Coder = Callable[[Graph, str, str | None], Mapping[str, np.ndarray]]
"""A weight's key, and the key of the norm gain that folds into it: what its linear reads.

``codes`` and ``scale``; for a 4-bit matrix ``blocks`` too (:mod:`openlpu.arch.truepoint.blocks`).
"""


def lower(graph: Graph, scheme: Scheme, code: Coder | None = None) -> Graph:
    """The integer graph of a float graph under a scheme; ``code`` makes the weights' codes (None: by rounding)."""
    return _Lowering(graph, scheme, code or _plain(graph, scheme)).run()


def _plain(graph: Graph, scheme: Scheme) -> Coder:
    """Every weight to its nearest code; of those that are pruned the smallest are dropped."""
    keys = reduced(graph, scheme)

    def code(graph: Graph, weight: str, gain: str | None) -> Mapping[str, np.ndarray]:
        if weight not in keys:
            return rounded(graph, weight, gain)
        if not scheme.prune:
            return rounded_in_blocks(graph, weight, gain)
        w = folded(graph, weight, gain)
        return prune.smallest(w, **scheme.sparse(w.shape[1]))

    return code


def reduced(graph: Graph, scheme: Scheme) -> frozenset[str]:
    """The weights of a float graph that a scheme prunes, those of the layers, or puts in 4-bit blocks, all.

    Those of routers never: they are few, and choose between experts.
    """
    if scheme.weight_bits >= 8 and not scheme.prune:
        return frozenset()
    kept = {node.params["weight"] for node in routers(graph)}
    nodes = (n for n in graph.nodes if "weight" in n.params)
    if scheme.prune:
        nodes = (n for n in nodes if n.op == "linear" and layer_of(n) >= 0)
    return frozenset(n.params["weight"] for n in nodes) - kept


def rounded(graph: Graph, weight: str, gain: str | None) -> Mapping[str, np.ndarray]:
    """The 8-bit codes nearest to a weight."""
    codes, scale = quantize_rows(graph.params[weight], graph.params[gain] if gain else None)
    return {"codes": codes, "scale": scale}


def rounded_in_blocks(graph: Graph, weight: str, gain: str | None) -> Mapping[str, np.ndarray]:
    """The 4-bit codes nearest to a weight."""
    return blocks.fit(folded(graph, weight, gain))


def folded(graph: Graph, weight: str, gain: str | None) -> F32:
    """A weight in fp32 with a norm's gain in it; refuses one that is not finite."""
    w = graph.params[weight].astype(np.float32)
    if gain:
        w *= graph.params[gain].astype(np.float32)
    if not np.isfinite(w).all():
        raise NumericsError("a weight is not finite", where=weight, fix="check the checkpoint's tensors for NaN")
    return w


def quantize_rows(weight: np.ndarray, gain: np.ndarray | None = None) -> tuple[NDArray[np.int8], F32]:
    """int8 codes [N, K] and fp32 scales [N] of weight * gain: amax/127 per row, nearest even.

    NumPy's fp32 ``* /`` and ``rint`` are correctly rounded, so the codes are the same on every machine.
    Raises :class:`~openlpu._base.errors.NumericsError` for a weight that is not finite.
    """
    codes, scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)

    def some(start: int) -> None:
        rows = slice(start, start + ROWS)
        w = weight[rows].astype(np.float32)
        if gain is not None:
            w *= gain.astype(np.float32)
        top = np.abs(w).max(axis=1)
        if not np.isfinite(top).all():
            raise NumericsError("a weight is not finite", fix="check the checkpoint's tensors for NaN")
        scale[rows] = np.maximum(top / np.float32(127), np.float32(2.0**-100))
        codes[rows] = np.rint(w / scale[rows, None])

    for _ in in_order(some, range(0, len(weight), ROWS)):
        pass
    return codes, scale


class _Lowering:
    """State of one lowering: the float graph read, the integer graph being built."""

    def __init__(self, graph: Graph, scheme: Scheme, code: Coder) -> None:
        self.graph, self.scheme, self.code = graph, scheme, code
        self.makers, self.users, self.reduced = graph.producers(), graph.consumers(), reduced(graph, scheme)
        given = tuple(name for name, value in graph.values.items() if value.kind == "token")
        self.out = Builder("int", graph.config, given=given[1:])
        self.names: dict[str, str] = dict(zip(given, given, strict=True))  # float value -> integer value
        self.norms: dict[str, Node] = {}  # float value written by an rmsnorm -> that node
        self.table: dict[str, str] = {}  # the embedding's parameters, which a tied head reads too
        self.rope: dict[str, str] = {}
        if any(node.op == "rope" for node in graph.nodes):
            c = graph.config
            cos, sin = rope_tables.tables(frequencies(c.rope, c.head_dim), c.context, attention_factor(c.rope))
            self.rope = {"cos": self.out.param("rope.cos", cos), "sin": self.out.param("rope.sin", sin)}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            lowering = getattr(self, f"_{node.op}", None)
            self.names[node.output] = lowering(node) if lowering else self._same(node)
        return self.out.finish(self.names[self.graph.output])

    def _read(self, node: Node) -> tuple[str, ...]:
        return tuple(self.names[name] for name in node.inputs)

    def _same(self, node: Node) -> str:
        """Elementwise fp32 operators keep their meaning and their name."""
        size = self.graph.values[node.output].size
        return self.out.add(node.op, node.where, self._read(node), size, name=node.output, **node.attrs)

    def _embed(self, node: Node) -> str:
        """A table of positions keeps the rows that a context needs."""
        c, first = self.graph.config, node.attrs.get("first", 0)
        rows = slice(first, first + c.context) if node.inputs == ("position",) else slice(None)
        params = self._coded(node, None, rows)
        self.table = params if node.inputs == ("token",) else self.table
        return self.out.add(node.op, node.where, node.inputs, c.hidden, name=node.output, params=params)

    def _coded(self, node: Node, gain: str | None, rows: slice = slice(None)) -> dict[str, str]:
        """The parameters that stand for a node's weight, or for some of its rows, registered."""
        coded = self.code(self.graph, node.params["weight"], gain)
        arrays = coded if rows == slice(None) else {word: array[rows] for word, array in coded.items()}
        return {word: self.out.param(f"{node.where}.{word}", array) for word, array in arrays.items()}

    def _rmsnorm(self, node: Node) -> str:
        """Codes of the input whose scale carries 1/rms; the gain is the readers' business."""
        self.norms[node.output] = node
        (x,) = self._read(node)
        if self._tied_head(node):
            return self._scaled_norm(node, x)
        q = self._codes(node.where, x, self._wide(node))
        return self._rms(node, q, q)

    def _scaled_norm(self, node: Node, x: str) -> str:
        """A norm whose gain cannot fold: codes of x * gain, rms of x."""
        gain = self.out.param(f"{node.where}.gain", self.graph.params[node.params["gain"]].astype(np.float32))
        size = self.out.values[x].size
        scaled = self.out.add("mul", node.where, (x,), size, params={"gain": gain})
        q = self._codes(f"{node.where}.scaled", scaled, self._wide(node))
        return self._rms(node, q, self._codes(node.where, x, size))

    def _rms(self, node: Node, q: str, reference: str) -> str:
        size = self.out.values[q].size
        return self.out.add(
            "rms", node.where, (q, reference), size, kind="codes", name=node.output, eps=node.attrs["eps"]
        )

    def _codes(self, where: str, x: str, wide: int) -> str:
        size = self.out.values[x].size
        return self.out.add("quantize", where, (x,), size, kind="codes", wide=wide)

    def _linear(self, node: Node) -> str:
        norm = self.norms.get(node.inputs[0])
        (x,) = self._read(node)
        if self.out.values[x].kind == "f32":
            x = self._coded_once(node, x)
        if self._is_tied(node):
            params = dict(self.table)
        else:
            params = self._coded(node, norm.params["gain"] if norm else None)
        if "bias" in node.params:
            bias = self.graph.params[node.params["bias"]].astype(np.float32)
            params["bias"] = self.out.param(f"{node.where}.bias", bias)
        size = self.graph.values[node.output].size
        attrs = self.scheme.sparse(self.out.values[x].size) if node.params["weight"] in self.reduced else {}
        return self.out.add("linear", node.where, (x,), size, name=node.output, params=params, **attrs)

    def _select(self, node: Node) -> str:
        """The norm's codes for one expert, which has the norm's gain in its weights."""
        self.norms[node.output] = self.norms[node.inputs[0]]
        size = self.graph.values[node.output].size
        read = self._read(node)
        return self.out.add(node.op, node.where, read, size, kind="codes", name=node.output, **node.attrs)

    def _coded_once(self, node: Node, x: str) -> str:
        """Codes of a value that no norm precedes (attention's output, the gated product)."""
        maker = self.makers[node.inputs[0]]
        where = f"{maker.where}.norm" if maker.op == "layernorm" else node.where  # which several linears read
        name = f"{where}.quantize"
        return name if name in self.out.values else self._codes(where, x, self._wide(node))

    def _layernorm(self, node: Node) -> str:
        params = {word: self.out.param(f"{node.where}.norm.{word}", self.graph.params[key].astype(np.float32))
                  for word, key in node.params.items()}
        size, read = self.graph.values[node.output].size, self._read(node)
        return self.out.add(node.op, f"{node.where}.norm", read, size, name=node.output, params=params, **node.attrs)

    def _headnorm(self, node: Node) -> str:
        gain = self.graph.params[node.params["gain"]].astype(np.float32)
        params = {"gain": self.out.param(f"{node.where}.gain", gain)}
        size = self.graph.values[node.output].size
        read = self._read(node)
        return self.out.add(node.op, node.where, read, size, name=node.output, params=params, **node.attrs)

    def _rope(self, node: Node) -> str:
        size = self.graph.values[node.output].size
        read = self._read(node)
        return self.out.add(node.op, node.where, read, size, name=node.output, params=self.rope, **node.attrs)

    def _attention(self, node: Node) -> str:
        size = self.graph.values[node.output].size
        root = rope_tables.CONTEXT.sqrt(Decimal(node.attrs["head_dim"]))
        softmax_scale = float(np.float32(float(rope_tables.CONTEXT.divide(Decimal(1), root))))
        attrs = {**node.attrs, "kv_bits": self.scheme.kv_bits, "softmax_scale": softmax_scale}
        params = {word: self.out.param(f"{node.where}.{word}", self.graph.params[key].astype(np.float32))
                  for word, key in node.params.items()}
        return self.out.add(node.op, node.where, self._read(node), size, name=node.output, params=params, **attrs)

    def _wide(self, node: Node) -> int:
        """How many leading channels of a norm's or linear's input carry two planes.

        Attention's output has none: its channels cannot move between heads, and equalizing v/o evens them out.  What a
        layernorm makes has only such: it is the residual itself, whose order is also that of an encoder's output.
        """
        if self.scheme.wide_head and (node.where in ("norm", "head")):
            return self.graph.config.hidden
        maker = self.makers[node.inputs[0]]
        if maker.op == "attention":
            return 0
        if maker.op == "layernorm":
            return self.graph.values[maker.output].size
        return ceil(self.graph.values[node.inputs[0]].size * self.scheme.outlier_share)

    def _is_tied(self, node: Node) -> bool:
        embed = self.graph.nodes[0]
        return node.op == "linear" and node.params["weight"] == embed.params["weight"]

    def _tied_head(self, norm: Node) -> bool:
        return any(self._is_tied(user) for user in self.users[norm.output])
