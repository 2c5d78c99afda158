"""Token ids and a position in; the rows the host writes before the step out.

These rows are all that changes from step to step: addresses (which embedding row, which RoPE row, where K and V
go), the turn that brings V to its superlane, and which positions count.

A chunk is an aligned run of positions of which one load of the MXM takes all K rows, or a part of it that divides it.
So the place of a token, its position modulo the chunk, says in which slices its K and V go, and all places share their
address, their superlane and their block: of the address maps a chunk has one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.isa import NO_ADDRESS
from openlpu.arch.truepoint import BLOCK
from openlpu.place.emplace import U8, byte_planes
from openlpu.place.tables import address

I32 = NDArray[np.int32]
MASKED = np.float32(-(2.0**127))  # added to scores of positions that are not seen: no score is that far below 0
TURNED = "turned"  # behind a name: the row with both halves of a block's lanes exchanged


@dataclass(frozen=True)
class Step:
    """Consecutive ``tokens`` from position ``start`` on, which a segment of ``chunk`` places runs together.

    Idle places, before the first token and behind the last, repeat the nearest: what they make goes nowhere, and the
    last place always has the last token.  ``request``: whose KV cache it is.  Of an encoder ``length`` is that of the
    whole sequence, of which all positions are seen, and the tokens have ``types`` (none given: 0).
    """

    start: int
    tokens: tuple[int, ...]
    chunk: int = 1
    request: int = 0
    length: int = 0
    types: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        first, last = self.start // self.chunk, (self.end - 1) // self.chunk
        assert self.tokens and first == last, "the tokens of a step share one aligned run of positions"

    @property
    def end(self) -> int:
        """The position behind the last token."""
        return self.start + len(self.tokens)

    @property
    def positions(self) -> range:
        """Those that the step writes."""
        return range(self.start, self.end)

    def at(self, place: int) -> int:
        """The position whose token a place runs."""
        return min(max(self.start - self.start % self.chunk + place, self.start), self.end - 1)


def placed(name: str, place: int) -> str:
    """A row of that name for one place of a chunk; the first has the row of a chunk of one."""
    kind, dot, copy = name.partition(".")
    return f"{kind}@{place}{dot}{copy}" if place else name


def place_of(name: str) -> int:
    """The place that a row is for."""
    return int(name.partition(".")[0].partition("@")[2] or 0)


def address_map(chip: Chip, offsets: I32) -> U8:
    """[2, lanes] from 16-bit offsets [superlanes, 16]: plane r // 8, lane pair r % 8 holds entry r of a superlane."""
    words = np.ascontiguousarray(offsets.astype("<u2")).view(np.uint8)  # [superlanes, 32]
    halves = words.reshape(chip.superlanes, 2, chip.lanes_per_superlane)
    return np.ascontiguousarray(halves.transpose(1, 0, 2)).reshape(2, chip.lanes)


def everywhere(chip: Chip, offset: int) -> U8:
    """One plane [1, lanes] that sends every superlane to the same offset."""
    return address_map(chip, np.full((chip.superlanes, 16), offset, np.int32))[:1]


def row(name: str, chip: Chip, step: Step, v_rows: int, requests: int = 1) -> U8:
    """The bytes [planes, lanes] of the host row ``name``; what follows a dot only tells copies apart."""
    kind, place = name.partition(".")[0].partition("@")[0], place_of(name)
    if kind.endswith(TURNED):
        first, second = np.split(np.arange(BLOCK), 2)
        whole = row(placed(kind.removesuffix(TURNED), place), chip, step, v_rows, requests)
        return whole[:, np.concatenate([second, first, np.arange(BLOCK, chip.lanes)])]
    position = step.at(place)
    token, block, inside = step.tokens[position - step.start], position // BLOCK, position % BLOCK
    if kind in ("token", "tokenfold", "position", "type", "keep", "block", "request"):
        own = position % step.chunk == place % step.chunk
        offsets = {"token": token, "tokenfold": token // chip.lanes, "position": position,
                   "type": step.types[position - step.start] if step.types else 0,
                   "keep": position if own else NO_ADDRESS,
                   "block": block * requests + step.request, "request": step.request}
        return everywhere(chip, offsets[kind])
    if kind == "tokenlane":
        return (np.arange(chip.lanes) == token % chip.lanes).astype(np.uint8)[None, :]
    if (at := address(kind, token if kind.startswith("token") else position)) is not None:
        return everywhere(chip, at)
    if kind in ("k_map", "v_map"):
        offsets = np.full((chip.superlanes, 16), NO_ADDRESS, np.int32)
        slices = [p % 16 for p in step.positions]
        if kind == "k_map":
            offsets[:, slices] = position // 16 * requests + step.request
        else:
            offsets[inside // 16, slices] = block * v_rows * requests + step.request
        return address_map(chip, offsets)
    lanes = np.arange(chip.lanes, dtype=np.int32)
    if kind == "v_turn":
        return byte_planes((lanes - 16 * (inside // 16))[None, :] % chip.lanes)[0, :2]
    if kind.startswith("turn"):
        return byte_planes((lanes - inside + int(kind.removeprefix("turn")))[None, :] % chip.lanes)[0, :2]
    if kind in ("onehot", "others"):
        mine = [p for p in step.positions if kind == "others" or p % step.chunk == place]
        here = np.isin(lanes + block * BLOCK, mine)
        return byte_planes(-(here == (kind == "onehot")).astype(np.int32)[None, :])[0]
    return _flags(kind, lanes, step.length - 1 if step.length else position)


def seen_row(word: str, block: int, window: int) -> str:
    """Name of a block's row of flags: ``valid`` is 1 where the query sees, ``bias`` far below 0 where not."""
    return f"{word}{block}w{window}" if window else f"{word}{block}"


def _flags(kind: str, lanes: I32, last: int) -> U8:
    """Of a block an fp32 row of which lanes a query sees, up to position ``last``."""
    number, _, window = kind.lstrip("abilsvd").partition("w")
    at = int(number) * BLOCK + lanes
    valid = (lanes < BLOCK) & (at <= last) & (at > last - int(window or last + 1))
    value = valid.astype(np.float32) if kind.startswith("valid") else np.where(valid, 0, MASKED)
    return byte_planes(value.astype(np.float32).view(np.int32)[None, :])[0]
