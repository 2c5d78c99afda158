"""What the scheduler makes and every chip target runs: instruction queues, SRAM contents, claims.

A program holds no weights: :attr:`Program.resident` says which vectors of which parameter lie where, so new
weights of the same shape reuse it.  Instructions are NumPy columns, one structured array per queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.isa import columns_of, unit_of_queue
from openlpu.place.layout import Resident

RESIDENT = 0  # as a claim's writer: in SRAM before the token began (a parameter, the host's rows, older KV)


def queue_dtype(queue: str) -> np.dtype:
    """Columns of a queue: dispatch cycle, opcode, the instruction's id (for claims; not encoded), its fields."""
    fields = [(name, "<i4") for name in columns_of(unit_of_queue(queue))]
    return np.dtype([("cycle", "<u4"), ("op", "u1"), ("id", "<u4"), *fields])


CLAIM_READ = np.dtype(
    [("reader", "<u4"), ("operand", "u1"), ("writer", "<u4"), ("or_resident", "?"), ("part", "<u2")]
)
CLAIM_OUTPUT = np.dtype([("slice", "<u2"), ("address", "<u2"), ("writer", "<u4"), ("indirect", "?")])


@dataclass(frozen=True)
class Claims:
    """What the scheduler meant; the chip ignores it, the referee compares.

    ``reads``: operand ``operand`` of instruction ``reader`` carries the value that instruction ``writer`` made
    (:data:`RESIDENT`: nobody in this token; ``or_resident``: either).  Operands count byte streams in the order
    of the fields: VXM a 0-3, b 4-7 (a latch or byte operand: 0 or 4); memory word of read and gather 0, map 1;
    scatter data 0, map 1; load_weights 0-15; install_weights: weight buffer groups 0-19; activate: stream 0,
    array 1 (the install); accumulate: arriving sum 0 (the activate), accumulator 1; SXM data 0-15, maps 16, 17;
    ifetch: the vector of its cycle 0, of the next 1.
    ``part``: which byte stream of the writer's result it is (quad plane 0-3, SXM output 0-15), or for a memory word
    the address (the base, of a gather); else 0.
    ``outputs``: after the token the word at ``address`` of ``slice`` was written by ``writer``; ``indirect``:
    address is the base of a scatter and the words are those of its map.
    """

    reads: NDArray
    outputs: NDArray


@dataclass(frozen=True)
class Rows:
    """Where a token leaves an fp32 value: byte plane p of vector i at (slices[i, p], addresses[i]); lane l of it is
    channel ``channel[i, l]``, -1 where the lane is idle."""

    slices: NDArray[np.int32]
    addresses: NDArray[np.int32]
    channel: NDArray[np.int32]


@dataclass(frozen=True)
class Segment:
    """The instructions of one decode step for contexts of at most ``context`` positions.

    ``tensors``: where each fp32 value of the graph lies after a token, in execution order, the logits last; nothing
    overwrites them inside a token.  ``cycles``: first dispatch to last logit written.  ``origin``: (first
    instruction id, operator's output) in ascending order: which operator an instruction belongs to.
    """

    context: int
    queues: Mapping[str, NDArray]
    tensors: Mapping[str, Rows]
    cycles: int
    claims: Claims
    origin: tuple[tuple[int, str], ...]

    @property
    def logits(self) -> Rows:
        """Where the logits lie."""
        return self.tensors[list(self.tensors)[-1]]


@dataclass(frozen=True)
class Program:
    """Segments that share one SRAM image, the smallest context first; the host picks one before each token.

    ``host``: names of the resident rows the host rewrites before a token (see :mod:`openlpu.place.host`), without
    their ``host.``.  ``v_rows``: rows of V per block, which the host's address maps need.
    """

    chip: Chip
    resident: tuple[Resident, ...]
    host: tuple[str, ...]
    v_rows: int
    vocab: int
    segments: tuple[Segment, ...]

    @property
    def context(self) -> int:
        """Positions the largest segment serves."""
        return self.segments[-1].context

    def segment(self, position: int) -> Segment:
        """The smallest segment whose context holds a position."""
        assert 0 <= position < self.context, f"position {position} is outside the context"
        return next(s for s in self.segments if position < s.context)
