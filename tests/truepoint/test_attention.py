"""Attention: the scalar definition's bits, whatever the chunking; close to softmax; ranges at their ends."""

from __future__ import annotations

import numpy as np
import pytest
import scalar
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu.arch import truepoint as tp
from openlpu.arch.truepoint.draw import floats, normal

SCALE = np.float32(0.25)


def made(seed: int, length: int, count: int, heads: int, groups: int, dim: int, bits: int, loud: float = 4):
    """A cache of ``length`` positions with scales that differ, and the last ``count`` queries."""
    spread = np.abs(floats(f"spread{seed}", (length, 1, 1), -4, 3))
    k, v = (tp.quantize_cache(normal(f"{w}{seed}", (length, groups, dim)) * spread, bits) for w in "kv")
    q = tp.quantize(normal(f"q{seed}", (count, heads * dim)) * np.float32(loud), heads * dim)
    cache = tp.Cache(k.codes, k.scale[..., 0], v.codes, v.scale[..., 0])
    return tp.Codes(q.codes.reshape(count, heads, dim), q.scale, q.wide), cache


def first(cache: tp.Cache, length: int) -> tp.Cache:
    return tp.Cache(cache.k[:length], cache.k_scale[:length], cache.v[:length], cache.v_scale[:length])


@pytest.mark.parametrize("sinks", [[0.0, -80.0], [90.0, 1.5]])
@pytest.mark.parametrize("window", [0, 3])
def test_a_sink_takes_a_share_and_gives_nothing(sinks, window):
    q, cache = made(5, 300, 1, 2, 1, 6, 8)
    y = tp.attend(q, cache, SCALE, window, np.array(sinks, np.float32))
    for h, sink in enumerate(sinks):
        want = scalar.attend(
            q.codes[0, h].tolist(), q.scale[0, 0], cache.k[:, 0].tolist(), list(cache.k_scale[:, 0]),
            cache.v[:, 0].tolist(), list(cache.v_scale[:, 0]), SCALE, window, np.float32(sink),
        )
        assert np.array(want).tobytes() == y[0, h].tobytes()
    assert np.abs(tp.attend(q, cache, SCALE, window, np.full(2, 1e4, np.float32))).max() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([4, 8, 16]), st.sampled_from([0.1, 4, 40]),
       st.integers(0, 50))
def test_equals_the_scalar_definition(seed, length, bits, loud, window):
    q, cache = made(seed, length, 1, 4, 2, 4, bits, loud)
    same_as_scalar(q, cache, window)


@pytest.mark.parametrize(("length", "window"), [(256, 0), (257, 0), (520, 0), *((520, w) for w in (8, 9, 300, 600))])
def test_equals_the_scalar_definition_over_blocks(length, window):
    same_as_scalar(*made(length, length, 1, 2, 1, 3, 16), window)


def same_as_scalar(q: tp.Codes, cache: tp.Cache, window: int) -> None:
    y = tp.attend(q, cache, SCALE, window)
    heads, groups = q.codes.shape[1], cache.k.shape[1]
    for h in range(heads):
        g = h // (heads // groups)
        want = scalar.attend(
            q.codes[0, h].tolist(), q.scale[0, 0], cache.k[:, g].tolist(), list(cache.k_scale[:, g]),
            cache.v[:, g].tolist(), list(cache.v_scale[:, g]), SCALE, window,
        )
        assert np.array(want).tobytes() == y[0, h].tobytes()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 600), st.integers(1, 40), st.sampled_from([4, 8, 16]),
       st.sampled_from([0, 1, 30, 290]))
def test_queries_together_or_alone(seed, length, count, bits, window):
    """Later positions are masked: a query's output does not know that they are in the cache."""
    count = min(count, length)
    q, cache = made(seed, length, count, 2, 1, 4, bits)
    together = tp.attend(q, cache, SCALE, window)
    for i in {0, count // 2, count - 1}:
        alone = tp.Codes(q.codes[i : i + 1], q.scale[i : i + 1], q.wide)
        seen = first(cache, length - count + i + 1)
        assert tp.attend(alone, seen, SCALE, window).tobytes() == together[i : i + 1].tobytes()


def test_a_window_of_the_whole_context_is_none():
    q, cache = made(11, 530, 40, 2, 1, 4, 8)
    assert tp.attend(q, cache, SCALE, 530).tobytes() == tp.attend(q, cache, SCALE).tobytes()


def test_positions_before_a_window_do_not_count():
    q, cache = made(12, 600, 1, 2, 1, 4, 8)
    want = tp.attend(q, cache, SCALE, 50)
    cache.k_scale[:550], cache.v_scale[:550] = 2.0**40, 2.0**40
    cache.k[:550] = 127
    assert tp.attend(q, cache, SCALE, 50).tobytes() == want.tobytes()


@pytest.mark.parametrize(("bits", "limit"), [(4, 2e-4), (8, 2e-4), (16, 2e-4)])
def test_close_to_softmax_of_the_same_codes(bits, limit):
    q, cache = made(7, 700, 3, 2, 2, 16, bits)
    y = tp.attend(q, cache, SCALE)
    k, v = cache.k * cache.k_scale[..., None].astype(float), cache.v * cache.v_scale[..., None].astype(float)
    for i in range(3):
        n = 700 - 2 + i
        score = np.einsum("hd,thd->ht", q.codes[i] * float(q.scale[i, 0]), k[:n]) * float(SCALE)
        p = np.exp(score - score.max(axis=1, keepdims=True))
        want = np.einsum("ht,thd->hd", p / p.sum(axis=1, keepdims=True), v[:n])
        assert np.abs(y[i] - want).max() < limit * np.abs(v).max()


def test_extreme_codes_stay_inside_int32():
    """A full block of the largest codes, head size 256: every exact sum at its end, the mean still V."""
    for code in (32639, -32639, 128):
        codes = np.full((256, 1, 256), code, np.int16)
        scale = np.full((256, 1), 2.0**-8, np.float32)
        q = tp.Codes(np.full((1, 1, 256), 32639, np.int16), np.full((1, 1), 2.0**-20, np.float32), 256)
        y = tp.attend(q, tp.Cache(codes, scale, codes, scale), np.float32(1 / 16))
        assert y == pytest.approx(code * 2.0**-8, rel=1e-6)


def test_an_early_sink_costs_later_blocks_no_precision():
    """Block 0 holds one huge score; block 1's probabilities stay 15 bits relative to its own maximum."""
    _, cache = made(3, 512, 1, 1, 1, 4, 16)
    part = [tp.attention.block_part(np.full((1, 256), s, np.float32), np.ones((1, 256), bool), cache.v[256:, 0],
                                    cache.v_scale[256:, 0]) for s in (0, -20)]
    assert (part[0].weighted == part[1].weighted).all() and (part[0].total == part[1].total).all()
