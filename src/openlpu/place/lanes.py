"""Channel counts in, lane maps out: which channel of a value sits in which lane of which vector.

A :class:`Lanes` is the only description of a value's shape on the chip.  Reductions are exact, so the choice never
changes a bit; it only decides what the MXM reads together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import Unsupported
from openlpu.arch.chip import Chip
from openlpu.arch.group import Table
from openlpu.arch.truepoint import BLOCK

I32 = NDArray[np.int32]


def around(lane: I32, by: int, span: int) -> I32:
    """The lane ``by`` further on, around inside each segment of ``span`` lanes."""
    return lane - lane % span + (lane % span + by) % span


@dataclass(frozen=True)
class Lanes:
    """``channel[r, v, l]``: the channel in lane l of vector v on role r, -1 where the lane is idle.  A chip
    alone is role 0.

    What is decided from a map must be the same for all roles: it is asked of :meth:`used`.
    """

    channel: I32

    @property
    def vectors(self) -> int:
        """How many vectors the value takes."""
        return self.channel.shape[1]

    def row(self, v: int) -> I32:
        """The channels of vector v: [lanes], or [roles, lanes] where there are several."""
        own = self.channel[:, v]
        return own[0] if len(own) == 1 else own

    def used(self, v: int) -> NDArray[np.bool_]:
        """The lanes of vector v that any role uses."""
        return np.logical_or.reduce(self.channel[:, v] >= 0)

    def slots(self, sources: Table) -> Lanes:
        """The parts of all roles side by side: slot p of role r is that of role ``sources[p][r]``."""
        return Lanes(np.concatenate([self.channel[list(source)] for source in sources], axis=1))

    def once(self) -> Lanes:
        """The map in which a channel that is there several times counts where it is first."""
        own = self.channel.ravel()
        first = np.zeros(len(own), bool)
        first[np.unique(own, return_index=True)[1]] = True
        return Lanes(np.where(first, own, np.int32(-1)).reshape(self.channel.shape))

    def of(self, parts: I32) -> Lanes:
        """The map of a split value, from this map of one role's channels as counted on its chip."""
        (own,) = self.channel
        return Lanes(np.where(own >= 0, parts[:, own], np.int32(-1)))


def packed(size: int, chip: Chip, sizes: tuple[int, ...] = ()) -> Lanes:
    """Channels in order, every lane used; or so many lanes of each vector as ``sizes`` says."""
    sizes = sizes or (*[chip.lanes] * (size // chip.lanes), *[size % chip.lanes] * (size % chip.lanes > 0))
    assert sum(sizes) == size, "every channel has a lane"
    channel, start = np.full((1, len(sizes), chip.lanes), -1, np.int32), 0
    for row, count in zip(channel[0], sizes, strict=True):
        row[:count] = np.arange(start, start + count)
        start += count
    return Lanes(channel)


@dataclass(frozen=True)
class HeadLanes:
    """Where attention's heads sit, counted on one chip: kv vector c holds ``per_vector`` KV heads side by side, ``dim``
    lanes each.

    ``kv`` is the lane map of K and of V; ``query`` that of the query heads: vector ``c * group + j`` holds, over
    the lanes of KV head g, query head ``g * group + j``, so that a query meets its keys lane by lane.
    """

    dim: int
    group: int
    per_vector: int
    kv: Lanes
    query: Lanes

    @property
    def channel_groups(self) -> int:
        """Groups of 16 channels in the fullest kv vector: rows of V per block."""
        return -(-int((self.kv.channel[0, 0] >= 0).sum()) // 16)

    def mask(self, lane: int) -> NDArray[np.bool_]:
        """The lanes of the head that starts at ``lane``."""
        lanes = np.arange(self.kv.channel.shape[2])
        return (lanes >= lane) & (lanes < lane + self.dim)

    def heads_in(self, vector: int) -> list[tuple[int, int]]:
        """(KV head, first lane) of every head in a kv vector."""
        starts = range(0, self.per_vector * self.dim, self.dim)
        row = self.kv.channel[0, vector]
        return [(int(row[lane]) // self.dim, lane) for lane in starts if row[lane] >= 0]


def head_lanes(heads: int, kv_heads: int, dim: int, chip: Chip) -> HeadLanes:
    """Lane maps for grouped-query attention; a head never straddles two vectors."""
    if dim > chip.lanes or chip.lanes < BLOCK:
        raise Unsupported(f"a head of {dim} channels on a chip of {chip.lanes} lanes", where="head_dim",
                          fix=f"use a chip with at least {max(dim, BLOCK)} lanes")
    per_vector = chip.lanes // dim
    group = heads // kv_heads
    count = -(-kv_heads // per_vector)
    kv = np.full((count, chip.lanes), -1, np.int32)
    query = np.full((count * group, chip.lanes), -1, np.int32)
    for g in range(kv_heads):
        c, lane = g // per_vector, g % per_vector * dim
        kv[c, lane : lane + dim] = np.arange(g * dim, (g + 1) * dim)
        for j in range(group):
            head = g * group + j
            query[c * group + j, lane : lane + dim] = np.arange(head * dim, (head + 1) * dim)
    return HeadLanes(dim, group, per_vector, Lanes(kv[None]), Lanes(query[None]))
