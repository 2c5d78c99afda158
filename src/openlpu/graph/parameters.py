"""The tensors of a folder in, those that a graph reads out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from openlpu.checkpoint.tensors import Tensors


class Parameters(Mapping[str, np.ndarray]):
    """The tensors a graph reads, among those a folder has: checked when they are taken, read when they are used.

    Without tensors it only notes what is ``taken``.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray] | None) -> None:
        self._tensors = tensors
        self.taken: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, *shape: int) -> str:
        """Make a tensor of this shape a parameter of the graph; returns its key."""
        if isinstance(self._tensors, Tensors):
            self._tensors.require(name, shape)
        elif self._tensors is not None:
            assert self._tensors[name].shape == shape, f"{name} should have the shape {shape}"
        self.taken[name] = shape
        return name

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.taken or self._tensors is None:
            raise KeyError(name)
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.taken

    def __iter__(self) -> Iterator[str]:
        return iter(self.taken)

    def __len__(self) -> int:
        return len(self.taken)
