"""exp, rsqrt, reciprocal, sigmoid, tanh: error bounds against Decimal, edge values, the same bits one at a time."""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalar import exp, reciprocal, rsqrt, silu, swiglu, tanh

from openlpu.arch import truepoint as tp

EXACT = Context(prec=40)
ONE = Decimal(1)


def floats(low, high):
    return st.floats(low, high, width=32, allow_subnormal=False).map(np.float32)


def error(got, want: Decimal) -> float:
    return float(abs(Decimal(float(got)) / want - 1))


def one(function, x) -> np.float32:
    return function(np.array([x], np.float32))[0]


def e(x) -> Decimal:
    return EXACT.exp(Decimal(float(x)))


@settings(max_examples=300, deadline=None)
@given(floats(-87, 84))
def test_exp_error(x):
    assert error(one(tp.exp, x), e(x)) < 1.1e-7


@settings(max_examples=300, deadline=None)
@given(floats(2.0**-124, 2.0**124))
def test_rsqrt_and_reciprocal_error(x):
    exact = Decimal(float(x))
    assert error(one(tp.rsqrt, x), ONE / EXACT.sqrt(exact)) < 1.6e-7
    assert error(one(tp.reciprocal, x), ONE / exact) < 3.6e-7


@settings(max_examples=300, deadline=None)
@given(floats(-84, 200))
def test_sigmoid_error(x):
    assert error(one(tp.sigmoid, x), ONE / (1 + e(-x))) < 5e-7


@settings(max_examples=300, deadline=None)
@given(floats(-60, 60))
def test_tanh_error(x):
    assert abs(Decimal(float(one(tp.tanh, x))) - (1 - 2 / (1 + e(2 * float(x))))) < Decimal("1e-6")


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32, allow_nan=False).map(np.float32))
def test_same_bits_one_at_a_time(x):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        pairs = [(tp.exp, exp), (tp.silu, silu), (tp.tanh, tanh)] if np.isfinite(x) else []
        if 2.0**-126 <= x < np.inf:
            pairs += [(tp.rsqrt, rsqrt), (tp.reciprocal, reciprocal)]
        for fast, slow in pairs:
            assert one(fast, x).tobytes() == slow(x).tobytes(), fast.__name__


@settings(max_examples=200, deadline=None)
@given(floats(-100, 100), floats(-100, 100))
def test_swiglu_same_bits_one_at_a_time(gate, up):
    alpha, limit = np.float32(1.702), np.float32(7)
    fast = tp.swiglu(np.array([gate]), np.array([up]), alpha, limit)[0]
    assert fast.tobytes() == swiglu(gate, up, alpha, limit).tobytes()


def test_exp_edges():
    x = np.array([0, -0.0, -87, np.nextafter(np.float32(-87), np.float32(-90)), -np.inf, 84, 85, np.inf], np.float32)
    y = tp.exp(x)
    assert y[0] == y[1] == 1
    assert y[2] >= np.finfo(np.float32).tiny, "still a normal number"
    assert y[3] == y[4] == 0
    assert y[5] == y[6] == y[7] < 2.0**122


def test_exp_never_exceeds_one_below_zero():
    """Probabilities must stay within 32,512, so exp(x) <= 1 for every x <= 0 that is near enough to matter."""
    near = -np.arange(0x42AE0000, step=997, dtype=np.int32).view(np.float32)
    assert tp.exp(near).max() == 1


@pytest.mark.parametrize("x", [-1e30, -100, -84, 0, 84, 100, 1e30])
def test_silu_is_finite_and_near_its_limit(x):
    y = one(tp.silu, x)
    assert abs(y - max(x, 0)) <= 1e-6 * max(1, x)
