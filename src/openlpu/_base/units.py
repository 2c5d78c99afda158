"""Numbers in, text for people out: every time says its clock (``cycles`` or ``wall``), every size its unit."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], percent: int) -> float:
    """Nearest-rank percentile: a value that was measured, never an average of two; 0.0 of nothing."""
    ranked = sorted(values)
    return ranked[max(0, -(-percent * len(ranked) // 100) - 1)] if ranked else 0.0


def wall(seconds: float) -> str:
    """A duration of this machine's clock: ``813 µs wall``, ``4.21 ms wall``, ``12.3 s wall``."""
    return f"{duration(seconds)} wall"


def cycles(count: int) -> str:
    """A duration of the chip's clock: ``45,120 cycles``."""
    return f"{count:,} cycles"


def count(number: int, what: str) -> str:
    """Things by their number: ``1 token``, ``1,024 tokens``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def duration(value: float) -> str:
    """A duration that was computed, not measured: ``11.8 µs``, ``1.18 ms``."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{_three(value * scale)} {unit}"
    return f"{_three(value * 1e6)} µs"


def size(count: float) -> str:
    """Bytes in decimal units: ``1.04 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{_three(count)} {unit}"
        count /= 1000
    return f"{_three(count)} TB"


def _three(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def joules(femtojoules: int) -> str:
    """An energy: ``812 µJ``, ``1.27 mJ``, ``0.95 nJ``."""
    for unit, scale in (("J", 10**15), ("mJ", 10**12), ("µJ", 10**9)):
        if femtojoules >= scale:
            return f"{_three(femtojoules / scale)} {unit}"
    return f"{_three(femtojoules / 10**6)} nJ"
