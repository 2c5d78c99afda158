"""A float graph and token windows in, an accuracy report out: perplexity of fp32 and of each format, error per layer.

A measurement for people, in ordinary float64: no program and no token depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress, silent
from openlpu.graph.evaluate import evaluate
from openlpu.graph.ir import Graph, Node
from openlpu.numerics import widths
from openlpu.numerics.calibrate import Trace, prepare
from openlpu.numerics.integer import Runners, integer
from openlpu.numerics.scheme import Scheme

FORMATS = (
    Scheme(),
    Scheme(kv_bits=16),
    Scheme(kv_bits=4),
    Scheme(wide_head=False, outlier_share=0.0),
    Scheme(kv_bits=16, outlier_share=1.0),
)
"""What a report compares unless asked otherwise: the default, other caches, one plane, two planes everywhere."""

Window = Sequence[int]


@dataclass(frozen=True)
class Format:
    """One format's mean bits per weight, its perplexity, and how much that is over fp32's (0.0026 is +0.26 %)."""

    scheme: Scheme
    bits: float
    perplexity: float
    excess: float


@dataclass(frozen=True)
class LayerError:
    """‖integer - fp32‖ / ‖fp32‖ of a layer's output (the residual after it) over all tokens."""

    where: str
    error: float


@dataclass(frozen=True)
class Report:
    """``tokens`` were scored; ``layers`` is the first format's error, in order, the logits last."""

    tokens: int
    perplexity: float
    formats: tuple[Format, ...]
    layers: tuple[LayerError, ...]


def windows(documents: Sequence[Sequence[int]], bos: int | None, size: int = 256) -> list[Window]:
    """Windows of at most ``size`` tokens that begin with ``bos`` where there is one.

    The first window of each of several documents; all consecutive windows of a single one.
    """
    start = [] if bos is None else [bos]
    step = size - len(start)
    if len(documents) > 1:
        cut = [ids[:step] for ids in documents]
    else:
        cut = [ids[at : at + step] for ids in documents for at in range(0, len(ids), step)]
    kept: list[Window] = [[*start, *ids] for ids in cut if len(start) + len(ids) > 1]
    if not kept:
        raise BadRequest("the text has no two tokens to predict one from the other", where="text",
                         fix="name a file with more text")
    return kept


def losses(logits: Callable[[Window], np.ndarray], texts: Iterable[Window]) -> NDArray[np.float64]:
    """Natural-log loss of every token after a window's first; ``logits`` gives [T, vocab] for T tokens."""
    return np.concatenate([_losses(logits(ids[:-1]), ids) for ids in texts])


def _losses(logits: np.ndarray, ids: Window) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    picked = x[np.arange(len(x)), np.asarray(ids[1:])]
    return np.log(np.exp(x).sum(axis=-1)) - picked


def layer_errors(graph: Graph, integer: Graph, trace: Trace, texts: Iterable[Window]) -> tuple[LayerError, ...]:
    """Error of every layer's output and of the logits; ``integer`` is ``graph`` lowered, channel for channel."""
    wanted = ["embed.out", *(f"layers.{i}.out" for i in range(graph.config.layers)), graph.output]
    square = {name: np.zeros(2) for name in wanted}
    for ids in texts:
        seen: list[dict[str, np.ndarray]] = []
        for run, level in ((evaluate, graph), (trace, integer)):
            values: dict[str, np.ndarray] = {}
            run(level, ids, _keep(values, wanted))
            seen.append(values)
        exact, coded = seen
        for name in wanted:
            want = exact[name].astype(np.float64)
            square[name] += ((coded[name] - want) ** 2).sum(), (want**2).sum()
    return tuple(LayerError(name, float(np.sqrt(off / all_))) for name, (off, all_) in square.items())


def _keep(values: dict[str, np.ndarray], wanted: Sequence[str]) -> Callable[[Node, Any], None]:
    def observe(node: Node, value: Any) -> None:
        if node.output in wanted:
            values[node.output] = value

    return observe


def measure(
    graph: Graph, texts: Sequence[Window], runners: Runners, formats: Sequence[Scheme] = FORMATS,
    progress: Progress = silent, run: Callable[[Graph], Callable[[Window], np.ndarray]] | None = None,
) -> Report:
    """Score a float graph and each format of it on the same windows.

    ``run`` loads an integer graph where its logits come faster (any target has the same); default ``runners.trace``.
    The error per layer is the first format's on the first eight windows.
    """
    steps = (len(formats) + 1) * len(texts)

    def counted(name: str, at: int) -> Iterator[Window]:
        for i, ids in enumerate(texts):
            progress(name, at * len(texts) + i, steps)
            yield ids

    exact = losses(lambda ids: evaluate(graph, ids), counted("fp32", 0)).mean()
    results, layers = [], ()
    for at, scheme in enumerate(formats, 1):
        made = integer(graph, scheme, runners, progress)
        logits = run(made) if run else lambda ids, g=made: _logits(runners.trace, g, ids)
        mean = losses(logits, counted(str(scheme), at)).mean()
        results.append(Format(scheme, widths.bits(made), float(np.exp(mean)), float(np.expm1(mean - exact))))
        if not layers:
            layers = layer_errors(prepare(graph, scheme, runners.trace), made, runners.trace, texts[:8])
    scored = sum(len(ids) - 1 for ids in texts)
    return Report(scored, float(np.exp(exact)), tuple(results), layers)


def _logits(trace: Trace, graph: Graph, ids: Window) -> np.ndarray:
    values: dict[str, np.ndarray] = {}
    trace(graph, ids, _keep(values, [graph.output]))
    return values[graph.output]
