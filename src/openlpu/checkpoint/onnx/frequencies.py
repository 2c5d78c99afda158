"""The angles by which a graph turns its pairs of channels in, the fields of a ``config.json`` that mean them out.

A graph has them as fp32 cosines and sines, or as fp32 frequencies; exact ones are wanted.  So the base is found again,
as the shortest decimal that gives all of them, and the scaling with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ERROR = 4e-7  # relative: of a frequency that went through fp32 and back
DIGITS = 5  # a base with more is no longer told from one beside it
F64 = NDArray[np.float64]


def fields(found: F64) -> dict[str, Any] | None:
    """``rope_theta`` and, where the frequencies [D / 2] are scaled, ``rope_scaling``; None where nothing fits."""
    theta = _base(found, range(1, len(found)))
    if theta is not None and abs(found[0] - 1) <= ERROR:
        return {"rope_theta": theta}
    factor = _shortest(*_around(1 / found[0], ERROR))
    theta = None if factor is None else _base(found * factor, range(1, len(found)))
    if factor is not None and factor > 1 and theta is not None:
        return {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": factor}}
    return _llama3(found)


def plain(theta: float, pairs: int) -> F64:
    """theta ** (-i / pairs) for each pair i."""
    return theta ** (-np.arange(pairs) / pairs)


def _base(found: F64, of: Sequence[int]) -> float | None:
    """The base that gives these pairs' frequencies; None when there is none."""
    pairs = len(found)
    low, high = 1.0, np.inf
    for i in of:
        below, above = _around(found[i] ** (-pairs / i), ERROR * pairs / i)
        low, high = max(low, below), min(high, above)
    return 10000.0 if pairs == 1 else _shortest(low, high)


def _llama3(found: F64) -> dict[str, Any] | None:
    """Llama 3's scaling: fast pairs have the base's frequencies; its limits are 1 and 4 turns in every model."""
    pairs = len(found)
    fast = 1
    while fast < pairs and _base(found, range(1, fast + 1)) is not None:
        fast += 1
    theta = _base(found, range(1, fast)) if fast > 1 else None
    if theta is None or abs(found[0] - 1) > ERROR:
        return None
    own = plain(theta, pairs)
    factor = _shortest(*_around(own[-1] / found[-1], 2 * ERROR))
    if factor is None:
        return None
    for exponent in range(3, 21):
        turns = (1 << exponent) * own / (2 * np.pi)
        keep = np.clip((turns - 1) / 3, 0, 1)
        if (abs(own * (keep + (1 - keep) / factor) / found - 1) < 2 * ERROR).all():
            return {"rope_theta": theta, "rope_scaling": {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1 << exponent,
            }}
    return None


def _around(value: float, error: float) -> tuple[float, float]:
    return value * (1 - error), value * (1 + error)


def _shortest(low: float, high: float) -> float | None:
    """The decimal of fewest digits between two numbers; None where even the longest that counts is not."""
    for digits in range(DIGITS):
        value = float(f"{(low + high) / 2:.{digits}e}") if low <= high < np.inf else 0.0
        if low <= value <= high:
            return value
    return None
