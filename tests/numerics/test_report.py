"""Accuracy reports: windows, losses, errors per layer; the limits on the real model where it is present."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rewriting import spoiled

from openlpu._base.errors import BadRequest
from openlpu.checkpoint.folder import load
from openlpu.compile import runners
from openlpu.graph import build
from openlpu.graph.evaluate import evaluate
from openlpu.numerics import report
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.target.ref.run import trace


def test_windows_of_one_and_of_several_documents() -> None:
    assert report.windows([[5, 6, 7, 8, 9]], 1, size=3) == [[1, 5, 6], [1, 7, 8], [1, 9]]
    assert report.windows([[5, 6, 7], [8]], 1, size=3) == [[1, 5, 6], [1, 8]]
    assert report.windows([[5, 6, 7, 8]], None, size=3) == [[5, 6, 7]]
    with pytest.raises(BadRequest):
        report.windows([[]], 1)


def test_loss_of_even_odds_is_log_of_the_vocabulary() -> None:
    got = report.losses(lambda ids: np.zeros((len(ids), 8), np.float32), [[0, 3, 7]])
    np.testing.assert_allclose(got, np.log([8, 8]))


@pytest.mark.parametrize("name", ["smollm", "qwen2", "qwen3"])
def test_layers_of_the_integer_model_stay_near_the_float_model(models: Path, name: str) -> None:
    graph = build(load(models / name))
    texts = [list(range(3, 40))]
    found = report.measure(graph, texts, runners(), [Scheme(), Scheme(kv_bits=16, outlier_share=1.0)])
    assert [e.where for e in found.layers][0] == "embed.out"
    assert len(found.layers) == graph.config.layers + 2 and found.tokens == 36
    assert all(0 < e.error < 0.05 for e in found.layers), found.layers
    assert abs(found.formats[0].excess) < 0.05, "36 tokens of a random model"


def stories(shared: Path, count: int) -> tuple[Path, list]:
    folder = shared / "models" / "stories260K"
    text = (shared / "data" / "tinystories-valid-part-a.txt").read_text("utf-8")
    documents = [d.strip() for d in text.split("<|endoftext|>") if d.strip()][:count]
    tokenizer = load(folder).tokenizer
    return folder, report.windows([tokenizer.encode(d, special=False) for d in documents], 1)


@pytest.mark.parametrize("rewrite", [False, True], ids=["as trained", "rewritten"])
@pytest.mark.parametrize(("bits", "limit"), [(8, 35e-4), (16, 20e-4)])
def test_perplexity_of_a_trained_model(shared: Path, bits: int, limit: float, rewrite: bool) -> None:
    """Eight of the thousand stories, by the mean KL divergence from fp32, which needs few tokens to settle.

    ``docs/05-numerics.md`` has the perplexities over all of them.  A mean divergence of d raises the expected
    loss of text that the model itself would write by d.
    """
    folder, texts = stories(shared, 8)
    graph = build(load(folder))
    scheme = Scheme(kv_bits=bits)
    ready = lower(prepare(spoiled(graph) if rewrite else graph, scheme, trace), scheme)
    total = count = 0.0
    for ids in texts:
        exact = log_softmax(evaluate(graph, ids))
        coded = log_softmax(trace(ready, ids, lambda node, value: None))
        total += (np.exp(exact) * (exact - coded)).sum()
        count += len(exact)
    assert total / count < 1.4 * limit
    assert total > 0


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True).astype(np.float64)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
