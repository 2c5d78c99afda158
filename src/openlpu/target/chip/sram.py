"""MEM instructions in; for every word read the instruction that wrote it, as far as addresses are static.

A direct read of a word written in this run is a name for the written value.  A gather, and a direct read with a
scatter to its slice since the word's last direct write, can only be decided on values: they are *dynamic*.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.target.chip.code import Code, Ints

RESIDENT, DYNAMIC = -1, -2  # as a writer: nobody in this run; known only while running


@dataclass(frozen=True)
class Sram:
    """``reads``: rows of reads and gathers, ``writer`` of each; ``last``: rows of the last direct write per word.

    ``dynamic``: slices with a gather or scatter; their words' writers are tracked while running.
    """

    reads: Ints
    writer: Ints
    last: Ints
    dynamic: Ints


def resolve(code: Code) -> Sram:
    """Who wrote what is read; refuses a read of a word whose write is still in flight."""
    horizon = int(code.cycle.max(initial=0)) + 1
    word = code.number * code.chip.words_per_slice + code.field["address"]
    writes = _sorted(code.rows("write"), word * horizon + code.cycle)
    reads = code.rows("read")
    at = np.searchsorted((word * horizon + code.cycle)[writes], (word * horizon + code.cycle)[reads], "right") - 1
    writer = np.full(len(reads), RESIDENT)
    if len(writes):
        candidate = writes[at]
        hit = (at >= 0) & (word[candidate] == word[reads])
        writer[hit] = candidate[hit]
    early = (writer >= 0) & (code.cycle[writer] + code.latency[writer] > code.cycle[reads])
    code.refuse(reads[early], "the write of this word is still in flight")
    since = np.where(writer >= 0, code.cycle[writer], -1)
    writer[_scattered(code, reads, since, horizon)] = DYNAMIC
    gathers = code.rows("gather")
    dynamic = np.unique(code.number[code.rows("gather", "scatter")])
    last = writes[np.append(np.diff(word[writes]) != 0, True)] if len(writes) else writes
    return Sram(
        np.concatenate([reads, gathers]), np.concatenate([writer, np.full(len(gathers), DYNAMIC)]), last, dynamic
    )


def _sorted(rows: Ints, key: Ints) -> Ints:
    return rows[np.argsort(key[rows], kind="stable")]


def _scattered(code: Code, reads: Ints, since: Ints, horizon: int) -> NDArray[np.bool_]:
    """Which reads have a scatter to their slice after cycle ``since`` and before their own."""
    time = np.sort((code.number * horizon + code.cycle)[code.rows("scatter")])
    base = code.number[reads] * horizon
    before = np.searchsorted(time, base + code.cycle[reads], "left")
    return before > np.searchsorted(time, base + since, "right")
