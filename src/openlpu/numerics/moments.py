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

F32 = NDArray[np.float32]

WINDOW = 2048  # channels whose products are kept: memory and time grow with K * WINDOW instead of K * K
TOKENS, BITS = 256, 8  # of a text, and of a value on its channel's step: sums stay below 2**24

Windows = Sequence[F32]
"""Moments [k, k] of consecutive windows of at most ``WINDOW`` channels."""


def moments(graph: Graph, trace: Trace, texts: Sequence[Sequence[int]], progress: Progress) -> Mapping[str, Windows]:
    """Value name -> moments, for every value that a linear of ``graph`` reads; texts of at most ``TOKENS`` tokens."""
    wanted = {node.inputs[0] for node in graph.nodes if node.op == "linear"}
    total: dict[str, list[F32]] = {}
    body = _without_head(graph)

    def look(node: Node, value: object) -> None:
        if node.output in wanted and isinstance(value, tp.Codes):
            parts = _of_text(value)
            if node.output not in total:
                total[node.output] = parts
            else:
                for have, more in zip(total[node.output], parts, strict=True):
                    have += more

    for at, text in enumerate(texts):
        progress("statistics", at, len(texts))
        trace(body, text, look)
    return total


def _without_head(graph: Graph) -> Graph:
    """All but the last operator, whose logits nobody needs: the residual comes out instead."""
    nodes = graph.nodes[:-1]
    last = next(node.output for node in reversed(nodes) if graph.values[node.output].kind == "f32")
    return replace(graph, nodes=nodes, output=last)


def _of_text(q: tp.Codes) -> list[F32]:
    """The windows of one text's Σ x xᵀ for codes [T, K]."""
    x = q.codes.astype(np.float32) * q.scale
    assert len(x) <= TOKENS, f"sums over {len(x)} tokens are not exact"
    _, exponent = np.frexp(np.abs(x).max(axis=0))
    whole = np.minimum(np.rint(np.ldexp(x, BITS - exponent)), np.float32(2**BITS - 1))
    step = np.ldexp(np.float32(1), exponent - BITS)
    parts = (slice(at, at + WINDOW) for at in range(0, x.shape[1], WINDOW))
    return [whole[:, part].T @ whole[:, part] * step[part, None] * step[part] for part in parts]
