"""Codes, planes and the exact sums over them: ranges, agreement with Python integers, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import scalar
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu._base.errors import NumericsError
from openlpu.arch import truepoint as tp
from openlpu.arch.truepoint import codes as c
from openlpu.arch.truepoint.draw import floats, integers, normal

SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 10**9)


def vectors(seed: int, rows: int, k: int) -> np.ndarray:
    """Rows of very different size; some zeros, some outliers."""
    x = np.ldexp(floats(f"rows{seed}", (rows, k), -8, 3), integers(f"size{seed}", (rows, 1), -70, 40))
    return np.where(integers(f"zero{seed}", (rows, k), 0, 9) == 0, np.float32(0), x)


def test_every_code_splits_into_signed_bytes():
    codes = np.arange(-c.WIDE_MAX, c.WIDE_MAX + 1).astype(np.int16)
    high, low = tp.planes(codes)
    assert (high * 256 + low == codes).all()
    assert (high.min(), high.max()) == (-127, 127)
    assert (low.min(), low.max()) == (-128, 127)


@settings(max_examples=150, deadline=None)
@given(SEEDS, SIZES, st.floats(0, 1))
def test_quantize_needs_no_clipping_and_errs_by_half_a_step(seed, k, share):
    x, wide = vectors(seed, 4, k), round(share * k)
    q = tp.quantize(x, wide)
    assert np.abs(q.codes[:, :wide].astype(int)).max(initial=0) <= c.WIDE_MAX
    assert np.abs(q.codes[:, wide:].astype(int)).max(initial=0) <= c.NARROW_MAX
    step = q.scale.astype(float)
    assert (np.abs(q.codes * step - x) <= step * 0.52).all()


@settings(max_examples=100, deadline=None)
@given(SEEDS, SIZES)
def test_nibbles_equal_the_scalar_definition_and_err_by_a_step_at_most(seed, k):
    x = vectors(seed, 4, k)
    q = c.quantize_nibbles(x)
    for i in range(len(x)):
        codes, scale = scalar.quantize_nibbles(list(x[i]))
        assert q.codes[i].tolist() == codes and q.scale[i, 0] == scale
    assert (q.codes.max(axis=1) - q.codes.min(axis=1) <= 15).all() and np.abs(q.codes).max() <= 15
    step = q.scale.astype(float)
    assert (np.abs(q.codes * step - x) <= step * 1.01).all()


@settings(max_examples=60, deadline=None)
@given(SEEDS, SIZES, st.floats(0, 1))
def test_quantize_and_rms_equal_the_scalar_definition(seed, k, share):
    x, wide = vectors(seed, 2, k), round(share * k)
    q = tp.quantize(x, wide)
    factor = tp.rms_scale(q, np.float32(1e-6))
    for row in range(2):
        codes, scale = scalar.quantize(list(x[row]), wide)
        assert codes == q.codes[row].tolist() and scale == q.scale[row, 0]
        assert factor[row, 0] == scalar.rms(codes, scale, np.float32(1e-6))


@settings(max_examples=60, deadline=None)
@given(SEEDS, SIZES, st.floats(0, 1), st.booleans())
def test_linear_equals_the_scalar_definition(seed, k, share, bias):
    q = tp.quantize(vectors(seed, 2, k), round(share * k))
    w = integers(f"w{seed}", (3, k), -127, 127).astype(np.int8)
    row, b = np.abs(floats(f"r{seed}", 3, -10, 2)), floats(f"b{seed}", 3, -10, 2) if bias else None
    y = tp.linear(q, w, row, b)
    for t in range(2):
        for n in range(3):
            given_bias = None if b is None else b[n]
            want = scalar.linear(q.codes[t].tolist(), q.scale[t, 0], w[n].tolist(), row[n], given_bias)
            assert y[t, n].tobytes() == want.tobytes()


@pytest.mark.parametrize("code", [127, -127, 128, c.WIDE_MAX, -c.WIDE_MAX])
def test_the_longest_vector_stays_inside_int32(code):
    """K = 131,071 with every code at an end of its range: sums equal Python's integers."""
    k, weight = c.MAX_K, 127
    wide = 0 if abs(code) <= 127 else k
    q = tp.Codes(np.full((1, k), code, np.int16), np.ones((1, 1), np.float32), wide)
    y = tp.linear(q, np.full((1, k), weight, np.int8), np.ones(1, np.float32), None)
    high, low = scalar.planes(code)
    assert y[0, 0] == np.float32(high * weight * k) * np.float32(256) + np.float32(low * weight * k)
    exact = np.float32(code) ** 2
    assert tp.rms_scale(q, np.float32(1e-6))[0, 0] == pytest.approx(1 / np.sqrt(exact), rel=1e-6)


def test_one_channel_more_is_refused():
    q = tp.Codes(np.zeros((1, c.MAX_K + 1), np.int16), np.ones((1, 1), np.float32), 0)
    with pytest.raises(AssertionError, match="131,071"):
        tp.rms_scale(q, np.float32(1e-6))


def test_zero_vector_has_the_floor_scale_and_no_nan():
    q = tp.quantize(np.zeros((1, 8), np.float32), 3)
    assert q.scale[0, 0] == c.SCALE_FLOOR and not q.codes.any()
    assert np.isfinite(tp.rms_scale(q, np.float32(1e-6))).all()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 2.0**50, -(2.0**60)])
def test_what_could_overflow_later_is_refused(bad):
    x = normal("refused", (3, 9))
    x[1, 4] = bad
    with pytest.raises(NumericsError, match=r"2\*\*50"):
        tp.quantize(x, 2)


def test_outliers_in_wide_channels_cost_the_others_nothing():
    """N(0, 1), 1 % of channels times 100: with those channels wide, the rest keep their codes to the bit."""
    k = 400
    x = normal("layer", (16, k))
    spoiled = x.copy()
    spoiled[:, :4] *= np.float32(100)
    calm, loud = tp.quantize(x, 4), tp.quantize(spoiled, 4)
    assert (calm.scale == loud.scale).all() and (calm.codes[:, 4:] == loud.codes[:, 4:]).all()
