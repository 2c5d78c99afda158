"""Blocks of 4-bit floats with a scale each in; the fp32 numbers that they stand for, exactly, out.

MXFP4 (OCP Microscaling Formats 1.0): 32 numbers of a row share a power of two.  A byte has two numbers, the first in
its low half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint.codes import F32

BLOCK = 32  # numbers with one scale
BYTES = BLOCK // 2
NAN = 255  # the scale that is none
MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)  # of e2m1, by its low three bits
VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES])


def numbers(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> F32:
    """fp32 [rows, blocks * 32] of bytes [rows, blocks, 16] and exponents [rows, blocks]; NaN where a scale is one.

    A scale is 2**(exponent - 127), which fp32 has as a power of two or, of 0, as half of its smallest normal number.
    """
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, BLOCK)
    bits = np.where(scales == 0, np.uint32(1 << 22), scales.astype(np.uint32) << 23)
    scale = np.where(scales == NAN, np.float32(np.nan), bits.view(np.float32))
    with np.errstate(over="ignore"):  # more than fp32 has is refused as an infinity
        return (VALUES[codes] * scale[..., None]).reshape(len(scales), -1)
