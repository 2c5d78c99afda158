"""4-bit rounding: codes that blocks expand to, errors below those of simpler ways, and the budget of bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openlpu._base.errors import BadRequest, NumericsError
from openlpu._base.progress import silent
from openlpu.arch.truepoint import blocks as tp
from openlpu.arch.truepoint.draw import integers, normal
from openlpu.checkpoint.folder import load
from openlpu.compile import runners
from openlpu.graph import build
from openlpu.graph.ir import Graph
from openlpu.numerics import blocks, feedback, widths
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.integer import Runners, integer
from openlpu.numerics.lower import folded, lower
from openlpu.numerics.moments import moments
from openlpu.numerics.scheme import Scheme
from openlpu.target.cpu.rounding import Rounder
from openlpu.target.ref.run import trace

SPEECH = """Now is the winter of our discontent
Made glorious summer by this sun of York;
And all the clouds that lour'd upon our house
In the deep bosom of the ocean buried.
Now are our brows bound with victorious wreaths;
Our bruised arms hung up for monuments;
Our stern alarums changed to merry meetings,
Our dreadful marches to delightful measures.
"""

Coded = dict[str, np.ndarray]
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 40))
WEIGHTS = SIZES.flatmap(lambda size: arrays(np.float32, size, elements=st.floats(-1e4, 1e4, width=32)))


def value(coded: Coded) -> np.ndarray:
    return coded["codes"] * coded["scale"][:, None].astype(np.float64)


def check_form(coded: Coded) -> None:
    """Codes within ±127 that are what their blocks expand to."""
    assert np.abs(coded["codes"].astype(int)).max() <= 127
    q = tp.split(coded["codes"], coded["blocks"])
    assert np.array_equal(tp.expand(q, coded["blocks"]), coded["codes"])
    assert np.isfinite(coded["scale"]).all() and (coded["scale"] > 0).all()


@given(WEIGHTS)
@settings(max_examples=150, deadline=None)
def test_any_weights_become_blocks(weight: np.ndarray) -> None:
    """A row's mean error is at most what the largest step loses at the end of the widest block."""
    coded = blocks.fit(weight)
    check_form(coded)
    off = np.sqrt(((value(coded) - weight) ** 2).mean(axis=1))
    assert (off <= np.abs(weight).max(axis=1) * (127 - 7 * 15) / 127 + 1e-25).all()


@given(WEIGHTS, st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_feedback_keeps_the_form(weight: np.ndarray, seed: int) -> None:
    """With any inputs: correlated, loud, silent, of few tokens."""
    k = weight.shape[1]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rng.integers(1, 9), k)) * 10.0 ** rng.integers(-8, 8, k)
    x[:, rng.random(k) < 0.2] = 0
    check_form(feedback.fit(weight, [Rounder(feedback.Factor((x.T @ x).astype(np.float32)))]))


def naive(weight: np.ndarray) -> np.ndarray:
    """Each block's codes between its own ends with the smallest step that reaches; no search."""
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    out = np.zeros(weight.shape)
    for row, at in np.ndindex(len(weight), tp.count(weight.shape[1])):
        part = slice(16 * at, 16 * at + 16)
        t = weight[row, part] / scale[row]
        step = np.clip(np.ceil((max(t.max(), 0) - min(t.min(), 0)) / 15), 1, 15)
        zero = np.clip(np.rint(-min(t.min(), 0) / step), 0, 15)
        most = 127 // step
        out[row, part] = np.clip(np.rint(t / step), max(-zero, -most), min(15 - zero, most)) * step * scale[row]
    return out


def exhaustive(t: np.ndarray) -> np.ndarray:
    """The least squared error of each column of t [16, n] over every step and zero."""
    best = np.full(t.shape[1], np.inf)
    for step in range(1, 16):
        for zero in range(16):
            most = 127 // step
            code = np.clip(np.rint(t / step), max(-zero, -most), min(15 - zero, most)) * step
            best = np.minimum(best, ((code - t) ** 2).sum(axis=0))
    return best


