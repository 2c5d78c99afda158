"""An integer graph and texts in, second moments of what each linear reads out: Σ x xᵀ over the tokens.

They say what an error in a weight costs, and which other weights can make up for it.  Each text's sum is an exact
integer matrix (the values on one power-of-two step), and texts are added in order: the same numbers on every
processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from openlpu._base.progress import Progress
from openlpu.arch import truepoint as tp
from openlpu.graph.ir import Graph, Node
from openlpu.numerics.calibrate import Trace

F32 = NDArray[np.float32]

WINDOW = 2048  # channels whose products are kept: memory and time grow with K * WINDOW instead of K * K
BITS = 15  # of a value on its text's step; with 2**20 tokens the sums stay below 2**53

Windows = Sequence[F32]
"""Moments [k, k] of consecutive windows of at most ``WINDOW`` channels."""


def moments(graph: Graph, trace: Trace, texts: Sequence[Sequence[int]], progress: Progress) -> Mapping[str, Windows]:
    """Value name -> moments, for every value that a linear of ``graph`` reads."""
    wanted = {node.inputs[0] for node in graph.nodes if node.op == "linear"}
    total: dict[str, list[F32]] = {}

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
        trace(graph, text, look)
    return total


def _of_text(q: tp.Codes) -> list[F32]:
    """The windows of one text's Σ x xᵀ for codes [T, K]."""
    x = q.codes.astype(np.float32) * q.scale
    _, exponent = np.frexp(np.abs(x).max())
    step = np.ldexp(1.0, BITS - exponent)
    whole = np.rint(x * step)
    parts = (whole[:, at : at + WINDOW] for at in range(0, whole.shape[1], WINDOW))
    return [((part.T @ part) / (step * step)).astype(np.float32) for part in parts]
