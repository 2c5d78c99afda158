"""Rotary bases and scalings are found again from fp32 cosines and sines, and nothing else is made of others."""

from __future__ import annotations

import numpy as np
import pytest

from openlpu.checkpoint.config import Rope
from openlpu.checkpoint.onnx.frequencies import fields
from openlpu.graph.rotary import frequencies

LLAMA3 = {"kind": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def seen(rope: Rope, dim: int) -> np.ndarray:
    """The frequencies as a graph shows them: through fp32, and through the cosine and sine of position 1."""
    angle = np.array([float(f) for f in frequencies(rope, dim)], np.float32)
    return np.arctan2(np.sin(angle).astype(np.float64), np.cos(angle).astype(np.float64))


@pytest.mark.parametrize("dim", [8, 16, 64, 96, 128, 256])
@pytest.mark.parametrize("theta", [100.0, 500.0, 10000.0, 25000.0, 150000.0, 500000.0, 1e6, 5e6, 1e7, 8e6, 1e8])
def test_plain_and_linear(dim: int, theta: float) -> None:
    assert fields(seen(Rope(theta), dim)) == {"rope_theta": theta}
    found = fields(seen(Rope(theta, "linear", 4.0), dim))
    assert found == {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3(dim: int, factor: float) -> None:
    found = fields(seen(Rope(500000.0, factor=factor, original_context=8192, **LLAMA3), dim))
    assert found is not None and found["rope_theta"] == 500000.0
    assert found["rope_scaling"]["factor"] == factor
    assert found["rope_scaling"]["original_max_position_embeddings"] == 8192


def test_others_are_none() -> None:
    plain = seen(Rope(10000.0), 64)
    assert fields(np.sqrt(plain)[::-1]) is None
    assert fields(plain * np.linspace(1, 1.1, 32)) is None
    assert fields(seen(Rope(12345.6789), 64)) is None