def test_search_is_better_than_none_and_near_the_best() -> None:
    weight = normal("blocks", (48, 320))
    coded = blocks.fit(weight)
    error = ((value(coded) - weight) ** 2).sum()
    assert error < 0.95 * ((naive(weight) - weight) ** 2).sum()
    t = blocks.to_blocks(weight / (np.abs(weight).max(axis=1, keepdims=True) / np.float32(127))).reshape(16, -1)
    found = blocks.search(t)[2]
    best = exhaustive(t.astype(np.float64))
    assert (found > best - 1e-2).all() and found.sum() < 1.01 * best.sum()


def output_error(coded: Coded, weight: np.ndarray, x: np.ndarray) -> float:
    return float((((value(coded) - weight) @ x.T.astype(np.float64)) ** 2).sum())


@pytest.mark.parametrize("window", [208, 128])
def test_feedback_lowers_the_output_error(window: int) -> None:
    """Inputs that move together: less than half the error; on inputs that do not, it loses little."""
    n, k, tokens = 24, 200, 600
    weight, few = normal("feedback.w", (n, k)), normal("feedback.x", (tokens, 24))
    x = few @ normal("feedback.mix", (24, k)) + normal("feedback.noise", (tokens, k))
    for inputs, share in ((x, 0.5), (normal("feedback.white", (tokens, k)), 1.1)):
        whole = inputs.T @ inputs
        windows = [whole[at : at + window, at : at + window] for at in range(0, k, window)]
        coded = feedback.fit(weight, [Rounder(feedback.Factor(part)) for part in windows])
        check_form(coded)
        assert output_error(coded, weight, inputs) < share * output_error(blocks.fit(weight), weight, inputs)


def test_factor_is_one_of_the_moments() -> None:
    """U D Uᵀ is the damped moment, channels of all magnitudes; a silent channel costs nothing."""
    k = 300
    x = normal("factor.x", (500, k)) + normal("factor.common", (500, 1))
    x *= np.float32(10) ** integers("factor.size", k, -4, 4).astype(np.float32)
    x[:, 7] = 0
    moment = (x.T @ x).astype(np.float32)
    factor = feedback.Factor(moment)
    upper = factor.upper[:k, :k] * 2.0**-feedback.FEEDBACK_BITS
    made = (upper * factor.cost[:k]) @ upper.T * np.outer(factor.unit[:k], factor.unit[:k])
    want = moment * (1 + feedback.DAMPING * np.eye(k))
    size = np.sqrt(np.maximum(np.diag(want), 1e-30))
    assert np.abs((made - want) / np.outer(size, size)).max() < 1e-2
    assert factor.cost[7] == 0 and (np.delete(factor.cost[:k], 7) > 0).all()


def test_moments_are_sums_of_what_linears_read(models: Path) -> None:
    graph = build(load(models / "qwen2"))
    made = lower(prepare(graph, Scheme(), trace), Scheme())
    texts, seen = [[1, 2, 3, 4], [5, 6, 7]], {}
    found = moments(made, trace, texts, silent)
    for text in texts:
        trace(made, text, lambda node, q: seen.setdefault(node.output, []).append(q))
    for name, (window,) in found.items():
        x = np.concatenate([q.codes * q.scale.astype(np.float64) for q in seen[name]])
        most = np.abs(x).max(axis=0)
        assert (np.abs(window - x.T @ x) <= len(x) * np.outer(most, most) * 2**-7).all()
    assert set(found) == {node.inputs[0] for node in made.nodes if node.op == "linear"}


def sizes(graph: Graph) -> tuple[float, set[str]]:
    wide = {n.params["codes"] for n in graph.nodes if "codes" in n.params and "blocks" not in n.params}
    return widths.bits(graph), wide


def test_bits_are_counted_with_scales_and_blocks() -> None:
    graph = build(load("demo"))
    eight, four = (lower(graph, Scheme(weight_bits=b)) for b in (8, 4.5))
    rows = sum(four.params[n.params["codes"]].shape[0] for n in four.nodes if n.op in ("embed", "linear")) - 1024
    weights = sum(eight.params[name].size for name in eight.params if name.endswith(".codes"))
    assert sizes(eight)[0] == 8 + 32 * rows / weights
    assert sizes(four) == (4.5 + 32 * rows / weights, set())


