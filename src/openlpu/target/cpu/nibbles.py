"""A vector path in, how it sums a block of nibbles out: Σ q·codes over 16 k of 16 rows, then times the block's step.

q is 0 … 15 and a code a signed byte, so |Σ q·codes| of a block is at most 16 * 15 * 128 < 2**15: 16 bits hold it.
"""

from __future__ import annotations

from collections.abc import Callable

from openlpu.target.cpu.emit import Function, Slot, Value
from openlpu.target.cpu.path import MADD_256, Path, joined

PAIRS, BYTES = "<16 x i16>", "<32 x i8>"


class BlockProducts:
    """With the path's own dot product."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sums(self, fn: Function) -> list[Slot]:
        """Fresh sums of 16 rows."""
        return self.path.sums(fn)

    def group(self, words: Value) -> list[Value]:
        """64 q, of 16 rows and four k, from the bytes of these words."""
        return self.path.bytes_of(words)

    def quads(self, at: Value) -> Callable[[int], Value]:
        """Four activation codes in every row's place, of each of four neighbouring quads."""
        return self.path.quads(at)

    def dot(self, sums: list[Slot], group: list[Value], codes: Value) -> None:
        """sums += group · codes."""
        self.path.dot(sums, group, codes)

    def scaled(self, sums: list[Slot], size: Value) -> Value:
        """The 16 sums times the rows' steps, int32."""
        return self.path.times(self.path.total(sums), size)


class ShortProducts(BlockProducts):
    """With AVX2's product of unsigned and signed bytes: it adds pairs in 16 bits, and here nothing saturates."""

    def sums(self, fn: Function) -> list[Slot]:
        return [fn.slot(PAIRS) for _ in range(2)]

    def group(self, words: Value) -> list[Value]:
        return [words.part(16 * i, 16).cast("bitcast", BYTES) for i in range(2)]

    def quads(self, at: Value) -> Callable[[int], Value]:
        def codes(quad: int) -> Value:
            words = self.path.quads(at)(quad)
            return at.fn.call(BYTES, "@llvm.x86.avx2.packsswb", words, words)

        return codes

    def dot(self, sums: list[Slot], group: list[Value], codes: Value) -> None:
        for total, part in zip(sums, group, strict=True):
            total.set(total.get() + part.fn.call(PAIRS, "@llvm.x86.avx2.pmadd.ub.sw", part, codes))

    def scaled(self, sums: list[Slot], size: Value) -> Value:
        twice = size | (size << 16)
        return joined([size.fn.call("<8 x i32>", MADD_256, total.get(), twice.part(8 * i, 8).cast("bitcast", PAIRS))
                       for i, total in enumerate(sums)])


def block_products(path: Path) -> BlockProducts:
    """The fastest way a path has."""
    return ShortProducts(path) if path.name == "avx2" else BlockProducts(path)
