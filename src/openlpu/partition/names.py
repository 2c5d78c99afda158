"""A name counted from the model's first layer in, the same name counted from a stage's first layer out; and back.

Stages count their layers from 0, so equal stages are equal to the letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np


def shift(name: str, by: int) -> str:
    """``layers.3.mlp`` by -2 is ``layers.1.mlp``; a name outside the layers stays.

    The residual that enters a stage is the output of its layer -1.
    """
    head, _, rest = name.partition(".")
    if head != "layers":
        return name
    number, dot, rest = rest.partition(".")
    return f"layers.{int(number) + by}{dot}{rest}"


class Local(Mapping[str, np.ndarray]):
    """The model's parameters under the names of a stage whose layer 0 is the model's layer ``first``.

    Arrays are looked up when they are asked for; ``names`` (the stage's) limit what is listed.
    """

    def __init__(self, params: Mapping[str, np.ndarray], first: int, names: tuple[str, ...]) -> None:
        self.params, self.first, self.names = params, first, names

    def __getitem__(self, name: str) -> np.ndarray:
        return self.params[shift(name, self.first)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
