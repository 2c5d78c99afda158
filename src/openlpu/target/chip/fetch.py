"""Instruction queues in; the rules of how they are filled checked, and the bytes that every ``ifetch`` must bring, out.

Before a token the host has filled each queue with its first ``queue_bytes`` bytes.  Page k is the k-th
``ifetch_bytes`` bytes after them, the last one filled up with zeros; the k-th ``ifetch`` of a queue brings it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.encoding import encode, extents
from openlpu.target.chip.code import Code, Ints

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Pages:
    """``data`` uint8 [n, 2, lanes]: what the fetches ``rows``, ascending, must bring."""

    rows: Ints
    data: NDArray[np.uint8]

    def of(self, rows: Ints) -> NDArray[np.uint8]:
        """The pages of some of the fetches, [n, 2, lanes]."""
        return self.data[np.searchsorted(self.rows, rows)]


def resolve(code: Code, queues: Mapping[str, NDArray]) -> Pages:
    """Check every queue; refuses one that runs empty or over."""
    rows = code.rows("ifetch")
    bounds = np.searchsorted(code.queue, np.arange(len(code.names) + 1))
    data = []
    for k, name in enumerate(code.names):
        first, end = bounds[k : k + 2]
        fetches = rows[np.searchsorted(rows, first) : np.searchsorted(rows, end)]
        size = _check(code, np.arange(first, end), fetches, queues[name])
        if len(fetches):
            data.append(_pages(code, encode(name, queues[name]), len(fetches)))
        code.refuse(fetches[-(-max(size - code.chip.queue_bytes, 0) // code.chip.ifetch_bytes) :], NOTHING)
    return Pages(rows, np.concatenate([np.zeros((0, 2, code.chip.lanes), np.uint8), *data]))


NOTHING = "nothing is left to fetch for this queue"


def _pages(code: Code, program: bytes, count: int) -> NDArray[np.uint8]:
    chip = code.chip
    later = program[chip.queue_bytes :][: count * chip.ifetch_bytes]
    return np.frombuffer(later.ljust(count * chip.ifetch_bytes, b"\0"), np.uint8).reshape(count, 2, chip.lanes)


def _check(code: Code, rows: Ints, fetches: Ints, columns: NDArray) -> int:
    """The rules of one queue, ``rows`` all and ``fetches`` some of its instructions; its size in bytes."""
    chip, cycle = code.chip, code.cycle[rows]
    start, end = extents(columns)
    sent = code.cycle[fetches]
    code.refuse(fetches[1:][np.diff(sent) < chip.latency["ifetch"]], "the fetch before it is still filling the queue")
    # A fetch has room for what is dispatched up to itself.
    filled = chip.queue_bytes + chip.ifetch_bytes * np.arange(1, len(fetches) + 1)
    over = filled - end[fetches - rows[0]] > chip.queue_bytes
    code.refuse(fetches[over], "the queue has no room for what it fetches")
    # An instruction is there when it is dispatched; the NOPs in front of it, or the repeat that it is one of, in the
    # cycle after the one before it.
    come = np.concatenate([[0], sent + chip.latency["ifetch"], [NEVER]])
    wait = np.minimum(cycle, np.append(-1, cycle)[:-1] + 1)
    for edge, needed in ((end, cycle), (start, wait)):
        page = -(-np.maximum(edge - chip.queue_bytes, 0) // chip.ifetch_bytes)
        code.refuse(rows[come[np.minimum(page, len(fetches) + 1)] > needed], "the queue is empty")
    return int(end[-1])
