"""4-bit weights in, int8 codes out: a format is a way to write int8 codes in fewer bytes, not another arithmetic.

Sixteen neighbouring codes of a row form a *block*; ``code = step * (q - zero)`` with q in 0..15 per weight, and one
byte ``16 * step + zero`` per block: 4.5 bits a weight.  The codes stay within +-127, so a 4-bit matrix *is* an 8-bit
matrix, with the same dot product and the same bits on every target; who wants to read less memory stores q and the
block bytes instead.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # weights that share a step and a zero
MAX_STEP = 15

I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]


def count(k: int) -> int:
    """Blocks of a row of ``k`` weights; the last one may be short."""
    return -(-k // BLOCK)


def pair(step: NDArray[np.integer], zero: NDArray[np.integer]) -> U8:
    """Block bytes of steps 0..15 and zeros 0..15."""
    return (step.astype(np.uint8) << np.uint8(4)) | zero.astype(np.uint8)


def expand(q: U8, blocks: U8) -> I8:
    """int8 codes [N, K] of q [N, K] in 0..15 and block bytes [N, ceil(K / 16)]."""
    byte = _per_weight(blocks, q.shape[1]).view(np.int16)
    codes = (byte >> 4) * (q.astype(np.int16) - (byte & 15))
    assert codes.max(initial=0) <= 127 and codes.min(initial=0) >= -127, "a block's codes leave the range of int8"
    return codes.astype(np.int8)


def split(codes: I8, blocks: U8) -> U8:
    """q [N, K] of codes that were made with these block bytes; the inverse of :func:`expand`."""
    q = _quotients().take((_per_weight(blocks, codes.shape[1]) << 8) | codes.view(np.uint8))
    assert q.max(initial=0) < 16, "codes and block bytes do not belong together"
    return q


def _per_weight(blocks: U8, k: int) -> NDArray[np.uint16]:
    """The block byte of each of a row's ``k`` weights."""
    assert blocks.shape[1] == count(k), f"{blocks.shape[1]} blocks for rows of {k} weights"
    return np.repeat(blocks.astype(np.uint16), BLOCK, axis=1)[:, :k]


@cache
def _quotients() -> U8:
    """At 256 * block byte + code as a byte: q, the zero itself for code 0, or 255 for a code the block cannot have."""
    table = np.full((256, 256), 255, np.uint8)
    q = np.arange(16)
    for byte in range(256):
        codes = (byte >> 4) * (q - (byte & 15))
        table[byte, codes[np.abs(codes) <= 127].astype(np.int8).view(np.uint8)] = q[np.abs(codes) <= 127]
        table[byte, 0] = byte & 15
    return table.ravel()
