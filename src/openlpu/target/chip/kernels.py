"""One function per kind of instruction: operand arrays in, result arrays out, all vectors of a batch at once.

Vectors are [n, lanes]; a kernel that finds an illegal map raises :class:`BadMap` with the first n that has it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.isa import NO_ADDRESS
from openlpu.target.chip.values import I32, U8

SUPERLANE = 16
ZERO = 255  # in a distribute map: zero


class BadMap(Exception):
    """``index`` of the vector in its batch, and what is wrong with its map."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index, self.what = index, what


def _require(right: NDArray[np.bool_], what: str) -> None:
    """``right`` is [n, ...]; raises for the first n with a False."""
    good = right.reshape(len(right), -1).all(axis=1)
    if not good.all():
        raise BadMap(int(np.argmin(good)), what)


def activate(vectors: U8, array: U8) -> I32:
    """Exact sums [n, rows] of int8 vectors [n, lanes] with int8 rows [rows, lanes].

    At most 1,024 lanes: every partial sum is an integer below 2**24, so fp32 products are exact in any order.
    """
    assert array.shape[1] <= 1024, "fp32 sums are exact only below 2**24"
    left, right = vectors.view(np.int8).astype(np.float32), array.view(np.int8).astype(np.float32)
    return (left @ right.T).astype(np.int32)


def shift(data: U8, amount: int, north: bool) -> U8:
    """Lanes moved by ``amount`` (north: to higher lanes), zeros in."""
    out = np.zeros_like(data)
    keep = data.shape[-1] - amount
    if north:
        out[..., amount:] = data[..., :keep]
    else:
        out[..., :keep] = data[..., amount:]
    return out


def permute(data: U8, maps: U8) -> U8:
    """``data`` [n, count, lanes] by ``maps`` [n, 2, lanes] (low bytes, high bytes), which must be bijections."""
    lanes = data.shape[-1]
    source = maps[:, 0].astype(np.int64) | maps[:, 1].astype(np.int64) << 8
    _require(np.sort(source, axis=1) == np.arange(lanes), "the map is not a bijection of the lanes")
    return np.take_along_axis(data, source[:, None, :], axis=2)


def distribute(data: U8, maps: U8) -> U8:
    """Inside each superlane out[lane] = in[map[lane]]; 255 gives zero."""
    _require((maps < SUPERLANE) | (maps == ZERO), "a lane of the map is neither 0..15 nor 255")
    groups, source = (a.reshape(len(a), -1, SUPERLANE) for a in (data, maps))
    out = np.take_along_axis(groups, (source % SUPERLANE).astype(np.int64), axis=2)
    return np.where(source == ZERO, np.uint8(0), out).reshape(data.shape)


def rotate(data: U8) -> U8:
    """[n, size, lanes] -> [n, size * size, lanes]: result i * size + j is input i turned by j lanes."""
    groups = data.reshape(*data.shape[:2], -1, SUPERLANE)
    turned = [np.roll(groups, -j, axis=3) for j in range(data.shape[1])]
    return np.stack(turned, axis=2).reshape(len(data), -1, data.shape[2])


def transpose(data: U8) -> U8:
    """[n, 16, lanes]: inside each superlane out[i][j] = in[j][i]."""
    groups = data.reshape(len(data), SUPERLANE, -1, SUPERLANE)
    return groups.transpose(0, 3, 2, 1).reshape(data.shape)


def addresses(base: NDArray[np.int64], maps: U8, pair: NDArray[np.int64], words: int) -> NDArray[np.int64]:
    """Word per superlane [n, superlanes] of a gather or scatter, -1 where it takes no part."""
    lanes = maps.reshape(len(maps), -1, SUPERLANE // 2, 2)
    chosen = lanes[np.arange(len(maps)), :, pair].astype(np.int64)
    offset = chosen[..., 0] | chosen[..., 1] << 8
    word = np.where(offset == NO_ADDRESS, -1, base[:, None] + offset)
    _require(word < words, "an address of the map lies beyond the slice")
    return word
