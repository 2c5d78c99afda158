"""Float graph in, the same function out, with each free scale between two linears set to one canonical value.

The channels between ``up`` and ``down`` can be scaled at will, and those between ``v`` and ``o``, and each pair of
channels that RoPE turns between ``k`` and ``q`` (where nothing turns, each channel): whatever one side is multiplied
by, the other is divided by.  A checkpoint that chose badly would waste its codes on a few channels.  Here both sides of
every such channel get the same largest weight, so the checkpoint's choice does not matter.  Only fp32 ``* / sqrt`` and
maxima are used: the same result on every processor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openlpu.graph.ir import Graph, Node, maker
from openlpu.numerics.rewrite import Rule, rewritten, scale_columns, scale_rows

F32 = NDArray[np.float32]


def equalize(graph: Graph) -> Graph:
    """The graph with up/down balanced per intermediate channel, v/o per value channel, k/q per rotated pair."""
    makers = graph.producers()
    rules: dict[str, Rule] = {}
    for node in graph.nodes:
        if node.op == "attention":
            rules |= _balance_keys(graph, node)
        if node.op != "linear":
            continue
        source = makers[node.inputs[0]]
        if source.op == "silu_mul":
            rules |= _balance(graph, makers[source.inputs[1]], node, 1, 1)
        elif source.op == "attention":
            groups = source.attrs["kv_heads"]
            rules |= _balance(graph, makers[source.inputs[2]], node, groups, source.attrs["heads"] // groups)
    return rewritten(graph, rules)


def row_maxima(graph: Graph, node: Node) -> F32:
    """Largest magnitude in each row of a linear, its input's norm gain and its own bias counted in."""
    weight = np.abs(_read(graph, node, "weight"))
    norm = maker(graph.producers(), node.inputs[0])
    if norm.op == "rmsnorm":
        weight *= np.abs(_read(graph, norm, "gain"))
    top = weight.max(axis=1)
    return np.maximum(top, np.abs(_read(graph, node, "bias"))) if "bias" in node.params else top


def _read(graph: Graph, node: Node, word: str) -> F32:
    return graph.params[node.params[word]].astype(np.float32)


def _balance(graph: Graph, producer: Node, consumer: Node, groups: int, repeat: int) -> dict[str, Rule]:
    """Rules that scale the producer's rows and unscale the consumer's columns.

    The producer's channels come in ``groups``; each group feeds ``repeat`` consecutive heads of the consumer.
    """
    rows = row_maxima(graph, producer)
    columns = np.abs(_read(graph, consumer, "weight")).max(axis=0)
    columns = columns.reshape(groups, repeat, -1).max(axis=1).reshape(-1)
    factor = _middle(rows, columns)
    scaled: dict[str, Rule] = {key: scale_rows(factor) for key in producer.params.values()}
    return scaled | {consumer.params["weight"]: scale_columns(_inverse(factor, groups, repeat))}


def _balance_keys(graph: Graph, attention: Node) -> dict[str, Rule]:
    """Rules for k and q: of their projections' rows, or of their head norms' gains, which all heads share."""
    makers = graph.producers()
    made = [makers[name] for name in attention.inputs[:2]]
    query, key = (makers[node.inputs[0]] if node.op == "rope" else node for node in made)
    if key.op == "headnorm":
        groups, repeat = 1, 1
        queries, keys = (np.abs(_read(graph, node, "gain")) for node in (query, key))
    else:
        groups = attention.attrs["kv_heads"]
        repeat = attention.attrs["heads"] // groups
        queries, keys = row_maxima(graph, query), row_maxima(graph, key)
    turned = 2 if made[1].op == "rope" else 1  # channels that must be scaled alike
    pairs = attention.attrs["head_dim"] // turned
    part = _middle(keys.reshape(groups, turned, pairs).max(axis=1), queries.reshape(groups, -1, pairs).max(axis=1))
    factor = np.concatenate([part] * turned, axis=1).reshape(-1)
    rules: dict[str, Rule] = {name: scale_rows(factor) for name in key.params.values()}
    return rules | {name: scale_rows(_inverse(factor, groups, repeat)) for name in query.params.values()}


def _middle(ours: F32, theirs: F32) -> F32:
    """sqrt(theirs / ours): times ours and by theirs, both become the same; 1 where either is zero."""
    dead = (ours == 0) | (theirs == 0)
    return np.sqrt(np.where(dead, np.float32(1), theirs) / np.where(dead, np.float32(1), ours)).astype(np.float32)


def _inverse(factor: F32, groups: int, repeat: int) -> F32:
    """1 / factor for every head that reads a group's channels."""
    return (np.float32(1) / np.repeat(factor.reshape(groups, 1, -1), repeat, axis=1).reshape(-1)).astype(np.float32)
