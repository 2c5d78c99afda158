"""Sampling: published vectors of the generator, an independent exact model of every filter, sane statistics."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu._base.errors import BadRequest
from openlpu.tokens.request import Request, Sampling
from openlpu.tokens.sample import WEIGHT_ONE, choose, draw, kept, penalised, philox, weights


@pytest.mark.parametrize(("counter", "key", "words"), [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_philox_gives_the_published_vectors(counter, key, words):  # Random123's kat_vectors
    assert philox(counter, key) == words


def logits_of(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_greedy_takes_the_lowest_id_of_equal_logits():
    assert choose(logits_of(1, 3, 3, 2), Sampling(), [], 0) == 1
    assert choose(logits_of(-0.0, 0.0), Sampling(), [], 0) == 0


def test_golden_choices():
    """These ids are the definition's; a change here is a change of TruePoint's version."""
    logits = logits_of(*((i * i * 37 % 101 - 50) / 16 for i in range(50)))
    s = Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=2**60 + 5)
    assert [choose(logits, s, [3, 4, 4], p) for p in range(12)] == [
        12, 38, 33, 25, 38, 25, 45, 25, 4, 25, 25, 41,
    ]


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.lists(st.sampled_from([-3.5, -1.0, -0.25, 0.0, 0.5, 0.5, 2.0, 2.125]), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(vectors, st.integers(0, 13), st.sampled_from([1.0, 0.99, 0.5, 0.1, 1e-9]),
       st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.sampled_from([0.3, 1.0, 3.0]))
def test_filters_match_their_definition(values, top_k, top_p, min_p, temperature):
    logits = logits_of(*values)
    weight = weights(logits, temperature)
    ids = sorted((i for i in range(len(values)) if weight[i]), key=lambda i: (-logits[i], i))
    if top_k:
        ids = ids[:top_k]
    need = ceil(sum(int(weight[i]) for i in ids) * Fraction(round(top_p * 2**32), 2**32))
    total, run = 0, []
    for i in ids:
        run.append(i)
        total += int(weight[i])
        if total >= need:
            break
    floor = ceil(WEIGHT_ONE * Fraction(round(min_p * 2**32), 2**32))
    want = sorted(i for i in run if weight[i] >= floor)
    s = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert kept(logits, weight, s).tolist() == want
    assert choose(logits, s, [], 5) in want


@given(st.lists(finite, min_size=1, max_size=8), st.floats(1e-6, 100))
@settings(max_examples=200, deadline=None)
def test_weights_are_defined_for_every_finite_logit(values, temperature):
    weight = weights(logits_of(*values), temperature)
    assert weight.max() == WEIGHT_ONE and weight.min() >= 0
    order = np.argsort(logits_of(*values))
    assert (np.diff(weight[order]) >= 0).all() or temperature > 0.5  # a colder softmax never swaps tokens


def test_draws_follow_the_probabilities():
    p = np.array([0.5, 0.25, 0.125, 0.125])
    logits = np.log(p).astype(np.float32)
    n = 4000
    counts = np.bincount([choose(logits, Sampling(temperature=1.0, seed=9), [], i) for i in range(n)], minlength=4)
    assert (abs(counts - n * p) < 4.5 * np.sqrt(n * p * (1 - p))).all()


def test_random_bits_are_balanced_and_depend_on_every_argument():
    draws = np.array([draw(1, 0, i) for i in range(2000)], np.uint64)
    ones = [(int(((draws >> np.uint64(b)) & np.uint64(1)).sum()) - 1000) / sqrt(500) for b in range(64)]
    assert max(map(abs, ones)) < 5
    assert len({draw(s, c, p) for s in (0, 1, 2**32, 2**63) for c in (0, 1) for p in (0, 1)}) == 16


def test_repetition_penalty_pulls_towards_zero_on_both_sides():
    out = penalised(logits_of(2, -2, 1, 0), [0, 1, 1, 3], 2.0)
    assert out.tolist() == [1, -4, 1, 0]
    assert choose(logits_of(1.0, 1.5), Sampling(repetition_penalty=2.0), [1], 0) == 0


@pytest.mark.parametrize(("field", "value"), [
    ("temperature", -1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0), ("top_p", 1.5),
    ("min_p", 1.5), ("repetition_penalty", 0), ("seed", -1), ("seed", 2**64), ("choice", 2**32),
    ("top_k", 1.5), ("seed", 0.5), ("choice", "1"),
])
def test_an_option_out_of_range_is_named(field, value):
    with pytest.raises(BadRequest, match=field):
        Sampling(**{field: value})


def test_requests_say_what_is_wrong_with_them():
    with pytest.raises(BadRequest, match="max_tokens"):
        Request((1,), max_tokens=0)
    with pytest.raises(BadRequest, match="max_tokens: 2.5 is not an integer"):
        Request((1,), max_tokens=2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadRequest, match="stop"):
        Request((1,), stop_texts=("",))
    with pytest.raises(BadRequest, match="prompt is empty"):
        Request(()).check(10, 10)
    with pytest.raises(BadRequest, match=r"token id 10 at index 1.*\n.*0 to 9"):
        Request((1, 10)).check(10, 10)
    with pytest.raises(BadRequest, match="3 tokens do not fit the context of 2"):
        Request((1, 1, 1)).check(10, 2)
