"""A name and a shape in, the same pseudo-random numbers everywhere out: counters through an integer hash.

For test vectors and calibration tokens, where a random number library whose streams may change cannot be used.
"""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np
from numpy.typing import NDArray

Shape = int | tuple[int, ...]


def words(name: str, shape: Shape) -> NDArray[np.uint64]:
    """64-bit words: element i is splitmix64's output for (hash of name) + i steps."""
    sizes = (shape,) if isinstance(shape, int) else shape
    seed = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    z = seed + np.arange(1, prod(sizes) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).reshape(sizes)


def integers(name: str, shape: Shape, low: int, high: int) -> NDArray[np.int64]:
    """Integers low..high, both included; uniform up to a bias of (high - low) / 2**64."""
    return (words(name, shape) % np.uint64(high - low + 1)).astype(np.int64) + low


def floats(name: str, shape: Shape, low: int, high: int) -> NDArray[np.float32]:
    """Signed fp32 with random mantissas and exponents low..high-1: every magnitude from 2**low is as likely."""
    z = words(name, shape)
    exponent = (z >> np.uint64(32)) % np.uint64(high - low) + np.uint64(low + 127)
    bits = (z & np.uint64(0x807FFFFF)) | (exponent << np.uint64(23))
    return bits.astype(np.uint32).view(np.float32)


def normal(name: str, shape: Shape) -> NDArray[np.float32]:
    """About N(0, 1): the sum of twelve 16-bit integers, centred; exact before its one rounding."""
    sizes = (shape,) if isinstance(shape, int) else shape
    parts = integers(name, (*sizes, 12), 0, 65535).sum(axis=-1) * 2 - 12 * 65535
    return parts.astype(np.float32) * np.float32(2.0**-17)
