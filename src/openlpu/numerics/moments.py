"""An integer graph and texts in, second moments of what each linear reads out: Σ x xᵀ over the tokens.

They say what an error in a weight costs, and which other weights can make up for it.  Each text's sum is a matrix
product of integers (every channel on a power-of-two step of its own) that fp32 holds exactly, and texts are added in
order: the same numbers on every processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openlpu._base.progress import Progress
from openlpu.arch import truepoint as tp
from openlpu.graph.ir import Graph, Node
from openlpu.numerics.calibrate import Trace
from openlpu.numerics.workers import in_order

F32 = NDArray[np.float32]

WINDOW = 2048  # channels whose products are kept: memory and time grow with K * WINDOW instead of K * K
STRIPE = 512  # columns of a window that a core adds at a time; rows below the diagonal wait until the end
TOKENS, BITS = 256, 8  # of a text, and of a value on its channel's step: sums are at most 2**24

Windows = Sequence[F32]
"""Moments [k, k] of consecutive windows of at most ``WINDOW`` channels."""


def moments(graph: Graph, trace: Trace, texts: Sequence[Sequence[int]], progress: Progress) -> Mapping[str, Windows]:
    """Value name -> moments, for every value that a linear of ``graph`` reads; texts of at most ``TOKENS`` tokens."""
    wanted = {node.inputs[0] for node in graph.nodes if node.op == "linear"}
    total: dict[str, list[F32]] = {}
    body = _without_head(graph)

    def look(node: Node, value: object) -> None:
        if node.output in wanted and isinstance(value, tp.Codes):
            if node.output not in total:
                total[node.output] = _none(value.codes.shape[1])
            _add(total[node.output], value)

    for at, text in enumerate(texts):
        progress("statistics", at, len(texts))
        trace(body, text, look)
    for window in (window for windows in total.values() for window in windows):
        for stripe in _stripes(len(window)):
            window[stripe.stop :, stripe] = window[stripe, stripe.stop :].T
    return total


def _without_head(graph: Graph) -> Graph:
    """All but the last operator, whose logits nobody needs: the residual comes out instead."""
    nodes = graph.nodes[:-1]
    last = next(node.output for node in reversed(nodes) if graph.values[node.output].kind == "f32")
    return replace(graph, nodes=nodes, output=last)


def _none(k: int) -> list[F32]:
    """The windows of ``k`` channels that no text was added to."""
    sizes = [min(WINDOW, k - at) for at in range(0, k, WINDOW)]
    return [np.zeros((size, size), np.float32) for size in sizes]


def _stripes(size: int) -> list[slice]:
    return [slice(at, min(at + STRIPE, size)) for at in range(0, size, STRIPE)]


def _add(total: list[F32], q: tp.Codes) -> None:
    """Add one text's Σ x xᵀ, of codes [T, K], to the windows; of each only what ends at or above the diagonal."""
    x = q.codes.astype(np.float32) * q.scale
    assert len(x) <= TOKENS, f"sums over {len(x)} tokens are not exact"
    _, exponent = np.frexp(np.abs(x).max(axis=0))
    whole = np.minimum(np.rint(np.ldexp(x, BITS - exponent)), np.float32(2**BITS - 1))
    step = np.ldexp(np.float32(1), exponent - BITS)

    def some(piece: tuple[int, slice]) -> None:
        at, stripe = piece
        values, steps = (array[..., at * WINDOW : (at + 1) * WINDOW] for array in (whole, step))
        product = values[:, : stripe.stop].T @ values[:, stripe]
        product *= steps[: stripe.stop, None]
        product *= steps[stripe]
        total[at][: stripe.stop, stripe] += product

    for _ in in_order(some, [(at, stripe) for at, window in enumerate(total) for stripe in _stripes(len(window))]):
        pass
