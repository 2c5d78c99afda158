"""Independent pieces of work in, their results out in the order of the pieces, whatever the number of cores.

Threads are enough: large operations of NumPy, and machine code, let go of Python's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from openlpu._base.cores import usable_cores

T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], pieces: Iterable[T], most: int = 64) -> Iterator[R]:
    """``function`` of each piece, at most ``most`` at a time; the first error of a piece is raised."""
    with ThreadPoolExecutor(min(usable_cores(), most)) as pool:
        yield from pool.map(function, pieces)
