"""A float graph and rules in, the same function with other parameters out.

Nothing is computed until a parameter is read, so a rewritten model costs no memory: its weights stay in the
checkpoint's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openlpu.graph.ir import Graph

Rule = Callable[[np.ndarray], np.ndarray]


class Rewritten(Mapping[str, np.ndarray]):
    """Parameters of which some pass through a rule whenever they are read, and some are added."""

    def __init__(self, base: Mapping[str, np.ndarray], rules: Mapping[str, Rule],
                 added: Mapping[str, np.ndarray] | None = None) -> None:
        self.base, self.rules, self.added = base, rules, added or {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.added:
            return self.added[name]
        array, rule = self.base[name], self.rules.get(name)
        return rule(array) if rule else array

    def __iter__(self) -> Iterator[str]:
        yield from self.base
        yield from self.added

    def __len__(self) -> int:
        return len(self.base) + len(self.added)


def rewritten(graph: Graph, rules: Mapping[str, Rule]) -> Graph:
    """The graph with its parameters seen through ``rules``."""
    return replace(graph, params=Rewritten(graph.params, rules))


def scale_rows(factor: NDArray[np.float32]) -> Rule:
    """Row r of a matrix, or element r of a vector, times ``factor[r]``."""
    return lambda array: (array.astype(np.float32).T * factor).T


def scale_columns(factor: NDArray[np.float32]) -> Rule:
    """Column c of a matrix times ``factor[c]``."""
    return lambda array: array.astype(np.float32) * factor


def take(order: NDArray[np.intp], axis: int) -> Rule:
    """Rows (axis 0) or columns (axis 1) in a new order."""
    return lambda array: np.take(array, order, axis=axis)
