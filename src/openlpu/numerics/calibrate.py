"""Float graph in, the same function out, with the channels that need two planes moved to the front.

A site's first channels carry a second plane (``Scheme.outlier_share``), so the channels that dominate their
neighbours should stand there.  Which ones do is seen by running the *integer* model, whose codes are the same on
every processor, on tokens drawn by an integer hash; no text or tokenizer is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import Unsupported
from openlpu.arch import truepoint as tp
from openlpu.arch.truepoint import draw
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph.ir import Graph, Node, maker
from openlpu.numerics.equalize import equalize
from openlpu.numerics.lower import lower
from openlpu.numerics.rewrite import Rewritten, Rule, rewritten, take
from openlpu.numerics.scheme import Scheme

GATED = ("silu_mul", "swiglu")
INNER = (*GATED, "gelu")  # what makes the input of a ``down``
TOKENS = 48  # enough to see every channel that dominates; calibration costs one chunk of this length
Order = NDArray[np.intp]
Trace = Callable[[Graph, Sequence[int], Callable[[Node, Any], None]], object]
"""Runs an integer graph on tokens from position 0 and shows every operator's output, exact to the bit."""


def prepare(graph: Graph, scheme: Scheme, trace: Trace) -> Graph:
    """What comes before :func:`~openlpu.numerics.lower.lower`.

    Equalized; with outlier channels in front; and for a 4-bit cache with a centre for each layer's keys.
    """
    sinks = next((node.where for node in graph.nodes if "sinks" in node.params), "")
    if scheme.kv_bits == 4 and sinks:  # taking a vector off all keys would move all scores but a sink's
        raise Unsupported("a 4-bit KV cache beside attention sinks", where=sinks, fix="use --kv-bits 8 or 16")
    if scheme.kv_bits == 4 and isinstance(graph.config, EncoderConfig):
        raise Unsupported("4-bit keys and values in an encoder", where="kv-bits", fix="use --kv-bits 8 or 16")
    graph = equalize(graph)
    if scheme.outlier_share:
        graph = _outliers_in_front(graph, scheme, trace)
    return _centred(graph, scheme, trace) if scheme.kv_bits == 4 else graph


def _outliers_in_front(graph: Graph, scheme: Scheme, trace: Trace) -> Graph:
    dominance = observe(graph, scheme, trace, tokens(graph))
    if isinstance(graph.config, EncoderConfig):  # whose residual is what it gives
        return _reorder_intermediate(graph, dominance)
    residual = np.zeros(graph.config.hidden, np.int64)
    for node in graph.nodes:
        if node.op == "rmsnorm" and node.inputs[0] in dominance:
            residual += dominance[node.inputs[0]]
    graph = _reorder_residual(graph, front(residual))
    return _reorder_intermediate(graph, dominance)


def _centred(graph: Graph, scheme: Scheme, trace: Trace) -> Graph:
    """Attention with a ``centre`` [KVH * D] that is taken off every key before it is coded.

    The same vector off all keys moves all scores of a query by the same amount, which the softmax does not see.
    It is the mean, over the positions of the context, of the rotated median key: channels that turn slowly keep
    their offset, those that turn often have none.  The first token's keys, often unlike the others, are left out.
    """
    makers, plain = graph.producers(), lower(graph, replace(scheme, kv_bits=8))
    attention = {makers[n.inputs[1]].inputs[0]: n for n in graph.nodes if n.op == "attention"}
    turn = [_means(plain.params[f"rope.{word}"]) for word in ("cos", "sin")]
    added: dict[str, np.ndarray] = {}

    def look(node: Node, value: object) -> None:
        if node.output in attention and isinstance(value, np.ndarray):
            rest = np.sort(value[1:] if len(value) > 1 else value, axis=0)
            heads = rest[len(rest) // 2].reshape(attention[node.output].attrs["kv_heads"], -1)
            added[f"{attention[node.output].where}.centre"] = tp.rotate(heads, *turn).reshape(-1)

    trace(plain, tokens(graph), look)
    nodes = tuple(replace(n, params={"centre": f"{n.where}.centre"}) if n.op == "attention" else n for n in graph.nodes)
    return replace(graph, nodes=nodes, params=Rewritten(graph.params, {}, added))


def _means(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over positions of a table [T, D / 2]; ``fsum`` rounds once, so the order does not matter."""
    return np.array([fsum(column) / len(column) for column in table.T.tolist()], np.float32)


def tokens(graph: Graph) -> list[int]:
    """The calibration tokens: the beginning-of-text token where there is one, then hashed ids."""
    c = graph.config
    ids = draw.integers("calibration", min(TOKENS, c.context), 0, c.vocab - 1).tolist()
    return ids if c.bos is None else [c.bos, *ids[1:]]


def observe(graph: Graph, scheme: Scheme, trace: Trace, ids: Sequence[int]) -> Mapping[str, NDArray[np.int64]]:
    """Per value that a norm or a ``down`` reads: each channel's Σ code⁴ over the tokens, an exact integer.

    The codes are one-plane codes, so a channel counts as far as it sets the scale of the others.
    """
    wanted = {n.inputs[0] for n in graph.nodes if n.op == "rmsnorm"}
    wanted |= {n.output for n in graph.nodes if n.op in INNER}
    seen: dict[str, NDArray[np.int64]] = {}

    def look(node: Node, value: object) -> None:
        if node.output in wanted and isinstance(value, np.ndarray):
            seen[node.output] = (tp.quantize(value, 0).codes.astype(np.int64) ** 4).sum(axis=0)

    trace(lower(graph, scheme), ids, look)
    return seen


def front(dominance: NDArray[np.int64]) -> Order:
    """Channels in descending dominance; equals keep their order."""
    return np.argsort(-dominance, kind="stable")


def _reorder_residual(graph: Graph, order: Order) -> Graph:
    """One order for the residual: the table's columns, every norm's gain, what reads a norm, what is added."""
    makers, rules = graph.producers(), dict[str, Rule]()
    for node in graph.nodes:
        if node.op == "embed":
            rules[node.params["weight"]] = take(order, 1)
        elif node.op == "rmsnorm":
            rules[node.params["gain"]] = take(order, 0)
        elif node.op == "linear" and maker(makers, node.inputs[0]).op == "rmsnorm":
            rules[node.params["weight"]] = take(order, 1)
        elif node.op == "add":
            added = makers[node.inputs[1]]
            for one in [makers[name] for name in added.inputs[1:]] if added.op == "mix" else [added]:
                rules |= {key: take(order, 0) for key in one.params.values()}
    return rewritten(graph, rules)


def _reorder_intermediate(graph: Graph, dominance: Mapping[str, NDArray[np.int64]]) -> Graph:
    """An order per layer for the channels between gate, up and down, or between the two matrices of an encoder."""
    makers, rules = graph.producers(), dict[str, Rule]()
    for node in graph.nodes:
        if node.op in INNER:
            order = front(dominance[node.output])
            for name in node.inputs:
                rules |= {key: take(order, 0) for key in makers[name].params.values()}
            (down,) = graph.consumers()[node.output]
            rules[down.params["weight"]] = take(order, 1)
    return rewritten(graph, rules)
