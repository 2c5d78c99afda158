"""The lane map of a split value in; how its vectors, partly idle, are put together around a gather, out.

A vector with idle lanes costs the link and the MXM as much as a full one.  So a chip first puts vectors of its own
together, and those of several chips meet in one: each chip turns its own to lanes that the others leave idle, and what
is gathered is added up.  By how much a chip turns is data, a map in its SRAM, so all run one program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openlpu.arch.group import Table
from openlpu.place.lanes import I32, Lanes


@dataclass(frozen=True)
class Packing:
    """``pieces[k]``: the vectors, each with how many lanes it is turned up, that make vector k as it is sent.

    ``shared[k]`` chips, a power of two, meet in one gathered vector: role r turns vector k by ``r % shared[k]`` times
    ``step[k]`` lanes more.
    """

    pieces: tuple[tuple[tuple[int, int], ...], ...]
    shared: tuple[int, ...]
    step: tuple[int, ...]

    def slots(self, roles: int) -> list[tuple[int, slice]]:
        """Of every gathered vector, the vector as sent, and from which slots it is added up; own ones come first."""
        return [(k, slice(start * shared, (start + 1) * shared)) for start in range(roles)
                for k, shared in enumerate(self.shared) if start * shared < roles]

    def turns(self, k: int, roles: int) -> list[tuple[int, I32]]:
        """The vectors that make vector k, each with how many lanes every role turns it up, [roles]."""
        more = np.arange(roles, dtype=np.int32) % self.shared[k] * self.step[k]
        return [(v, more + turn) for v, turn in self.pieces[k]]


def meeting(size: int, roles: int, lanes: int) -> int:
    """How many of some chips, a power of two, meet in one vector, each with so many lanes."""
    return min(roles, 1 << (lanes // size).bit_length() - 1)


def pieces(size: int, roles: int, lanes: int) -> tuple[int, ...]:
    """Lanes of the vectors of a part of ``size`` channels: full ones, and what is left cut so that it meets that of
    other chips in as few gathered vectors as can be; 192 lanes of 320 are 160, which two chips share, and 32."""
    full, rest = divmod(size, lanes)
    return (*[lanes] * full, *(_cut(rest, roles, lanes) if rest else ()))


def _cut(size: int, roles: int, lanes: int) -> tuple[int, ...]:
    options: list[tuple[int, ...]] = [(size,)]
    for share in (1 << k for k in range(1, roles.bit_length())):
        if 0 < (piece := lanes // share) < size:
            options.append((piece, *_cut(size - piece, roles, lanes)))
    return min(options, key=lambda sizes: (sum(roles // meeting(s, roles, lanes) for s in sizes), len(sizes)))


def loose(own: Lanes) -> Packing:
    """Every vector as it is."""
    return Packing(tuple(((v, 0),) for v in range(own.vectors)), (1,) * own.vectors, (0,) * own.vectors)


def dense(own: Lanes) -> Packing:
    """As few vectors as whole ones can be put together to."""
    roles, count, lanes = own.channel.shape
    used = [int(np.flatnonzero(own.used(v))[-1]) + 1 for v in range(count)]
    sent: list[list[tuple[int, int]]] = []
    step: list[int] = []
    for v, size in enumerate(used):
        if not sent or not _better(step[-1], size, roles, lanes):
            sent.append([])
            step.append(0)
        sent[-1].append((v, step[-1]))
        step[-1] += size
    shared = tuple(meeting(size, roles, lanes) for size in step)
    return Packing(tuple(map(tuple, sent)), shared, tuple(step))


def _better(one: int, other: int, roles: int, lanes: int) -> bool:
    """Whether two vectors with so many lanes in use make no more gathered vectors together than apart."""
    if one + other > lanes:
        return False
    apart = roles // meeting(one, roles, lanes) + roles // meeting(other, roles, lanes)
    return roles // meeting(one + other, roles, lanes) <= apart


def gathered(own: Lanes, how: Packing, sources: Table) -> Lanes:
    """The map of the gathered value: slot p is the part of role ``sources[p][r]``; a channel made twice counts once."""
    roles, _, lanes = own.channel.shape
    sent = np.stack([_sent(own, how, k) for k in range(len(how.pieces))], axis=1)  # [roles, vectors sent, lanes]
    out = np.empty((roles, len(how.slots(roles)), lanes), np.int32)
    for i, (k, slots) in enumerate(how.slots(roles)):
        for r in range(roles):
            out[r, i] = _union([sent[source[r], k] for source in sources[slots]])
    for channel in out.reshape(roles, -1):
        copies = np.ones(len(channel), bool)
        copies[np.unique(channel, return_index=True)[1]] = False
        channel[copies] = -1
    return Lanes(out)


def _sent(own: Lanes, how: Packing, k: int) -> I32:
    """Channels of vector k as sent, [roles, lanes]."""
    roles = len(own.channel)
    turned = how.turns(k, roles)
    return np.stack([_union([np.roll(own.channel[r, v], turn[r]) for v, turn in turned]) for r in range(roles)])


def _union(maps: Sequence[I32]) -> I32:
    """One lane map from several that use different lanes."""
    stack = np.stack(maps)
    assert ((stack >= 0).sum(axis=0) <= 1).all(), "vectors are put together where the others are idle"
    return stack.max(axis=0)