def test_a_budget_buys_the_dearest_matrices_first(models: Path) -> None:
    """More bits keep more matrices, never over budget; a model of no more than it has bits for stays 4-bit."""
    graph = build(load(models / "qwen2"))
    eight, four = (lower(graph, Scheme(weight_bits=b, outlier_share=1.0)) for b in (8, 4.5))
    low, high = sizes(four)[0], sizes(eight)[0]
    nodes = {n.params["codes"]: n for n in four.nodes if "codes" in n.params}
    size = sum(four.params[name].size for name in nodes)
    for share in (0.2, 0.5, 1.0):
        kept = widths.choose(eight, four, low + share * (high - low) + 1e-9, trace, [[1, 2, 3, 4, 5, 6]], silent)
        blocks_of = {name: four.params[nodes[name].params["blocks"]].size for name in kept}
        extra = sum(4 * four.params[name].size - 8 * blocks_of[name] for name in kept) / size
        assert 0 < extra <= share * (high - low) + 1e-6
        assert share < 1 or kept == set(nodes)
    assert not widths.choose(eight, four, low, trace, [[1, 2, 3]], silent)
    with pytest.raises(BadRequest, match="at least"):
        widths.choose(eight, four, low - 0.01, trace, [[1, 2, 3]], silent)


def test_divergence_is_that_of_the_probabilities() -> None:
    want = normal("divergence.want", (40, 300)) * np.float32(2)
    got = want + normal("divergence.off", (40, 300)) * np.float32(0.05)
    p, q = (np.exp(x.astype(np.float64)) for x in (want, got))
    p, q = (e / e.sum(axis=1, keepdims=True) for e in (p, q))
    exact = (p * np.log(p / q)).sum()
    assert widths.divergence(want, got) == pytest.approx(exact, rel=0.05)
    assert widths.divergence(want, want + np.float32(3)) == 0


def test_a_model_of_few_bits_runs_and_is_nearer_with_feedback() -> None:
    """The demo model's first layers: logits on a text are nearer to 8 bits' than after plain rounding."""
    checkpoint = load("demo")
    graph = build(checkpoint).truncate(2)
    scheme = Scheme(weight_bits=4.5)
    made = integer(graph, scheme, runners())
    assert sizes(made) == (widths.bits(lower(graph, scheme)), set())
    ready = prepare(graph, scheme, trace)
    text = checkpoint.tokenizer.encode(SPEECH)
    want, plain, got = (
        trace(g, text, lambda node, q: None) for g in (lower(ready, Scheme()), lower(ready, scheme), made)
    )
    assert widths.divergence(want, got) < 0.8 * widths.divergence(want, plain)


def test_weights_that_are_not_finite_are_refused() -> None:
    graph = build(load("demo")).truncate(1)
    name = next(n.params["weight"] for n in graph.nodes if n.op == "linear")
    bad = graph.params[name].astype(np.float32)
    bad[3, 5] = np.nan
    broken = type(graph)(**(vars(graph) | {"params": {**graph.params, name: bad}}))
    with pytest.raises(NumericsError, match="not finite"):
        folded(broken, name, None)


@pytest.mark.parametrize("wrong", [{"kv_bits": 5}, {"outlier_share": -0.1}, {"outlier_share": 1.5}])
def test_a_scheme_that_means_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(BadRequest):
        Scheme(**wrong)


def test_a_budget_that_cannot_be_met_is_refused_before_any_work(models: Path) -> None:
    def write(*_: object) -> list:
        raise AssertionError("texts were written first")

    with pytest.raises(BadRequest, match="at least"):
        integer(build(load(models / "qwen2")), Scheme(weight_bits=4.51), Runners(trace, write))


@pytest.mark.parametrize("bits", [4.4, 8.1, float("nan")])
def test_bits_out_of_range_are_refused(bits: float) -> None:
    with pytest.raises(BadRequest, match="out of range"):
        Scheme(weight_bits=bits)
