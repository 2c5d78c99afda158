"""The choices of a number format as one frozen value; its text form goes into fingerprints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openlpu._base.errors import BadRequest
from openlpu.arch.truepoint import sparse

SMALLEST = 4.5  # bits of a weight in 4-bit blocks; its row's scale is shared by all of the row
CACHES = (4, 8, 16)  # bits of a key or value


@dataclass(frozen=True)
class Scheme:
    """``kv_bits`` 4, 8 or 16; ``wide_head`` gives the logits' input two planes on every channel.

    ``outlier_share`` is the share of a linear's input channels that carry a second plane: numerics puts the
    channels that dominate the others there.  ``weight_bits`` 8 is 8-bit weights, 4.5 all weights in
    4-bit blocks; between them it is the most that a weight may take on average, row scales counted in.
    ``prune`` is ``2:4``, or ``blocks:SHARE`` for the share of the tiles of each strip that are dropped
    (:mod:`openlpu.arch.truepoint.sparse`); such weights have 8 bits.  Raises
    :class:`BadRequest` for other values.  The defaults are measured; ``docs/05-numerics.md`` has the numbers.
    """

    kv_bits: int = 8
    wide_head: bool = True
    outlier_share: float = 1 / 32
    weight_bits: float = 8
    prune: str = ""

    def __post_init__(self) -> None:
        if self.kv_bits not in CACHES:
            raise BadRequest(f"a cache of {self.kv_bits} bits", where="kv-bits", fix="4, 8 or 16")
        if not 0 <= self.outlier_share <= 1:
            raise BadRequest(f"{self.outlier_share:g} is no share", where="outlier_share", fix="from 0 to 1")
        if not SMALLEST <= self.weight_bits <= 8:
            raise BadRequest(f"{self.weight_bits:g} is out of range", where="bits", fix="from 4.5 to 8 bits a weight")
        if self.prune and self.weight_bits < 8:
            raise BadRequest("pruned weights have 8 bits", where="prune", fix="leave out one of bits and prune")
        self.sparse(1)

    def sparse(self, k: int) -> dict[str, Any]:
        """The attributes of a linear of ``k`` channels whose weights are pruned."""
        kind, _, share = self.prune.partition(":")
        if self.prune in ("", sparse.PAIRS):
            return {"sparse": self.prune} if self.prune else {}
        try:
            dropped = float(share) if kind == sparse.BLOCKS else -1.0
        except ValueError:
            dropped = -1.0
        if not 0 < dropped < 1:
            raise BadRequest(f"{self.prune!r} is no way to prune", where="prune",
                             fix=f"{sparse.PAIRS}, or {sparse.BLOCKS}:SHARE with a share between 0 and 1")
        tiles = -(-k // sparse.TILE)
        return {"sparse": kind, "tiles": max(1, tiles - int(tiles * dropped))}

    def __str__(self) -> str:
        head = "wide-head" if self.wide_head else "narrow-head"
        pruned = f"-{self.prune}" if self.prune else ""
        return f"w{self.weight_bits:g}a8-kv{self.kv_bits}-{head}-outliers{self.outlier_share:g}{pruned}"
