"""Rotary tables against Decimal, at positions no fp32 angle could hold; independence of the decimal context."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext

import numpy as np
import pytest

from openlpu.arch.truepoint import rope

EXACT = Context(prec=60)


def cosine(angle: Decimal) -> Decimal:
    """Taylor series after reduction by a whole number of turns; 60 digits."""
    with localcontext(EXACT):
        x = angle - (angle / (2 * rope.PI)).to_integral_value() * 2 * rope.PI
        term, total, n = Decimal(1), Decimal(1), 0
        while abs(term) > Decimal("1e-50"):
            n += 2
            term *= -x * x / (n * (n - 1))
            total += term
        return total


@pytest.mark.parametrize(("theta", "dim"), [(10000.0, 8), (500000.0, 128)])
def test_tables_equal_decimal_to_the_last_bit_but_one(theta, dim):
    freqs = rope.frequencies(theta, dim)
    positions = 131072
    cos, sin = rope.tables(freqs[:: dim // 8], positions)
    for p in (0, 1, 2, 1000, 65537, 131071):
        for i, f in enumerate(freqs[:: dim // 8]):
            with localcontext(EXACT):
                c, s = cosine(f * p), cosine(f * p - rope.PI / 2)
            assert abs(Decimal(float(cos[p, i])) - c) < Decimal("6.1e-8")
            assert abs(Decimal(float(sin[p, i])) - s) < Decimal("6.1e-8")


def test_position_zero_turns_nothing():
    cos, sin = rope.tables(rope.frequencies(10000.0, 8), 1)
    assert (cos == 1).all() and (sin == 0).all()


def test_a_changed_decimal_context_changes_nothing():
    want = rope.tables(rope.frequencies(10000.0, 12), 40)
    with localcontext(Context(prec=5)):
        got = rope.tables(rope.frequencies(10000.0, 12), 40)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(want, got, strict=True))


def test_rotation_keeps_length_and_turns_halves():
    cos, sin = rope.tables(rope.frequencies(10000.0, 6), 50)
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    y = rope.rotate(x, cos[[3, 49]], sin[[3, 49]])
    z = (x[:, :3] + 1j * x[:, 3:]) * (cos[[3, 49]] + 1j * sin[[3, 49]])
    np.testing.assert_allclose(y, np.concatenate([z.real, z.imag], axis=1), rtol=1e-5, atol=1e-5)
