"""Routing: agreement with the scalar definition, ties, and experts that are masked instead of left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scalar
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu._base.errors import NumericsError
from openlpu.arch import truepoint as tp
from openlpu.arch.truepoint.draw import floats, integers, normal

SEEDS = st.integers(0, 10**9)


def logits(seed: int, rows: int, experts: int) -> np.ndarray:
    """Rows of very different spread, with ties and zeros of both signs."""
    x = np.ldexp(floats(f"rows{seed}", (rows, experts), -3, 3), integers(f"size{seed}", (rows, 1), -9, 9))
    kind = integers(f"kind{seed}", x.shape, 0, 5)
    return np.where(kind == 0, np.float32(0), np.where(kind == 1, np.float32(-0.0), x)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(1, 12), st.data())
def test_route_equals_the_scalar_definition(seed, experts, data):
    chosen, x = data.draw(st.integers(1, experts)), logits(seed, 3, experts)
    weights = tp.route(x, chosen)
    for row, got in zip(x, weights, strict=True):
        assert [w.tobytes() for w in got] == [f32.tobytes() for f32 in scalar.route(list(row), chosen)]
    assert (np.count_nonzero(weights, axis=1) <= chosen).all()
    assert np.abs(weights.sum(axis=1) - 1).max() < 1e-5


def test_equal_logits_choose_the_lower_expert():
    x = np.array([[1, 2, 2, 2], [0, -0.0, -1, 0]], np.float32)
    assert (tp.route(x, 2) != 0).tolist() == [[False, True, True, False], [True, True, False, False]]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 2.0**50])
def test_a_logit_that_is_not_finite_is_refused(wrong):
    with pytest.raises(NumericsError, match="NaN, an infinity"):
        tp.route(np.array([[0, wrong, 1]], np.float32), 2)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 6), st.data())
def test_masked_experts_change_no_bit(seed, experts, data):
    """All experts computed on masked inputs, against only those a token has chosen on its own codes."""
    chosen, k, n = data.draw(st.integers(1, experts)), 9, 5
    q = tp.quantize(normal(f"x{seed}", (4, k)) * np.float32(30), 2)
    weights = tp.route(logits(seed, 4, experts), chosen)
    matrix = integers(f"w{seed}", (experts, 2 * n, k), -127, 127).astype(np.int8)
    down = integers(f"d{seed}", (experts, k, n), -127, 127).astype(np.int8)
    row = np.abs(floats(f"r{seed}", 2 * n, -9, 9))

    def expert(e: int, codes: tp.Codes) -> np.ndarray:
        gate, up = np.split(tp.linear(codes, matrix[e], row, None), 2, axis=1)
        return tp.linear(tp.quantize(tp.silu(gate) * up, 1), down[e], row[:1].repeat(k), None)

    whole = tp.mix(weights, [expert(e, tp.select(q, weights[:, e, None])) for e in range(experts)])
    for t in range(4):
        mine = replace(q, codes=q.codes[t, None], scale=q.scale[t, None])
        outputs = [expert(e, mine)[0] if weights[t, e] else None for e in range(experts)]
        got = scalar.mix(list(weights[t]), [np.zeros(k) if y is None else list(y) for y in outputs])
        assert np.array(got, np.float32).tobytes() == whole[t].tobytes()
