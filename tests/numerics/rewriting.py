"""The same function with other parameters: what a checkpoint might have chosen, at its worst."""

from __future__ import annotations

import numpy as np

from openlpu.arch.truepoint import draw
from openlpu.graph.ir import Graph, Node
from openlpu.numerics.rewrite import Rule, rewritten, scale_columns, scale_rows


def factors(name: str, size: int, loud: float) -> np.ndarray:
    """1 % of channels, at least one, are ``loud`` and the rest 1."""
    factor = np.ones(size, np.float32)
    factor[draw.integers(name, max(1, size // 100), 0, size - 1)] = loud
    return factor


def spoiled(graph: Graph, loud: float = 100) -> Graph:
    """Norm gains, up/down and v/o pairs rescaled; a gain that a tied head reads has no partner and stays."""
    for node in graph.nodes:
        graph = rewritten(graph, _rules(graph, node, loud))
    return graph


def _rules(graph: Graph, node: Node, loud: float) -> dict[str, Rule]:
    makers, size = graph.producers(), graph.values[node.output].size
    if node.op == "rmsnorm":
        users = [user.params["weight"] for user in graph.consumers()[node.output]]
        if graph.nodes[0].params["weight"] in users:
            return {}
        factor = factors(node.where, size, loud)
        return {node.params["gain"]: scale_rows(factor)} | dict.fromkeys(users, scale_columns(1 / factor))
    if node.op != "linear" or makers[node.inputs[0]].op not in ("silu_mul", "attention"):
        return {}
    source = makers[node.inputs[0]]
    producer = makers[source.inputs[-1]]  # up, or v
    factor = factors(node.where, graph.values[producer.output].size, loud)
    groups = source.attrs.get("kv_heads", 1)
    repeat = source.attrs.get("heads", 1) // groups
    spread = np.repeat(factor.reshape(groups, 1, -1), repeat, axis=1).reshape(-1)
    rows: dict[str, Rule] = {key: scale_rows(factor) for key in producer.params.values()}
    return rows | {node.params["weight"]: scale_columns(1 / spread)}
