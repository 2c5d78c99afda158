"""A KV cache's shape in, its layout in memory out: blocks of 256 positions, the blocks of the arithmetic.

A block holds, head after head, K, then V, then the scales of both; a sequence grows block by block, so memory
that no position has reached is never touched.

* K is a sequence of weight panels with positions as rows: ``[16 chunks][D / 4][plane][16 positions][4 channels]``,
  so that scores of 16 positions come from the same dot instruction as everything else.
* V is the transpose: ``[4 groups][16 quads][plane][D][4 positions]``, so that a sum over positions does too.  The
  quads of a group of 64 positions have every sixteenth one: four vectors of probabilities become their codes lane
  by lane.

A 4-bit code lies there as a nibble, code - zero, so that a byte has two: in K a quad's and the next quad's, in V a
channel's and that of the channel 16 further.  Nothing is expanded to bytes in memory: a dot product takes the nibbles
and adds zero times the sum of the other side, the same exact integer.  The zeros, a byte for each key and each value,
follow the scales.
"""

from __future__ import annotations

from dataclasses import dataclass

from openlpu.arch.truepoint.attention import BLOCK
from openlpu.target.cpu.emit import Value
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.weights import padded

BLOCK_BITS = BLOCK.bit_length() - 1
GROUP = 64  # positions whose values share 16 quads


@dataclass(frozen=True)
class CacheLayout:
    """One layer's cache: ``heads`` key/value heads of ``dim`` channels in codes of ``bits``."""

    heads: int
    dim: int
    bits: int
    context: int

    @property
    def planes(self) -> int:
        """Byte planes of a code as the dot product meets it."""
        return 2 if self.bits == 16 else 1

    @property
    def blocks(self) -> int:
        """Blocks of one slot."""
        return -(-self.context // BLOCK)

    @property
    def positions(self) -> int:
        """Positions a block has room for."""
        return min(BLOCK, padded(self.context, GROUP))

    @property
    def k_dim(self) -> int:
        return padded(self.dim, 8 if self.nibbles else 4)

    @property
    def v_dim(self) -> int:
        return padded(self.dim, 32 if self.nibbles else 16)

    @property
    def nibbles(self) -> bool:
        """Whether a byte holds two codes."""
        return self.bits == 4

    @property
    def k_bytes(self) -> int:
        """Bytes of one key's codes."""
        return self.k_dim * self.bits // 8

    @property
    def v_bytes(self) -> int:
        """Bytes of one value's codes."""
        return self.v_dim * self.bits // 8

    @property
    def v_start(self) -> int:
        return padded(self.positions * self.k_bytes, 64)

    @property
    def scales_start(self) -> int:
        return self.v_start + padded(self.positions * self.v_bytes, 64)

    @property
    def head_bytes(self) -> int:
        """Bytes of one head of one block."""
        return padded(self.scales_start + 2 * (5 if self.nibbles else 4) * self.positions, 64)

    def bytes_read(self, positions: int) -> int:
        """Bytes of keys, values and scales that a token at the last of so many positions reads."""
        return positions * self.heads * 2 * (self.dim * self.bits // 8 + (5 if self.nibbles else 4))

    def layer_bytes(self, slots: int) -> int:
        return slots * self.blocks * self.heads * self.head_bytes

    def offset(self, slot: Value, block: Value, head: Value) -> Value:
        """Bytes from the layer's start to one head of one block of one slot."""
        return ((slot * self.blocks + block) * self.heads + head) * self.head_bytes

    def scale_at(self, base: Value, which: str, position: Value) -> Value:
        """Where the scale of a block's key (``k``) or value (``v``) stands."""
        start = self.scales_start + (4 * self.positions if which == "v" else 0)
        return base.at(start).at(position * 4)

    def zero_at(self, base: Value, which: str, position: Value) -> Value:
        """Where the zero of a block's 4-bit key or value stands."""
        start = self.scales_start + (9 if which == "v" else 8) * self.positions
        return base.at(start).at(position)

    def write_k(self, base: Value, position: Value, codes: Value, path: Path) -> None:
        """Scatter one key's codes, int8 [plane][k_dim], four channels at a time; ``position`` within the block."""
        fn, quads = base.fn, self.k_dim // 4
        start = base.at((position >> 4) * (16 * self.k_bytes) + (position & 15) * 4)
        if self.nibbles:
            with fn.loop(quads // 2) as two:
                low, high = (codes.at(two * 8).at(at).load("i32", 1) for at in (0, 4))
                start.at(two * 64).store(low | (high << 4))
            return
        with fn.loop(quads) as quad:
            for plane in range(self.planes):
                four = codes.at(quad * 4).at(plane * self.k_dim).load("i32", 1)
                four = four ^ 0x80808080 if path.offset else four
                start.at(quad * (64 * self.planes)).at(64 * plane).store(four)

    def write_v(self, base: Value, position: Value, codes: Value) -> None:
        """Scatter one value's codes byte by byte: neighbours in memory are positions of the block."""
        fn = base.fn
        row = self.v_dim * 4
        quad = (position >> 6) * 16 + (position & 15)
        start = base.at(self.v_start).at(quad * (4 * self.v_bytes) + ((position >> 4) & 3))
        if self.nibbles:
            for first in range(0, self.v_dim, 32):
                with fn.loop(16) as d:
                    low, high = (codes.at(first + at).at(d).load("i8", 1) for at in (0, 16))
                    start.at(2 * first).at(d * 4).store(low | (high << 4), 1)
            return
        with fn.loop(self.dim) as d:
            for plane in range(self.planes):
                one = codes.at(d).at(plane * self.k_dim).load("i8", 1)
                start.at(d * 4).at(plane * row).store(one, 1)


def nibble_groups(path: Path, at: Value) -> list[list[Value]]:
    """64 bytes as two groups of nibbles, the lower ones first, in the form :meth:`Path.dot` takes."""
    both = at.load("<16 x i32>", 64)
    return [path.bytes_of(both & 0x0F0F0F0F), path.bytes_of((both >> 4) & 0x0F0F0F0F)]
