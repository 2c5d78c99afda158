"""Sizes in, one aligned block of memory out; and weights repacked into the order the kernels stream.

Everything a step touches lies in arenas made at load time: anonymous maps on huge pages where the system has
them, so that streaming a gigabyte does not miss the TLB every 4 KB.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

from openlpu.target.cpu.linear import STEP, padded

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


def packed_bytes(shape: tuple[int, int], panel: int) -> int:
    """Bytes of packed weights [N, K]."""
    return padded(shape[0], panel) * padded(shape[1], STEP)


def pack(codes: NDArray[np.int8], out: NDArray[np.uint8], panel: int, offset: int) -> None:
    """Weight codes [N, K] into ``out`` as [N / panel][K / 4][panel][4] bytes, each plus ``offset``.

    Missing rows and channels become code 0.
    """
    rows, k = codes.shape
    quads = padded(k, STEP) // 4
    target = out.view(np.uint32).reshape(-1, quads, panel)
    fill = np.uint32(offset * 0x01010101)
    for start in range(0, rows, 4096):  # in slices: no second copy of a large matrix
        part = codes[start : start + 4096]
        if part.shape[0] % panel or k % STEP:
            whole = np.zeros((padded(part.shape[0], panel), quads * 4), np.int8)
            whole[: part.shape[0], :k] = part
            part = whole
        words = np.ascontiguousarray(part).view(np.uint32).reshape(-1, panel, quads)
        first = start // panel
        np.bitwise_xor(words.transpose(0, 2, 1), fill, out=target[first : first + len(words)])


def pad_vector(vector: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """fp32 numbers followed by zeros."""
    target = out.view(np.float32)
    target[: len(vector)] = vector
    target[len(vector) :] = 0


def pointer(address: int) -> ctypes.c_void_p:
    """An address as ctypes passes it."""
    return ctypes.c_void_p(address)
