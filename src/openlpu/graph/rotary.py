"""A model's rotary embedding in, radians per position of each rotated pair out.

Every kind of stretching a model beyond the positions it was trained on is a rule that divides the frequencies of
slowly turning pairs by a factor and keeps those of fast ones; ``yarn`` also makes the rotated vectors longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

from openlpu.arch.truepoint import rope as truepoint
from openlpu.checkpoint.config import Rope

ONE = Decimal(1)


def frequencies(rope: Rope, dim: int) -> list[Decimal]:
    """Radians per position of the ``dim / 2`` pairs of a head of ``dim`` channels, exact to 60 digits.

    A pair's share of the original frequency, the rest being its frequency divided by ``factor``, is for ``linear``
    0; for ``llama3`` 1 for a pair that turns at least ``high_freq_factor`` times within the original context, 0 for
    one that turns at most ``low_freq_factor`` times, and a ramp over the turns in between; for ``yarn`` 1 before the
    pair that turns ``beta_fast`` times, 0 behind the one that turns ``beta_slow`` times, and a ramp over the pairs.
    """
    with localcontext(truepoint.CONTEXT):
        plain = truepoint.frequencies(rope.theta, dim)
        if rope.kind == "default":
            return plain
        kept = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}[rope.kind](rope, plain)
        return [f * keep + (1 - keep) * f / Decimal(rope.factor) for f, keep in zip(plain, kept, strict=True)]


def attention_factor(rope: Rope) -> float:
    """What cosine and sine are multiplied by: 1 but for ``yarn``, whose queries and keys grow with the context.

    As given, else m(1) with m(s) = 1 + s ln(factor) / 10, or m(mscale) / m(mscale_all_dim) where both are given.
    """
    if rope.kind != "yarn" or rope.attention_factor:
        return rope.attention_factor or 1.0
    with localcontext(truepoint.CONTEXT):
        growth = max(Decimal(rope.factor), ONE).ln() / 10
        if rope.mscale and rope.mscale_all_dim:
            return float((1 + Decimal(rope.mscale) * growth) / (1 + Decimal(rope.mscale_all_dim) * growth))
        return float(1 + growth)


def _linear(rope: Rope, plain: Sequence[Decimal]) -> list[Decimal]:
    return [Decimal(0)] * len(plain)


def _llama3(rope: Rope, plain: Sequence[Decimal]) -> list[Decimal]:
    low, high = Decimal(rope.low_freq_factor), Decimal(rope.high_freq_factor)
    return [_ramp(rope.original_context * f / (2 * truepoint.PI), low, high) for f in plain]


def _yarn(rope: Rope, plain: Sequence[Decimal]) -> list[Decimal]:
    dim = 2 * len(plain)

    def pair(turns: float) -> Decimal:
        """Where among the pairs, between two as a rule, one would turn so often within the original context."""
        positions_per_radian = rope.original_context / (2 * truepoint.PI * Decimal(turns))
        return dim * positions_per_radian.ln() / (2 * Decimal(rope.theta).ln())

    first, last = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        first, last = first.to_integral_value(ROUND_FLOOR), last.to_integral_value(ROUND_CEILING)
    first, last = max(first, Decimal(0)), min(last, Decimal(dim - 1))
    if first == last:
        last += Decimal("0.001")  # as the reference implementation does, so that the ramp has a slope
    return [1 - _ramp(Decimal(i), first, last) for i in range(len(plain))]


def _ramp(x: Decimal, low: Decimal, high: Decimal) -> Decimal:
    """0 up to ``low``, 1 from ``high`` on, and a straight line between."""
    return min(max((x - low) / (high - low), Decimal(0)), ONE)
