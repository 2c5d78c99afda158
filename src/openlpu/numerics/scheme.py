"""The choices of a number format as one frozen value; its text form goes into fingerprints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scheme:
    """``kv_bits`` 8 or 16; ``wide_head`` gives the logits' input two planes on every channel.

    ``outlier_share`` is the share of a linear's input channels that carry a second plane: numerics puts the
    channels that dominate the others there.  The defaults are measured; ``docs/05-numerics.md`` has the numbers.
    """

    kv_bits: int = 8
    wide_head: bool = True
    outlier_share: float = 1 / 32

    def __str__(self) -> str:
        head = "wide-head" if self.wide_head else "narrow-head"
        return f"w8a8-kv{self.kv_bits}-{head}-outliers{self.outlier_share:g}"
