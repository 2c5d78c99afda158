"""The graph: operators over values that belong to one token, and the parameters they read.

In: nodes in execution order.  Out: :class:`Graph`, frozen.  A *value* is a vector of one token (its size is a
channel count); batch, chunk and position never appear, so nothing here can depend on them.  The only operator
that looks at other tokens is ``attention``, through its layer's KV cache: at those before, or in an encoder at all.

Two levels share these classes; ``docs/04-graph.md`` and ``docs/05-numerics.md`` list their operators:

* ``float``: embed, rmsnorm, headnorm, linear, rope, attention, silu_mul, swiglu, add, route, select, mix
* ``int``:   embed, quantize, rms, headnorm, linear, rope, attention, silu_mul, swiglu, add, mul, route, select, mix

and, of encoders, both have layernorm and gelu.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openlpu.checkpoint.config import ModelConfig


@dataclass(frozen=True)
class Value:
    """One token's vector: ``kind`` is ``f32``, ``codes`` (integers with one scale) or ``token`` (an id)."""

    name: str
    kind: str
    size: int


@dataclass(frozen=True)
class Node:
    """One operator: reads values and parameters, writes one value.

    ``params`` maps the operator's own word (``weight``, ``bias``, ``gain`` …) to a key of ``Graph.params``;
    ``where`` is the model path errors and reports show (``layers.3.mlp.down``).
    """

    op: str
    where: str
    inputs: tuple[str, ...]
    output: str
    params: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A whole decode step: ``inputs`` are the token id; ``output`` names the logits value."""

    level: str  # "float" or "int"
    config: ModelConfig
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    params: Mapping[str, np.ndarray]
    output: str

    def producers(self) -> dict[str, Node]:
        """Value name -> the node that writes it."""
        return {node.output: node for node in self.nodes}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it, in execution order."""
        users: dict[str, list[Node]] = {name: [] for name in self.values}
        for node in self.nodes:
            for name in node.inputs:
                users[name].append(node)
        return users

    def truncate(self, layers: int) -> Graph:
        """The same model with only its first ``layers`` layers: how a difference is traced to its layer.

        Layers must start from and return to one residual value, which the builder's naming guarantees:
        ``layers.N.out`` is the residual after layer N, ``embed.out`` the one before layer 0.
        """
        last = f"layers.{layers - 1}.out" if layers else "embed.out"
        end = f"layers.{self.config.layers - 1}.out"
        kept = [n for n in self.nodes if not n.where.startswith("layers.") or layer_of(n) < layers]
        nodes = tuple(dataclasses.replace(n, inputs=tuple(last if i == end else i for i in n.inputs)) for n in kept)
        config = dataclasses.replace(self.config, layers=layers)
        return dataclasses.replace(self, config=config, nodes=nodes)


def layer_of(node: Node) -> int:
    """The layer index in a node's model path; -1 outside the layers."""
    parts = node.where.split(".")
    return int(parts[1]) if parts[0] == "layers" else -1


def maker(makers: Mapping[str, Node], name: str) -> Node:
    """The node that makes a value, given all producers; of what an expert reads, the one behind its ``select``."""
    node = makers[name]
    return makers[node.inputs[0]] if node.op == "select" else node


def routers(graph: Graph) -> list[Node]:
    """The linears whose output chooses experts."""
    makers = graph.producers()
    return [makers[node.inputs[0]] for node in graph.nodes if node.op == "route"]


def twins(graph: Graph) -> dict[str, tuple[Node, ...]]:
    """Value of a mixture's first expert -> the nodes that make it in each of the experts."""
    makers, found = graph.producers(), dict[str, tuple[Node, ...]]()
    for node in graph.nodes:
        if node.op == "mix":
            waiting = [node.inputs[1:]]
            while waiting:
                nodes = tuple(makers[name] for name in waiting.pop())
                assert len({one.op for one in nodes}) == 1, f"{node.where}: its experts are alike"
                found[nodes[0].output] = nodes
                if nodes[0].op != "select":
                    waiting += zip(*(one.inputs for one in nodes), strict=True)
    return found


class Builder:
    """Collects nodes in order and checks that each value is written once, before it is read.

    Parameters are those of ``params``, which may be a file read lazily, or are registered one by one.
    """

    def __init__(self, level: str, config: ModelConfig, params: Mapping[str, np.ndarray] | None = None,
                 given: tuple[str, ...] = ()) -> None:
        """``given``: what a graph may look up beside the token: ``position`` and ``type``."""
        self.level, self.config = level, config
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {name: Value(name, "token", 1) for name in ("token", *given)}
        self.params: Mapping[str, np.ndarray] = {} if params is None else params

    def add(
        self,
        op: str,
        where: str,
        inputs: tuple[str, ...],
        size: int,
        *,
        kind: str = "f32",
        name: str = "",
        params: Mapping[str, str] | None = None,
        **attrs: Any,
    ) -> str:
        """Append a node; returns the name of the value it writes (``name`` or ``<where>.<op>``)."""
        name = name or f"{where}.{op}"
        assert name not in self.values, f"value {name} is written twice"
        for read in inputs:
            assert read in self.values, f"{where}: {op} reads {read} before it is written"
        for key in (params or {}).values():
            assert key in self.params, f"{where}: {op} names the unknown parameter {key}"
        self.values[name] = Value(name, kind, size)
        self.nodes.append(Node(op, where, inputs, name, dict(params or {}), attrs))
        return name

    def param(self, name: str, array: np.ndarray) -> str:
        """Register a parameter; returns its key."""
        assert isinstance(self.params, dict), "a builder over given parameters takes no others"
        assert name not in self.params, f"parameter {name} is registered twice"
        self.params[name] = array
        return name

    def finish(self, output: str) -> Graph:
        """The frozen graph with ``output`` as its logits."""
        return Graph(self.level, self.config, tuple(self.nodes), self.values, self.params, output)
