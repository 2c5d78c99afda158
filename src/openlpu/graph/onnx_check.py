"""The float graph made of an ONNX file, and that file's own graph, in; an error out where they compute other logits.

What was recognised is compared with what is there on random tokens, in one window and, where the graph has a cache, in
two with the cache in between.  So a pattern that was read wrongly cannot pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openlpu._base.errors import Unsupported
from openlpu.checkpoint.onnx.model import OnnxTensors
from openlpu.checkpoint.onnx.run import evaluate as evaluate_onnx
from openlpu.graph.evaluate import evaluate
from openlpu.graph.ir import Graph

TOKENS, FIRST = 9, 5  # of the comparison, and of its first window where there are two
CLOSE = 1e-4  # of the largest logit: two orders of summation in fp32 differ by less, two models by more


def compare(graph: Graph, tensors: OnnxTensors) -> None:
    """:class:`Unsupported` when the logits of ``graph`` are not those of the file that ``tensors`` are from."""
    config, interface = graph.config, tensors.interface
    count = interface.window(min(TOKENS, config.context))
    tokens = np.random.default_rng(0).integers(config.vocab, size=count).tolist()
    expected = evaluate(graph, tokens)
    whole, caches = _run(tensors, tokens, 0, None)
    _same(tensors, whole, expected)
    if caches and count > FIRST:
        _, caches = _run(tensors, tokens[:FIRST], 0, None)
        behind, _ = _run(tensors, tokens[FIRST:], FIRST, caches)
        _same(tensors, behind, expected[FIRST:])


def _run(
    tensors: OnnxTensors, tokens: Sequence[int], past: int, caches: Sequence[np.ndarray] | None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits [T, vocab] of the file's graph, and its caches behind the tokens in the order in which they go in."""
    graph, interface = tensors.graph, tensors.interface
    found = evaluate_onnx(graph, interface.feeds(tokens, past, caches), graph.outputs)
    others = [found[name] for name in graph.outputs if name != tensors.logits]
    grown = [array for array in others if array.ndim == 4] if interface.caches else []
    if len(grown) != len(interface.caches):
        what = f"{len(interface.caches)} caches go in, and {len(grown)} come out"
        raise Unsupported(what, where=str(graph.path))
    return found[tensors.logits].reshape(len(tokens), -1), grown


def _same(tensors: OnnxTensors, found: np.ndarray, expected: np.ndarray) -> None:
    error, most = float(abs(found - expected).max()), float(abs(found).max())
    if not error <= CLOSE * most:
        what = f"the decoder read from the graph has other logits than the graph: {error:.3g} of {most:.3g} apart"
        fix = "export the model again, or use its Hugging Face folder"
        raise Unsupported(what, where=str(tensors.graph.path), fix=fix)
