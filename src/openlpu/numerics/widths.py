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
from openlpu.arch.truepoint import blocks
from openlpu.arch.truepoint.sparse import PAIRS, STRIP, TILE
from openlpu.graph.ir import Graph, Node, layer_of, routers
from openlpu.numerics.calibrate import Trace
from openlpu.numerics.scheme import SMALLEST
from openlpu.numerics.workers import in_order

SCALE_BITS = 32  # a row's
UNITS = 64  # most sets of matrices that are measured; in a deep model the same matrix of neighbouring layers is one
AT_ONCE = 4  # runs side by side: each has the logits of a vocabulary in memory, a few times
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


def check(graph: Graph, budget: float) -> None:
    """Raises :class:`BadRequest` when an integer graph takes more than ``budget`` bits with all in 4-bit blocks."""
    shapes = {n.params["codes"]: graph.params[n.params["codes"]].shape for n in graph.nodes if "codes" in n.params}
    whole = {node.params["codes"] for node in routers(graph)}
    taken = sum(n * ((8 * k if key in whole else 4 * k + 8 * blocks.count(k)) + SCALE_BITS)
                for key, (n, k) in shapes.items())
    least = taken / sum(n * k for n, k in shapes.values())
    if budget < least:
        raise BadRequest(f"this model's weights take {least:.3f} bits at least", where="bits",
                         fix=f"ask for more, or for {SMALLEST:g}: all in 4-bit blocks")


def choose(
    eight: Graph, four: Graph, budget: float, trace: Trace, texts: Sequence[Sequence[int]], progress: Progress
) -> frozenset[str]:
    """The ``codes`` parameters that keep 8 bits when all weights together may take ``budget`` bits on average.

    ``eight`` and ``four`` are one model in either width.  Raises :class:`BadRequest` for a budget that is too small.
    """
    check(eight, budget)
    nodes = {node.params["codes"]: node for node in four.nodes if "codes" in node.params}
    size = sum(four.params[codes].size for codes in nodes)
    left = budget * size - sum(_bits(four, node.params) for node in nodes.values())
    units = _units([node for node in nodes.values() if "blocks" in node.params])
    more = [sum(_bits(eight, {"codes": n.params["codes"]}) - _bits(four, n.params) for n in unit) for unit in units]
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
    """What gets a width together: one matrix, or one of several neighbouring layers, and of all experts in them."""
    span = ceil(len(nodes) / UNITS)
    found: dict[tuple[int, str], list[Node]] = {}
    for node in nodes:
        layer = layer_of(node)
        name = node.where if layer < 0 else ".".join(w for w in node.where.split(".")[1:] if not w.isdigit())
        found.setdefault((layer if layer < 0 else layer // span, name), []).append(node)
    return list(found.values())


def _costs(
    eight: Graph, four: Graph, units: Sequence[Sequence[Node]], trace: Trace, texts: Sequence[Sequence[int]],
    progress: Progress,
) -> list[float]:
    """Divergence from ``eight`` with each unit from ``four``, as a mean over the texts' tokens."""
    want = list(in_order(lambda text: _logits(eight, trace, text), texts, AT_ONCE))

    def cost(unit: Sequence[Node], at: int) -> float:
        swapped = {n.params[word]: four.params[n.params[word]] for n in unit for word in ("codes", "scale")}
        other = replace(eight, params={**eight.params, **swapped})
        return divergence(want[at], _logits(other, trace, texts[at]))

    found = []
    for one in in_order(lambda job: cost(*job), [(u, at) for u in units for at in range(len(texts))], AT_ONCE):
        progress("sensitivity", len(found) // len(texts), len(units))
        found.append(one)
    return [sum(found[at : at + len(texts)]) for at in range(0, len(found), len(texts))]


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
