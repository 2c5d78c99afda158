"""Sizes in, one aligned block of memory out.

Everything a step touches lies in arenas made at load time: anonymous maps on huge pages where the system has
them, so that streaming a gigabyte does not miss the TLB every 4 KB.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

from openlpu.target.cpu.weights import padded

HUGE = 2 << 20
ALIGN = 64


class Arena:
    """A zeroed region filled from the front; ``address`` is its start."""

    def __init__(self, size: int) -> None:
        # Private: a shared anonymous map, mmap's default, does not get huge pages.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._map = mmap.mmap(-1, padded(size, HUGE) + HUGE, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(self._map, np.uint8)
        start = -raw.ctypes.data % HUGE
        self.bytes = raw[start : start + padded(size, HUGE)]
        self.address = self.bytes.ctypes.data
        self.used = 0

    def take(self, size: int) -> int:
        """The offset of ``size`` fresh bytes, aligned to a cache line."""
        offset = self.used
        self.used += padded(size, ALIGN)
        assert self.used <= len(self.bytes), "the arena was measured too small"
        return offset

    def view(self, offset: int, size: int) -> NDArray[np.uint8]:
        """The bytes themselves."""
        return self.bytes[offset : offset + size]


def pad_vector(vector: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """fp32 numbers followed by zeros."""
    target = out.view(np.float32)
    target[: len(vector)] = vector
    target[len(vector) :] = 0


def pointer(address: int) -> ctypes.c_void_p:
    """An address as ctypes passes it."""
    return ctypes.c_void_p(address)
