"""What every target offers: load a graph, get an executable, run chunks of tokens, read exact logits.

In: an integer :class:`~openlpu.graph.ir.Graph`.  Out: an :class:`Executable`.  The contract is bit-exact: for
the same graph, every target returns the same logits for the same token history, however the history was cut
into chunks, batched with others, or spread over threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence: ``slot`` is its KV cache, ``start`` the first token's position.

    Positions below ``start`` of that slot must have been run before; positions from ``start`` on are
    overwritten.  ``every`` asks for logits after each token instead of after the last only.  An encoder takes a
    sequence whole, from 0, with the ``types`` of its tokens (none given: 0); its logits are the hidden states.
    """

    slot: int
    start: int
    tokens: tuple[int, ...]
    every: bool = False
    types: tuple[int, ...] = ()


class Executable(Protocol):
    """A loaded model with ``slots`` KV caches of ``context`` positions each."""

    slots: int
    context: int

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        """One step: all chunks together.  Returns per chunk fp32 logits [1 or len(tokens), vocab].

        Raises :class:`~openlpu._base.errors.NumericsError` when a NaN or an infinity appears.
        """
        ...

    def close(self) -> None:
        """Release threads and memory; the executable cannot be used afterwards."""
        ...


@runtime_checkable
class Pipelined(Executable, Protocol):
    """An executable whose stages work on several requests at a time: nobody waits until all of a step are done."""

    def enter(self, chunk: Chunk) -> object:
        """A chunk joins those under way; its request must have no other there."""
        ...

    def leave(self) -> tuple[Chunk, F32]:
        """Run until one of them is done: it, and its logits as of :meth:`Executable.run`.

        Raises as that does; then nothing is under way any more.
        """
        ...
