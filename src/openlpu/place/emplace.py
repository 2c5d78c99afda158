"""Where each vector of a parameter lies in; the bytes of those vectors out.

A :class:`Source` names a parameter and how its rows and columns become vectors, so a program can be stored without
weights and filled from any checkpoint of the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
AXES = {"rows": 1, "cols": 1, "negate": 1, "data": 3}  # of a source for one chip


@dataclass(frozen=True)
class Source:
    """How n vectors are filled.

    ``codes``: vector i, lane l = int8 ``param[rows[i], cols[l]]``.
    ``float``: fp32 of ``param[rows[i], cols[l]]`` as four byte planes, negated where ``negate[l]``.
    ``row``: likewise of a parameter of one axis taken as one row (in ``float`` it is one column).
    ``folded``: fp32 of ``param[rows[i] * lanes + cols[l]]``, 0 beyond its end.
    ``bytes``: ``data`` as it is, [n, planes, lanes].
    ``zeros``: nothing but zeros.
    An index of -1 gives 0.
    In the program of several chips an array that differs from chip to chip has an axis in front; :meth:`of` takes it.
    """

    kind: str
    param: str = ""
    rows: I32 = field(default_factory=lambda: np.zeros(0, np.int32))
    cols: I32 = field(default_factory=lambda: np.zeros(0, np.int32))
    negate: NDArray[np.bool_] | None = None
    data: U8 | None = None

    def of(self, role: int) -> Source:
        """What fills the chip of a role."""
        arrays = {name: getattr(self, name) for name in AXES}
        own = {name: x[role] for name, x in arrays.items() if x is not None and x.ndim > AXES[name]}
        return replace(self, **own) if own else self

    def pack(self) -> tuple[dict[str, str], dict[str, NDArray]]:
        """Words and arrays that :meth:`unpack` makes a source of again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return {name: value for name, value in values.items() if isinstance(value, str)}, arrays

    @classmethod
    def unpack(cls, words: Mapping[str, str], arrays: Mapping[str, NDArray]) -> Source:
        """The source that was packed."""
        return cls(words["kind"], words["param"], **arrays)


def vectors(source: Source, count: int, planes: int, lanes: int, params: Mapping[str, np.ndarray]) -> U8:
    """The bytes [count, planes, lanes] that a source stands for."""
    if source.kind == "zeros":
        return np.zeros((count, planes, lanes), np.uint8)
    if source.kind == "bytes":
        assert source.data is not None
        return source.data
    table = params[source.param]
    if source.kind == "folded":
        table = np.pad(table, (0, -len(table) % lanes)).reshape(-1, lanes)
    if table.ndim == 1:
        table = table.reshape(1, -1) if source.kind == "row" else table.reshape(-1, 1)
    picked = table[np.maximum(source.rows, 0)[:, None], np.maximum(source.cols, 0)[None, :]]
    live = (source.rows >= 0)[:, None] & (source.cols >= 0)[None, :]
    picked = np.where(live, picked, picked.dtype.type(0))
    if source.kind == "codes":
        return picked.astype(np.int8).view(np.uint8)[:, None, :]
    assert source.kind in ("float", "row", "folded"), f"unknown kind of source {source.kind}"
    if source.negate is not None:
        picked = np.where(source.negate[None, :], -picked, picked)
    return byte_planes(picked.astype(np.float32).view(np.int32))


def byte_planes(words: I32) -> U8:
    """int32 [n, lanes] as bytes [n, 4, lanes], least significant plane first."""
    n, lanes = words.shape
    return np.ascontiguousarray(words, "<i4").view(np.uint8).reshape(n, lanes, 4).transpose(0, 2, 1)
