"""4-bit weights in, int8 codes out: a format is a way to write int8 codes in fewer bytes, not another arithmetic.

Sixteen neighbouring codes of a row form a *block*; ``code = step * (q - zero)`` with q in 0..15 per weight, and one
byte ``16 * step + zero`` per block: 4.5 bits a weight.  The codes stay within +-127, so a 4-bit matrix *is* an 8-bit
matrix, with the same dot product and the same bits on every target; who wants to read less memory stores q and the
block bytes instead.
"""

from __future__ import annotations

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
    return (step.astype(np.uint8) << 4) | zero.astype(np.uint8)


def expand(q: U8, blocks: U8) -> I8:
    """int8 codes [N, K] of q [N, K] in 0..15 and block bytes [N, ceil(K / 16)]."""
    step, zero = _per_weight(blocks, q.shape[1])
    codes = step * (q.astype(np.int16) - zero)
    assert (np.abs(codes) <= 127).all(), "a block's codes leave the range of int8"
    return codes.astype(np.int8)


def split(codes: I8, blocks: U8) -> U8:
    """q [N, K] of codes that were made with these block bytes; the inverse of :func:`expand`."""
    step, zero = _per_weight(blocks, codes.shape[1])
    q = codes // np.maximum(step, 1) + zero
    assert ((q >= 0) & (q < 16)).all(), "codes and block bytes do not belong together"
    return q.astype(np.uint8)


def _per_weight(blocks: U8, k: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Step and zero of each of a row's ``k`` weights."""
    assert blocks.shape[1] == count(k), f"{blocks.shape[1]} blocks for rows of {k} weights"
    wide = np.repeat(blocks, BLOCK, axis=1)[:, :k].astype(np.int16)
    return wide >> 4, wide & 15
