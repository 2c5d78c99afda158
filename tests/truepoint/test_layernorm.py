"""What encoders add: layernorm, gelu and attention to positions to come."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scalar
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu.arch import truepoint as tp
from openlpu.arch.truepoint.draw import normal

SEEDS = st.integers(0, 10**9)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 40), st.sampled_from([0.0, 0.5, 30.0]), st.integers(-30, 30))
def test_layernorm_equals_the_scalar_definition_and_is_the_norm_of_the_vector(seed, k, away, size):
    """However far the mean is from zero; the error is that of codes of 16 bits."""
    x = np.ldexp(normal(f"layernorm{seed}", (3, k)) + np.float32(away), size)
    gain, bias = normal(f"gain{seed}", k), normal(f"bias{seed}", k)
    eps = np.float32(2.0 ** (2 * size - 20))
    got = tp.layernorm(x, gain, bias, eps)
    for row, made in zip(x, got, strict=True):
        assert [y.tobytes() for y in scalar.layernorm(list(row), list(gain), list(bias), eps)] == \
            [y.tobytes() for y in made]
    exact = x.astype(float) - x.astype(float).mean(axis=1, keepdims=True)
    exact = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + float(eps))
    step = np.abs(x).max(axis=1, keepdims=True) / 32639 / np.sqrt(np.var(x.astype(float), axis=1, keepdims=True) + eps)
    room = np.abs(gain) * (1 + np.abs(exact)) * (1e-5 + 2 * step) + 1e-6
    assert (np.abs(got - (exact * gain + bias)) <= room).all()


def test_a_constant_vector_leaves_the_bias():
    x = np.full((1, 9), 0.1, np.float32)
    assert np.abs(tp.layernorm(x, np.ones(9, np.float32), np.full(9, 2, np.float32), np.float32(1e-12)) - 2).max() < 0.2


@settings(max_examples=30, deadline=None)
@given(st.floats(-40, 40, width=32), st.sampled_from(["erf", "tanh"]))
def test_gelu_equals_the_scalar_definition(x, form):
    assert tp.gelu(np.array([x], np.float32), form)[0].tobytes() == scalar.gelu(np.float32(x), form).tobytes()


def test_gelu_is_close_to_its_definition():
    x = np.linspace(-12, 12, 20001, dtype=np.float32)
    wide = x.astype(float)
    erf = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in wide])
    tanh = wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))) / 2
    for form, exact in (("erf", erf), ("tanh", tanh)):
        error = np.abs(tp.gelu(x, form) - exact)
        assert (error <= 3.2e-7 * np.maximum(1, np.abs(wide))).all() and error[x < 0].max() <= 1.2e-7


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 300), st.integers(1, 4))
def test_every_query_sees_all_positions(seed, length, count):
    """A query is as the last of a causal sequence, wherever it stands."""
    count = min(count, length)
    k, v = (tp.quantize(normal(f"{word}{seed}", (length, 1, 8)), 0) for word in "kv")
    q = tp.quantize(normal(f"q{seed}", (count, 8)), 8)
    cache = tp.Cache(k.codes, k.scale[..., 0], v.codes, v.scale[..., 0])
    q = replace(q, codes=q.codes.reshape(count, 1, 8))
    got = tp.attend(q, cache, np.float32(0.25), causal=False)
    for i in range(count):
        one = replace(q, codes=q.codes[i : i + 1], scale=q.scale[i : i + 1])
        assert tp.attend(one, cache, np.float32(0.25)).tobytes() == got[i : i + 1].tobytes()
