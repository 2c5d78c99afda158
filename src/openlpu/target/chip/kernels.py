"""One function per kind of instruction: operand arrays in, result arrays out, all vectors of a batch at once.

Vectors are [n, width], the lanes of all chips of a group side by side.  A kernel that finds an illegal map raises
:class:`BadMap` with the first vector and chip that has it; so does one that finds a number that is not finite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.isa import NO_ADDRESS
from openlpu.arch.truepoint import half
from openlpu.target.chip.values import I32, U8

SUPERLANE = 16
ZERO = 255  # in a distribute map: zero


class BadMap(Exception):
    """``index`` of the vector in its batch and ``role`` of the chip, and what is wrong with it."""

    def __init__(self, index: int, role: int, what: str) -> None:
        super().__init__(what)
        self.index, self.role, self.what = index, role, what


def _require(right: NDArray[np.bool_], roles: int, what: str) -> None:
    """``right`` is [n, roles, ...] or that flattened; raises for the first n and role with a False."""
    good = right.reshape(len(right) * roles, -1).all(axis=1)
    if not good.all():
        raise BadMap(*divmod(int(np.argmin(good)), roles), what)


def activate(vectors: U8, array: U8, roles: int) -> I32:
    """On each chip, exact sums [n, rows] of int8 vectors [n, lanes] with int8 rows [rows, lanes].

    At most 1,024 lanes: every partial sum is an integer below 2**24, so fp32 products are exact in any order.
    """
    lanes = array.shape[1] // roles
    assert lanes <= 1024, "fp32 sums are exact only below 2**24"
    left, right = vectors.view(np.int8).astype(np.float32), array.view(np.int8).astype(np.float32)
    out = np.empty((len(vectors), roles * len(array)), np.int32)
    for r in range(roles):
        own, made = slice(r * lanes, (r + 1) * lanes), slice(r * len(array), (r + 1) * len(array))
        out[:, made] = left[:, own] @ right[:, own].T
    return out


def activate_fp16(vectors: U8, array: U8, roles: int) -> I32:
    """On each chip, the bits [n, rows] of fp32 sums of fp16 vectors [n, lanes] with fp16 rows [rows, lanes]."""
    out = np.empty((len(vectors), roles * len(array)), np.int32)
    lanes = array.shape[1] // roles
    for r in range(roles):
        left, right = (_fp16(x[:, r * lanes : (r + 1) * lanes]) for x in (vectors, array))
        finite = np.isfinite(left).all(axis=1) & np.isfinite(right).all()
        if not finite.all():
            raise BadMap(int(np.argmin(finite)), r, "a NaN or an infinity reached the MXM")
        out[:, r * len(array) : (r + 1) * len(array)] = half.dot(left, right).view(np.int32)
    return out


def _fp16(vectors: U8) -> half.F16:
    """Numbers [n, lanes / 2] of vectors whose first half of lanes are low bytes and whose second half are high ones."""
    n, lanes = vectors.shape
    return np.ascontiguousarray(vectors.reshape(n, 2, lanes // 2).transpose(0, 2, 1)).view("<f2")[..., 0]


def shift(data: U8, roles: int, amount: int, north: bool) -> U8:
    """Lanes moved by ``amount`` (north: to higher lanes), zeros in."""
    chips = data.reshape(*data.shape[:-1], roles, -1)
    out = np.zeros_like(chips)
    keep = chips.shape[-1] - amount
    if north:
        out[..., amount:] = chips[..., :keep]
    else:
        out[..., :keep] = chips[..., amount:]
    return out.reshape(data.shape)


def permute(data: U8, maps: U8, roles: int) -> U8:
    """``data`` [n, count, width] by ``maps`` [n, 2, width] (low bytes, high bytes), which must be bijections."""
    low, high = (maps[:, k].reshape(len(maps), roles, -1).astype(np.int64) for k in range(2))
    source = low | high << 8
    right = np.sort(source, axis=2) == np.arange(source.shape[2])
    _require(right, roles, "the map is not a bijection of the lanes")
    chips = data.reshape(*data.shape[:2], roles, -1)
    return np.take_along_axis(chips, source[:, None], axis=3).reshape(data.shape)


def distribute(data: U8, maps: U8, roles: int) -> U8:
    """``data`` [n, count, width] by ``maps`` [n, width]: inside each superlane out[lane] = in[map[lane]], 255: zero."""
    _require((maps < SUPERLANE) | (maps == ZERO), roles, "a lane of the map is neither 0..15 nor 255")
    groups, source = data.reshape(*data.shape[:2], -1, SUPERLANE), maps.reshape(len(maps), 1, -1, SUPERLANE)
    out = np.take_along_axis(groups, (source % SUPERLANE).astype(np.int64), axis=3)
    return np.where(source == ZERO, np.uint8(0), out).reshape(data.shape)


def rotate(data: U8) -> U8:
    """[n, size, width] -> [n, size * size, width]: result i * size + j is input i turned by j lanes."""
    groups = data.reshape(*data.shape[:2], -1, SUPERLANE)
    turned = [np.roll(groups, -j, axis=3) for j in range(data.shape[1])]
    return np.stack(turned, axis=2).reshape(len(data), -1, data.shape[2])


def transpose(data: U8) -> U8:
    """[n, 16, width]: inside each superlane out[i][j] = in[j][i]."""
    groups = data.reshape(len(data), SUPERLANE, -1, SUPERLANE)
    return groups.transpose(0, 3, 2, 1).reshape(data.shape)


def addresses(
    base: NDArray[np.int64], maps: U8, roles: int, pair: NDArray[np.int64], words: int
) -> NDArray[np.int64]:
    """Word per superlane [n, superlanes] of a gather or scatter, -1 where it takes no part."""
    lanes = maps.reshape(len(maps), -1, SUPERLANE // 2, 2)
    chosen = lanes[np.arange(len(maps)), :, pair].astype(np.int64)
    offset = chosen[..., 0] | chosen[..., 1] << 8
    word = np.where(offset == NO_ADDRESS, -1, base[:, None] + offset)
    _require(word < words, roles, "an address of the map lies beyond the slice")
    return word
