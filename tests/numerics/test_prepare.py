"""Equalizing and reordering: the same function, the same codes for a rewritten model, outliers in front."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rewriting import spoiled

from openlpu._base.errors import NumericsError
from openlpu.arch.truepoint.draw import integers, normal
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.graph.evaluate import evaluate
from openlpu.graph.ir import Graph, Node
from openlpu.numerics import calibrate
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.equalize import equalize
from openlpu.numerics.lower import lower, quantize_rows
from openlpu.numerics.rewrite import rewritten, scale_rows
from openlpu.numerics.scheme import Scheme
from openlpu.target.ref.run import trace

NAMES = ("smollm", "qwen2", "qwen3", "llama3", "mistral")
IDS = integers("prepare", 24, 0, 60).tolist()


@pytest.fixture(params=NAMES)
def graph(request: pytest.FixtureRequest, models: Path) -> Graph:
    folder = models / request.param
    if not folder.is_dir():
        pytest.skip(f"no tiny model {request.param}")
    return build(load(folder))


def ignore(node: Node, value: object) -> None:
    """An observer that looks at nothing."""


def test_prepared_graph_is_the_same_function(graph: Graph) -> None:
    want, got = evaluate(graph, IDS), evaluate(prepare(graph, Scheme(outlier_share=0.1), trace), IDS)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-4 * np.abs(want).max())


def test_a_rewritten_model_gets_the_same_codes(graph: Graph) -> None:
    """Up to the rounding of its own fp32 weights: no code moves by more than one, hardly any moves."""
    plain, other = (lower(equalize(g), Scheme()) for g in (graph, spoiled(graph)))
    for name, codes in plain.params.items():
        if name.endswith(".codes"):
            moved = np.abs(codes.astype(int) - other.params[name])
            assert moved.max() <= 1 and moved.mean() < 2e-3, name


def test_a_rewritten_model_loses_nothing(graph: Graph) -> None:
    want = evaluate(graph, IDS)
    errors = [
        np.linalg.norm(trace(lower(prepare(g, Scheme(), trace), Scheme()), IDS, ignore) - want)
        for g in (graph, spoiled(graph))
    ]
    assert errors[1] < 1.3 * errors[0]


def test_without_equalizing_it_would_lose_much(models: Path) -> None:
    """The test above can fail: the same rewriting, lowered as it stands, is several times worse."""
    graph = build(load(models / "qwen2"))
    want = evaluate(graph, IDS)
    bare = np.linalg.norm(trace(lower(spoiled(graph), Scheme()), IDS, ignore) - want)
    ready = np.linalg.norm(trace(lower(prepare(spoiled(graph), Scheme(), trace), Scheme()), IDS, ignore) - want)
    assert bare > 2 * ready


def test_dominant_channels_come_first(models: Path) -> None:
    """Channels of the residual that o and down write 100 times louder are the leading ones afterwards."""
    graph = build(load(models / "qwen2"))
    hidden, loud = graph.config.hidden, [5, 11]
    factor = np.ones(hidden, np.float32)
    factor[loud] = 100
    makers = graph.producers()
    rules = {
        key: scale_rows(factor)
        for node in graph.nodes if node.op == "add" for key in makers[node.inputs[1]].params.values()
    }
    spiky = rewritten(graph, rules)
    table = spiky.nodes[0].params["weight"]
    before = spiky.params[table].astype(np.float32)
    after = prepare(spiky, Scheme(outlier_share=2 / hidden), trace).params[table].astype(np.float32)
    assert {tuple(c) for c in after[:, :2].T} == {tuple(before[:, c]) for c in loud}


def test_layer_with_outlier_inputs() -> None:
    """N(0, 1) inputs, 1 % of channels times 100: at most three times the error without, their own part left out.

    The channels stand where they happen to; calibration on other inputs finds them.
    """
    from openlpu.arch import truepoint as tp

    k, n, rows = 512, 96, 64
    wide = int(np.ceil(k * Scheme().outlier_share))
    x, w = normal("layer.x", (rows, k)), normal("layer.w", (n, k))
    loud = np.unique(integers("layer.loud", 5, 0, k - 1))
    spiky = x.copy()
    spiky[:, loud] *= np.float32(100)
    order = calibrate.front((tp.quantize(spiky[:32], 0).codes.astype(np.int64) ** 4).sum(axis=0))
    assert set(loud) == set(order[: len(loud)])
    quiet = np.setdiff1d(np.arange(k), loud)
    errors = []
    for inputs in (x, spiky):
        codes, scale = quantize_rows(w[:, order])
        q = tp.quantize(inputs[32:, order], wide)
        weight = codes * scale[:, None].astype(float)
        seen = q.codes * q.scale.astype(float)
        kept = np.isin(order, quiet)
        want = inputs[32:, order][:, kept].astype(float) @ w[:, order][:, kept].T.astype(float)
        errors.append(np.linalg.norm(seen[:, kept] @ weight[:, kept].T - want) / np.linalg.norm(want))
    assert errors[1] <= 3 * errors[0]
    narrow = tp.quantize(spiky[32:], 0)
    worse = np.linalg.norm((narrow.codes * narrow.scale - spiky[32:])[:, quiet]) / np.linalg.norm(spiky[32:, quiet])
    assert worse > 3 * errors[0], "with one plane the limit would not hold"


def test_quantized_rows_err_by_half_a_step() -> None:
    """More rows than are taken at a time; a zero row; the largest weight of a row is exactly 127."""
    w, gain = normal("rows", (5000, 7)), normal("rows.gain", 7)
    w[3] = 0
    codes, scale = quantize_rows(w, gain)
    exact = w.astype(float) * gain.astype(float)
    assert (np.abs(codes * scale[:, None].astype(float) - exact) <= scale[:, None] * 0.5001).all()
    assert (np.delete(np.abs(codes.astype(int)).max(axis=1), 3) == 127).all() and not codes[3].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    w = normal("bad", (4, 4))
    w[2, 1] = bad
    with pytest.raises(NumericsError, match="not finite"):
        quantize_rows(w)


def test_centres_do_not_change_the_function(graph: Graph):
    """Float evaluation ignores a centre; without one the integer model differs by no more than codes do."""
    scheme = Scheme(kv_bits=4)
    ready = prepare(graph, scheme, trace)
    centres = [n.params["centre"] for n in ready.nodes if n.op == "attention"]
    assert len(centres) == graph.config.layers and all(np.isfinite(ready.params[key]).all() for key in centres)
    assert np.abs(evaluate(ready, IDS) - evaluate(graph, IDS)).max() < 1e-3
    assert all("centre" not in n.params for n in prepare(graph, Scheme(), trace).nodes)


def test_centres_take_most_of_what_4_bit_keys_cost(shared: Path):
    """stories260K, whose slowly turning channels have large offsets: less than half the error of the logits."""
    graph, scheme = build(load(shared / "models" / "stories260K")), Scheme(kv_bits=4)
    ids = [1, *integers("centre", 300, 3, 511).tolist()]
    exact, errors = evaluate(graph, ids), []
    for made in (scheme, Scheme()):  # calibrated for a 4-bit cache, or without centres
        logits = trace(lower(prepare(graph, made, trace), scheme), ids, ignore)
        errors.append(np.square(logits - exact).mean())
    assert errors[0] < errors[1] / 2
