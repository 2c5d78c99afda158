"""Rounding with feedback: machine code gives the codes of NumPy, on every path, whoever shares the rows out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu._base.progress import silent
from openlpu.arch import truepoint as tp
from openlpu.arch.truepoint.draw import integers, normal
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.graph.ir import Graph
from openlpu.numerics import blocks, feedback, lower, moments, workers
from openlpu.numerics.feedback import Factor, Plain
from openlpu.numerics.scheme import Scheme
from openlpu.target.cpu.path import available
from openlpu.target.cpu.rounding import Rounder
from openlpu.target.ref.run import trace


def moment(name: str, k: int, tokens: int = 300) -> np.ndarray:
    """Inputs that move together, channels loud and quiet, one silent."""
    x = normal(f"{name}.x", (tokens, k)) + normal(f"{name}.common", (tokens, 1))
    x *= np.float32(2) ** integers(f"{name}.loud", k, -6, 6).astype(np.float32)
    x[:, k // 3] = 0
    return x.T @ x


def same(a: feedback.Rounded, b: feedback.Rounded) -> None:
    for one, other in zip(a, b, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)


@pytest.mark.parametrize("path", available())
def test_machine_code_gives_the_codes_of_the_definition(path: str) -> None:
    """Rows that fill no group of lanes, channels that fill no block, loud ends, rows of zeros."""
    for n, k in ((37, 200), (16, 16), (1, 5), (70, 513)):
        factor = Factor(moment(f"rounding{k}", k))
        t = normal(f"rounding{n}", (n, k)) * np.float32(40)
        t[0] = 0
        t[-1, ::7] = 127
        same(Rounder(factor, path)(t), Plain(factor)(t))


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_machine_code_on_any_inputs(n: int, k: int, seed: int) -> None:
    """Correlated, loud, silent, of few tokens; weights up to 127, as ``fit`` has them, or far smaller."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rng.integers(1, 9), k)) * 10.0 ** rng.integers(-8, 8, k)
    x[:, rng.random(k) < 0.2] = 0
    factor = Factor((x.T @ x).astype(np.float32))
    t = (rng.uniform(-127, 127, (n, k)) * 10.0 ** rng.integers(-5, 1, (n, 1))).astype(np.float32)
    same(Rounder(factor)(t), Plain(factor)(t))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_number_of_cores_changes_no_byte(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Codes with feedback and without, moments, 8-bit codes: all that is shared out."""
    weight = normal("cores", (150, 80))
    factor = Factor(moment("cores", 80))
    values = tp.quantize(normal("cores.values", (40, 700)), 20)

    def everything() -> list[np.ndarray]:
        total = moments._none(700)
        moments._add(total, values)
        coded = (feedback.fit(weight, [Rounder(factor)]), blocks.fit(weight))
        return [*total, *lower.quantize_rows(weight), *(array for one in coded for array in one.values())]

    expected = everything()
    monkeypatch.setattr(workers, "usable_cores", lambda: count)
    monkeypatch.setattr(blocks, "SLICE", 300)
    monkeypatch.setattr(lower, "ROWS", 7)
    assert all(np.array_equal(a, b) for a, b in zip(expected, everything(), strict=True))


def test_factors_do_not_depend_on_how_rows_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Factor(moment("grouped", 400))
    monkeypatch.setattr(feedback, "CHUNK", 17)
    parts = Factor(moment("grouped", 400))
    assert np.array_equal(whole.upper, parts.upper) and np.array_equal(whole.cost, parts.cost)


def test_moments_are_symmetric_and_wide_ones_come_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves of every window, also where it is wider than a stripe."""
    graph = build(load("demo")).truncate(1)
    made = lower.lower(graph, Scheme())
    monkeypatch.setattr(moments, "WINDOW", 160)
    monkeypatch.setattr(moments, "STRIPE", 48)
    found = moments.moments(made, trace, [[1, 2, 3, 4, 5], [6, 7, 8]], silent)
    for name, windows in found.items():
        size = _size(made, name)
        assert [len(window) for window in windows] == [min(160, size - at) for at in range(0, size, 160)]
        assert all(np.array_equal(window, window.T) and np.diag(window).any() for window in windows)


def _size(graph: Graph, name: str) -> int:
    return graph.values[name].size


def test_the_first_error_of_a_piece_is_raised() -> None:
    def broken(piece: int) -> int:
        if piece == 3:
            raise ValueError("piece 3")
        return piece * piece

    with pytest.raises(ValueError, match="piece 3"):
        list(workers.in_order(broken, range(9)))
    assert list(workers.in_order(lambda piece: piece * piece, range(9), 2)) == [i * i for i in range(9)]
