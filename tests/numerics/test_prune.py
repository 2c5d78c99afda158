"""Pruning: codes that have the structure they claim, errors below those of dropping what is smallest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openlpu._base.errors import BadRequest
from openlpu.arch.truepoint import sparse
from openlpu.arch.truepoint.draw import normal
from openlpu.checkpoint.folder import load
from openlpu.compile import runners
from openlpu.graph import build
from openlpu.graph.ir import Graph
from openlpu.numerics import prune
from openlpu.numerics.feedback import Factor
from openlpu.numerics.integer import integer
from openlpu.numerics.scheme import Scheme
from openlpu.numerics.widths import bits

Coded = dict[str, np.ndarray]
SIZES = st.tuples(st.integers(1, 70), st.integers(1, 50))
WEIGHTS = SIZES.flatmap(lambda size: arrays(np.float32, size, elements=st.floats(-1e4, 1e4, width=32)))
HOW = st.sampled_from(["2:4", "blocks:0.5", "blocks:0.2", "blocks:0.99"])


def check_form(coded: Coded, how: str) -> None:
    codes, k = coded["codes"], coded["codes"].shape[1]
    attrs = Scheme(prune=how).sparse(k)
    assert codes.dtype == np.int8 and np.abs(codes.astype(int)).max() <= 127
    assert np.isfinite(coded["scale"]).all() and (coded["scale"] > 0).all()
    if attrs["sparse"] == sparse.PAIRS:
        assert sparse.is_pairs(codes)
    else:
        assert (sparse.tiles(codes).sum(axis=1) <= attrs["tiles"]).all()


@given(WEIGHTS, HOW)
@settings(max_examples=100, deadline=None)
def test_the_smallest_go(weight: np.ndarray, how: str) -> None:
    """And what stays is rounded as ever."""
    coded = prune.smallest(weight, **Scheme(prune=how).sparse(weight.shape[1]))  # pyright: ignore
    check_form(coded, how)
    off = np.abs(coded["codes"] * coded["scale"][:, None].astype(np.float64) - weight)
    stays = coded["codes"] != 0
    assert (off <= np.abs(weight).max(axis=1, keepdims=True) * (0.51 / 127) + 1e-30)[stays].all()


@given(WEIGHTS, HOW, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_feedback_keeps_the_structure(weight: np.ndarray, how: str, seed: int) -> None:
    """With any inputs: correlated, loud, silent, of few tokens."""
    k = weight.shape[1]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rng.integers(1, 9), k)) * 10.0 ** rng.integers(-8, 8, k)
    x[:, rng.random(k) < 0.2] = 0
    factor = Factor((x.T @ x).astype(np.float32))
    check_form(prune.fit(weight, [factor], **Scheme(prune=how).sparse(k)), how)  # pyright: ignore


def output_error(coded: Coded, weight: np.ndarray, x: np.ndarray) -> float:
    value = coded["codes"] * coded["scale"][:, None].astype(np.float64)
    return float((((value - weight) @ x.T.astype(np.float64)) ** 2).sum())


@pytest.mark.parametrize("window", [208, 128])
@pytest.mark.parametrize("how", ["2:4", "blocks:0.5", "blocks:0.25"])
def test_feedback_lowers_the_output_error(how: str, window: int) -> None:
    """Inputs that move together, channels of different loudness, in one window or two."""
    n, k, tokens = 64, 200, 600
    weight, few = normal("prune.w", (n, k)), normal("prune.x", (tokens, 24))
    x = few @ normal("prune.mix", (24, k)) + normal("prune.noise", (tokens, k))
    x = x * np.exp(normal("prune.loud", k))
    whole = (x.T @ x).astype(np.float32)
    factors = [Factor(whole[at : at + window, at : at + window]) for at in range(0, k, window)]
    attrs = Scheme(prune=how).sparse(k)
    coded, plain = prune.fit(weight, factors, **attrs), prune.smallest(weight, **attrs)  # pyright: ignore
    assert output_error(coded, weight, x) < 0.35 * output_error(plain, weight, x)


def test_every_pair_of_a_quad_can_stay() -> None:
    """The pair that stays is the best of the six when nothing else can make up for it."""
    weight = normal("prune.quads", (64, 16))
    coded = prune.fit(weight, [Factor(np.eye(16, dtype=np.float32))], sparse.PAIRS)
    kept = (coded["codes"] != 0).reshape(-1, 4)
    order = np.argsort(-np.abs(weight.reshape(-1, 4)), axis=1)[:, :2]
    assert all(set(np.flatnonzero(row)) == set(best) for row, best in zip(kept, order, strict=True))
    assert len({tuple(row) for row in kept}) == 6


def test_a_pruned_model_says_so(models: Path) -> None:
    """Linears of the layers have the attribute, the head has not, and bits count what stays."""
    graph = build(load(models / "qwen2"))
    plain = integer(graph, Scheme(), runners())
    for how in ("2:4", "blocks:0.5"):
        made = integer(graph, Scheme(prune=how), runners())
        for node in made.nodes:
            if node.op == "linear" and "sparse" in node.attrs:
                check_form({"codes": made.params[node.params["codes"]], "scale": np.ones(1)}, how)
        assert {n.where for n in made.nodes if n.op == "linear" and "sparse" not in n.attrs} == {"head"}
        assert bits(made) < bits(plain)
        assert structure(made) == structure(plain)


def structure(graph: Graph) -> list[tuple[str, tuple[str, ...], str]]:
    return [(n.op, n.inputs, n.output) for n in graph.nodes]


@pytest.mark.parametrize("how", ["4:8", "blocks", "blocks:0", "blocks:1", "blocks:x", "tiles:0.5"])
def test_other_ways_are_refused(how: str) -> None:
    with pytest.raises(BadRequest, match="is no way to prune"):
        Scheme(prune=how)


def test_pruned_weights_have_eight_bits() -> None:
    with pytest.raises(BadRequest, match="pruned weights have 8 bits"):
        Scheme(prune="2:4", weight_bits=4.5)
