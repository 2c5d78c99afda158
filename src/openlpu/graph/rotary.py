"""A model's rotary embedding in, radians per position of each rotated pair out."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext

from openlpu.arch.truepoint import rope as truepoint
from openlpu.checkpoint.config import Rope


def frequencies(rope: Rope, dim: int) -> list[Decimal]:
    """Radians per position of the ``dim / 2`` pairs, exact to 60 digits, with Llama 3's scaling of the slow ones.

    Llama 3 keeps a pair that turns at least ``high_freq_factor`` times within the original context, divides the
    frequency of one that turns at most ``low_freq_factor`` times by ``factor``, and blends in between.
    """
    with localcontext(Context(prec=60)):
        plain = truepoint.frequencies(rope.theta, dim)
        return plain if rope.kind == "default" else [_llama3(f, rope) for f in plain]


def _llama3(f: Decimal, rope: Rope) -> Decimal:
    low, high = Decimal(rope.low_freq_factor), Decimal(rope.high_freq_factor)
    turns = rope.original_context * f / (2 * truepoint.PI)
    keep = min(max((turns - low) / (high - low), Decimal(0)), Decimal(1))
    return f * keep + (1 - keep) * f / Decimal(rope.factor)
