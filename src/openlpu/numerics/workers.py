"""Independent pieces of work in, their results out in the order of the pieces, whatever the number of cores.

Threads are enough: large operations of NumPy, and machine code, let go of Python's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], pieces: Iterable[T], most: int = 64) -> Iterator[R]:
    """``function`` of each piece, at most ``most`` at a time; the first error of a piece is raised."""
    with ThreadPoolExecutor(min(cores(), most)) as pool:
        yield from pool.map(function, pieces)


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
