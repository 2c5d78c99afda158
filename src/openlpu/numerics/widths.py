"""A model in 8 bits and in 4 in, which matrices keep 8 under a budget out.

What a matrix costs is measured: the model runs with this one in 4 bits, and its probabilities are compared with those
of the model that has none.  All activations and the cache have two planes meanwhile, so nothing but the weights'
error shows; these costs then add up to that of all matrices together, within a few percent.  So the matrices whose 8
bits save most per bit spent get them first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress
from openlpu.arch import truepoint as tp
from openlpu.arch.truepoint.sparse import PAIRS, STRIP, TILE
from openlpu.graph.ir import Graph, Node, layer_of
from openlpu.numerics.calibrate import Trace
from openlpu.numerics.scheme import SMALLEST

SCALE_BITS = 32  # a row's
UNITS = 64  # most sets of matrices that are measured; in a deep model the same matrix of neighbouring layers is one
WEIGHT_ONE, LOGIT_ONE, MOST_LOGIT = 1 << 15, 1 << 10, 1 << 14  # sums of 2**17 tokens stay below 2**61


def bits(graph: Graph) -> float:
    """Mean bits per weight of an integer graph: codes, block bytes and row scales of every matrix, the embedding's too.

    A matrix that two operators read counts once.  Gains, biases and tables of cosines are not weights.
    """
    nodes = {node.params["codes"]: node for node in graph.nodes if "codes" in node.params}
    taken = sum(_pruned_bits(graph, node) if "sparse" in node.attrs else _bits(graph, node.params)
                for node in nodes.values())
    return taken / sum(graph.params[codes].size for codes in nodes)


def _pruned_bits(graph: Graph, node: Node) -> int:
    """Codes of a pruned matrix that stay, where they stand, and row scales."""
    n, k = graph.params[node.params["codes"]].shape
    if node.attrs["sparse"] == PAIRS:
        return 5 * n * k + SCALE_BITS * n
    strips = -(-n // STRIP)
    return node.attrs["tiles"] * (min(k, TILE) * 8 * n + 16 * strips) + SCALE_BITS * n


def _bits(graph: Graph, params: Mapping[str, str]) -> int:
    codes = graph.params[params["codes"]]
    if "blocks" not in params:
        return 8 * codes.size + SCALE_BITS * len(codes)
    return 4 * codes.size + 8 * graph.params[params["blocks"]].size + SCALE_BITS * len(codes)


def choose(
    eight: Graph, four: Graph, budget: float, trace: Trace, texts: Sequence[Sequence[int]], progress: Progress
) -> frozenset[str]:
    """The ``codes`` parameters that keep 8 bits when all weights together may take ``budget`` bits on average.

    ``eight`` and ``four`` are one model in either width.  Raises :class:`BadRequest` for a budget that is too small.
    """
    nodes = {node.params["codes"]: node for node in four.nodes if "codes" in node.params}
    size = sum(four.params[codes].size for codes in nodes)
    left = budget * size - sum(_bits(four, node.params) for node in nodes.values())
    units = _units(list(nodes.values()))
    more = [sum(_bits(eight, {"codes": n.params["codes"]}) - _bits(four, n.params) for n in unit) for unit in units]
    if left < 0:
        least = budget - left / size
        raise BadRequest(f"this model's weights take {least:.3f} bits at least", where="bits",
                         fix=f"ask for more, or for {SMALLEST:g}: all in 4-bit blocks")
    if left < min(more):
        return frozenset()
    costs = _costs(eight, four, units, trace, texts, progress)
    kept: set[str] = set()
    for at in sorted(range(len(units)), key=lambda u: -costs[u] / more[u]):
        if more[at] <= left:
            left -= more[at]
            kept |= {node.params["codes"] for node in units[at]}
    return frozenset(kept)


def _units(nodes: Sequence[Node]) -> list[list[Node]]:
    """What gets a width together: one matrix, or one of several neighbouring layers."""
    span = ceil(len(nodes) / UNITS)
    found: dict[tuple[int, str], list[Node]] = {}
    for node in nodes:
        layer = layer_of(node)
        name = node.where if layer < 0 else node.where.split(".", 2)[2]
        found.setdefault((layer if layer < 0 else layer // span, name), []).append(node)
    return list(found.values())


def _costs(
    eight: Graph, four: Graph, units: Sequence[Sequence[Node]], trace: Trace, texts: Sequence[Sequence[int]],
    progress: Progress,
) -> list[float]:
    """Divergence from ``eight`` with each unit from ``four``, as a mean over the texts' tokens."""
    want = [_logits(eight, trace, text) for text in texts]
    costs = []
    for at, unit in enumerate(units):
        progress("sensitivity", at, len(units))
        swapped = {n.params[word]: four.params[n.params[word]] for n in unit for word in ("codes", "scale")}
        other = replace(eight, params={**eight.params, **swapped})
        costs.append(sum(divergence(w, _logits(other, trace, t)) for w, t in zip(want, texts, strict=True)))
    return costs


def _logits(graph: Graph, trace: Trace, text: Sequence[int]) -> NDArray[np.float32]:
    kept: list[NDArray[np.float32]] = []

    def look(node: Node, value: object) -> None:
        if node.output == graph.output and isinstance(value, np.ndarray):
            kept.append(value)

    trace(graph, text, look)
    return kept[0]


def divergence(want: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """About the Kullback–Leibler divergence of logits [T, V] from others, summed over rows; the same everywhere.

    To second order it is half the variance of the logits' difference under ``want``'s probabilities: integers here.
    """
    weight = np.rint(tp.exp(want - want.max(axis=1, keepdims=True)) * np.float32(WEIGHT_ONE)).astype(np.int64)
    off = np.clip(np.rint((got - want) * np.float32(LOGIT_ONE)), -MOST_LOGIT, MOST_LOGIT).astype(np.int64)
    total = weight.sum(axis=1)
    mean = (weight * off).sum(axis=1) / total
    square = (weight * off * off).sum(axis=1) / total
    return sum(((square - mean * mean) / 2).tolist()) / LOGIT_ONE**2
