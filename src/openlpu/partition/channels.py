"""A count of channels or heads and a number of chips in; which of them each chip makes out."""

from __future__ import annotations

import numpy as np

from openlpu.partition.split import I32


def spread(size: int, chips: int) -> I32:
    """Channels round robin, int32 [chips, width], -1 at the end of shorter rows.

    Channel c goes to role c % chips, so the first ones, among which are the wide ones, spread evenly.
    """
    channel = np.arange(-(-size // chips) * chips, dtype=np.int32).reshape(-1, chips).T
    return np.where(channel < size, channel, np.int32(-1))


def head_channels(heads: int, kv_heads: int, dim: int, chips: int) -> tuple[I32, I32]:
    """Channels of the query heads and of the KV heads of each role, int32 [chips, width] each.

    KV heads go out in order with all their query heads; where there are more chips than KV heads, the chips of one
    keep a copy each and split its query heads.  Where heads do not divide, some are made on two chips: the readers of
    attention's output skip the copies.
    """
    role, group = np.arange(chips), heads // kv_heads
    own = -(-kv_heads // chips)
    kv = (role * kv_heads // chips)[:, None] + np.arange(own)  # [chips, own]
    if chips <= kv_heads:
        inside = np.tile(np.arange(group), (chips, 1))
    else:
        inside = _members(kv[:, 0], group)
    query = kv[:, :, None] * group + inside[:, None, :]
    return _channels(query.reshape(chips, -1), dim), _channels(kv, dim)


def _channels(heads: np.ndarray, dim: int) -> I32:
    """The channels of heads [chips, count]."""
    return (heads[:, :, None] * dim + np.arange(dim)).reshape(len(heads), -1).astype(np.int32)


def _members(kv: np.ndarray, group: int) -> np.ndarray:
    """[chips, per]: which of the ``group`` query heads of its KV head, ``kv`` [chips], each chip makes."""
    first, count = (np.array([int(np.sum(test)) for test in tests]) for tests in (
        [kv < own for own in kv], [kv == own for own in kv]))
    per = -(-group // int(count.min()))
    start = np.minimum((np.arange(len(kv)) - first) * group // count, group - per)
    return start[:, None] + np.arange(per)
