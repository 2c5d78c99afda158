"""A token id and a position in; the rows the host writes before the token out.

These rows are all that changes from token to token: addresses (which embedding row, which RoPE row, where K and V
go), the turn that brings V to its superlane, and which positions count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.isa import NO_ADDRESS
from openlpu.arch.truepoint import BLOCK
from openlpu.place.emplace import U8, byte_planes
from openlpu.place.tables import address

I32 = NDArray[np.int32]
MASKED = np.float32(-1e30)  # added to scores of positions not yet written: their exp is 0


def address_map(chip: Chip, offsets: I32) -> U8:
    """[2, lanes] from 16-bit offsets [superlanes, 16]: plane r // 8, lane pair r % 8 holds entry r of a superlane."""
    words = np.ascontiguousarray(offsets.astype("<u2")).view(np.uint8)  # [superlanes, 32]
    halves = words.reshape(chip.superlanes, 2, chip.lanes_per_superlane)
    return np.ascontiguousarray(halves.transpose(1, 0, 2)).reshape(2, chip.lanes)


def everywhere(chip: Chip, offset: int) -> U8:
    """One plane [1, lanes] that sends every superlane to the same offset."""
    return address_map(chip, np.full((chip.superlanes, 16), offset, np.int32))[:1]


def row(name: str, chip: Chip, token: int, position: int, v_rows: int) -> U8:
    """The bytes [planes, lanes] of the host row ``name``; what follows a dot only tells copies apart."""
    kind = name.split(".")[0]
    block, inside = divmod(position, BLOCK)
    if kind in ("token", "position", "block"):
        return everywhere(chip, {"token": token, "position": position, "block": block}[kind])
    if (at := address(kind, token if kind.startswith("token") else position)) is not None:
        return everywhere(chip, at)
    if kind in ("k_map", "v_map"):
        offsets = np.full((chip.superlanes, 16), NO_ADDRESS, np.int32)
        if kind == "k_map":
            offsets[:, position % 16] = position // 16
        else:
            offsets[inside // 16, position % 16] = block * v_rows
        return address_map(chip, offsets)
    lanes = np.arange(chip.lanes, dtype=np.int32)
    if kind == "v_turn":
        return byte_planes((lanes - 16 * (inside // 16))[None, :] % chip.lanes)[0, :2]
    return _flags(kind, lanes, block, inside)


def seen_row(word: str, block: int, window: int) -> str:
    """Name of a block's row of flags: ``valid`` is 1 where the query sees, ``bias`` far below 0 where not."""
    return f"{word}{block}w{window}" if window else f"{word}{block}"


def _flags(kind: str, lanes: I32, block: int, inside: int) -> U8:
    """Masks of this position's lane and of all others; for each block fp32 rows of which lanes the query sees."""
    here = lanes == inside
    if kind in ("onehot", "others"):
        return byte_planes(-(here == (kind == "onehot")).astype(np.int32)[None, :])[0]
    number, _, window = kind.lstrip("abilsvd").partition("w")
    position, at = block * BLOCK + inside, int(number) * BLOCK + lanes
    valid = (lanes < BLOCK) & (at <= position) & (at > position - int(window or position + 1))
    value = valid.astype(np.float32) if kind.startswith("valid") else np.where(valid, 0, MASKED)
    return byte_planes(value.astype(np.float32).view(np.int32)[None, :])[0]
