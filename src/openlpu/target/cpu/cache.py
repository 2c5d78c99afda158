"""A KV cache's shape in, its layout in memory out: blocks of 256 positions, the blocks of the arithmetic.

A block holds, head after head, K, then V, then the scales of both; a sequence grows block by block, so memory
that no position has reached is never touched.

* K is a sequence of weight panels with positions as rows: ``[16 chunks][D / 4][plane][16 positions][4 channels]``,
  so that scores of 16 positions come from the same dot instruction as everything else.
* V is the transpose: ``[64][plane][D][4 positions]``, so that a sum over positions does too.
"""

from __future__ import annotations

from dataclasses import dataclass

from openlpu.arch.truepoint.attention import BLOCK
from openlpu.target.cpu.emit import Value
from openlpu.target.cpu.linear import padded
from openlpu.target.cpu.path import Path

BLOCK_BITS = BLOCK.bit_length() - 1


@dataclass(frozen=True)
class CacheLayout:
    """One layer's cache: ``heads`` key/value heads of ``dim`` channels, ``planes`` bytes per code."""

    heads: int
    dim: int
    planes: int
    context: int

    @property
    def blocks(self) -> int:
        """Blocks of one slot."""
        return -(-self.context // BLOCK)

    @property
    def positions(self) -> int:
        """Positions a block has room for."""
        return min(BLOCK, padded(self.context, 16))

    @property
    def k_dim(self) -> int:
        return padded(self.dim, 4)

    @property
    def v_dim(self) -> int:
        return padded(self.dim, 16)

    @property
    def v_start(self) -> int:
        return padded(self.positions * self.k_dim * self.planes, 64)

    @property
    def scales_start(self) -> int:
        return self.v_start + padded(self.positions * self.v_dim * self.planes, 64)

    @property
    def head_bytes(self) -> int:
        """Bytes of one head of one block."""
        return padded(self.scales_start + 2 * 4 * self.positions, 64)

    def layer_bytes(self, slots: int) -> int:
        return slots * self.blocks * self.heads * self.head_bytes

    def offset(self, slot: Value, block: Value, head: Value) -> Value:
        """Bytes from the layer's start to one head of one block of one slot."""
        return ((slot * self.blocks + block) * self.heads + head) * self.head_bytes

    def scale_at(self, base: Value, which: str, position: Value) -> Value:
        """Where the scale of a block's key (``k``) or value (``v``) stands."""
        start = self.scales_start + (4 * self.positions if which == "v" else 0)
        return base.at(start).at(position * 4)

    def write_k(self, base: Value, position: Value, codes: Value, path: Path) -> None:
        """Scatter one key's codes, int8 [plane][k_dim], four channels at a time; ``position`` within the block."""
        fn, quads = base.fn, self.k_dim // 4
        start = base.at((position >> 4) * (quads * self.planes * 64) + (position & 15) * 4)
        with fn.loop(quads) as quad:
            for plane in range(self.planes):
                four = codes.at(quad * 4).at(plane * self.k_dim).load("i32", 1)
                four = four ^ 0x80808080 if path.offset else four
                start.at(quad * (64 * self.planes)).at(64 * plane).store(four)

    def write_v(self, base: Value, position: Value, codes: Value) -> None:
        """Scatter one value's codes byte by byte: neighbours in memory are positions of the block."""
        fn = base.fn
        row = self.v_dim * 4
        start = base.at(self.v_start).at((position >> 2) * (row * self.planes) + (position & 3))
        with fn.loop(self.dim) as d:
            for plane in range(self.planes):
                one = codes.at(d).at(plane * self.k_dim).load("i8", 1)
                start.at(d * 4).at(plane * row).store(one, 1)
