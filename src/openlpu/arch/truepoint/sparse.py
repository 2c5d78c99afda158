"""What pruned codes look like: zeros in places that let whole pieces of a matrix be left out of memory.

A pruned matrix is an ordinary int8 matrix; on every target its zeros are zeros.  Who wants to read less memory may
rely on where they are.  A linear says so by its attribute ``sparse``:

``2:4``
    Of every four neighbouring codes of a row (a quad, from k = 0) at most two are not 0.
``blocks``
    In tiles of 32 rows by 16 k every strip of 32 rows has at most ``tiles`` (another attribute) that are not all 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PAIRS, BLOCKS = "2:4", "blocks"
QUAD, KEPT = 4, 2  # of four codes two stay
STRIP, TILE = 32, 16  # rows and k of a tile

Codes = NDArray[np.int8]


def is_pairs(codes: Codes) -> bool:
    """Whether codes [N, K] are 2:4."""
    return bool((padded(codes != 0, 1, QUAD).reshape(len(codes), -1, QUAD).sum(axis=2) <= KEPT).all())


def tiles(codes: Codes) -> NDArray[np.bool_]:
    """Which tiles of codes [N, K] have a code that is not 0: [ceil(N / 32), ceil(K / 16)]."""
    whole = padded(codes != 0, STRIP, TILE)
    return np.asarray(whole.reshape(len(whole) // STRIP, STRIP, -1, TILE).any(axis=(1, 3)))


def padded(matrix: NDArray, rows: int, columns: int) -> NDArray:
    """``matrix`` with zeros behind it, up to multiples of ``rows`` and ``columns``."""
    fill = [(0, -size % unit) for size, unit in zip(matrix.shape, (rows, columns), strict=True)]
    return np.pad(matrix, fill) if any(end for _, end in fill) else matrix
