"""Weight codes in, panels out; and how a kernel reads a panel back, sixteen rows and four k at a time.

A matrix is cut into *panels* of ``path.panel`` rows, each one sequential stream.  A *step* is 16 k of a panel, a
*group* 16 rows by four k of it: 64 codes, the operand of a dot instruction.

``BYTES``
    One byte a code, plus the path's offset: ``[step][quad][row][4]``.
``NIBBLES``
    Half a byte a code, in blocks (:mod:`openlpu.arch.truepoint.blocks`).  A step is ``[16 rows][quad pair][row][4]``,
    the even quad in the low nibbles, and then its block bytes ``[row]``: all one stream, because memory is read a
    third slower in two.  Reading expands a step to the codes that BYTES has in memory, in registers: both bytes of a
    16-bit word are multiplied at once, since q * step <= 225 leaves a byte free of carries.

Formats of pruned matrices are in :mod:`~openlpu.target.cpu.sparse`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint import blocks as tp
from openlpu.target.cpu.emit import Value, vec
from openlpu.target.cpu.path import Path

STEP = 16  # k per turn of the inner loop; K is padded to it
SLICE = 4096  # rows packed at a time: no second copy of a large matrix
WORDS = vec("i16", 32)

I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]
Groups = list[list[Value]]  # [16 rows] of what Path.dot takes


def padded(size: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return -(-size // unit) * unit


class Format(Protocol):
    """How the codes of a matrix lie in memory."""

    @property
    def mark(self) -> str:
        """Its part in the names of kernels."""
        ...

    def panel_bytes(self, path: Path, k: int) -> int:
        """Bytes of one panel of rows of ``k`` codes; a multiple of a cache line."""
        ...

    def pack(self, path: Path, codes: I8, blocks: U8 | None, out: U8) -> None:
        """Fill ``out`` with all panels of codes [N, K]; missing rows and channels become code 0."""
        ...

    def unpack(self, path: Path, data: U8, n: int, k: int) -> tuple[I8, U8 | None]:
        """Codes [N, K], and block bytes of nibbles, of what :meth:`pack` wrote."""
        ...

    def offset(self, path: Path) -> int:
        """What a dot product with one of these panels has too much: so many times Σcode of the activations."""
        ...

    def expands(self, path: Path) -> bool:
        """Whether a panel that many token rows meet is first written out as BYTES has it."""
        ...

    def steps(self, k: int) -> int:
        """Steps of a panel of rows of ``k`` codes."""
        ...

    def place(self, path: Path, panel: Value, step: Value, steps: Value) -> Value:
        """Which 16 k of the matrix the panel's step is."""
        ...

    def before(self, path: Path, panel: Value, place: Value, steps: Value) -> Value:
        """How many of the panel's steps come before a place."""
        ...

    def quads(self, path: Path, panel: Value, step: Value, steps: Value) -> Iterator[Groups]:
        """The four quads of a step of ``panel``, which has ``steps`` of them."""
        ...


class Whole:
    """What formats that leave no step out have in common."""

    def steps(self, k: int) -> int:
        return padded(k, STEP) // STEP

    def place(self, path: Path, panel: Value, step: Value, steps: Value) -> Value:
        return step

    def before(self, path: Path, panel: Value, place: Value, steps: Value) -> Value:
        return place


@dataclass(frozen=True)
class _Bytes(Whole):
    mark: str = ""

    def panel_bytes(self, path: Path, k: int) -> int:
        return path.panel * padded(k, STEP)

    def pack(self, path: Path, codes: I8, blocks: U8 | None, out: U8) -> None:
        quads = padded(codes.shape[1], STEP) // 4
        target = out.view(np.uint32).reshape(-1, quads, path.panel)
        fill = np.uint32(path.offset * 0x01010101)
        for at, part in slices(codes, path.panel):
            words = np.ascontiguousarray(part).view(np.uint32).reshape(-1, path.panel, quads)
            np.bitwise_xor(words.transpose(0, 2, 1), fill, out=target[at : at + len(words)])

    def unpack(self, path: Path, data: U8, n: int, k: int) -> tuple[I8, U8 | None]:
        words = data.view(np.uint32).reshape(-1, self.steps(k) * 4, path.panel).transpose(0, 2, 1)
        codes = np.ascontiguousarray(np.bitwise_xor(words, np.uint32(path.offset * 0x01010101))).view(np.int8)
        return np.ascontiguousarray(codes.reshape(-1, self.steps(k) * STEP)[:n, :k]), None

    def offset(self, path: Path) -> int:
        return path.offset

    def expands(self, path: Path) -> bool:
        return False

    def quads(self, path: Path, panel: Value, step: Value, steps: Value) -> Iterator[Groups]:
        at = panel.at(step * (STEP * path.panel))
        for quad in range(STEP // 4):
            yield [path.group(at.at(quad * path.panel * 4 + 64 * j)) for j in range(path.panel // 16)]


@dataclass(frozen=True)
class _Nibbles(Whole):
    mark: str = "n"

    def panel_bytes(self, path: Path, k: int) -> int:
        return padded(self.steps(k) * self._step_bytes(path), 64)

    def _step_bytes(self, path: Path) -> int:
        return path.panel * (STEP // 2 + 1)

    def pack(self, path: Path, codes: I8, blocks: U8 | None, out: U8) -> None:
        assert blocks is not None, "nibbles are expanded with block bytes"
        nibbles, scales = self._parts(path, out, codes.shape[1])
        steps = blocks.shape[1]
        for (at, part), (_, bytes_) in zip(slices(codes, path.panel), slices(blocks, path.panel, 1), strict=True):
            q = tp.split(part, bytes_).reshape(-1, path.panel // 16, 16, steps, 2, 2, 4)
            q = q.transpose(5, 0, 3, 1, 4, 2, 6)  # [even, odd quad][panel][step][16 rows][quad pair][row][4]
            nibbles[at : at + q.shape[1]] = (q[0] | q[1] << 4).reshape(*q.shape[1:3], -1)
            scales[at : at + q.shape[1]] = bytes_.reshape(-1, path.panel, steps).transpose(0, 2, 1)

    def unpack(self, path: Path, data: U8, n: int, k: int) -> tuple[I8, U8 | None]:
        nibbles, scales = self._parts(path, data, k)
        half = nibbles.reshape(-1, self.steps(k), path.panel // 16, 2, 16, 4)
        q = np.stack([half & 15, half >> 4])  # [even, odd quad][panel][step][16 rows][quad pair][row][4]
        q = q.transpose(1, 3, 5, 2, 4, 0, 6).reshape(-1, self.steps(k) * STEP)[:n, :k].astype(np.uint8)
        blocks = np.ascontiguousarray(scales.transpose(0, 2, 1).reshape(-1, self.steps(k))[:n])
        return tp.expand(q, blocks), blocks

    def _parts(self, path: Path, data: U8, k: int) -> tuple[U8, U8]:
        """The nibbles and the block bytes of packed data, [panel][step][bytes] each."""
        size = self.steps(k) * self._step_bytes(path)
        whole = data.reshape(-1, self.panel_bytes(path, k))[:, :size].reshape(-1, self.steps(k), self._step_bytes(path))
        return whole[..., : -path.panel], whole[..., -path.panel :]

    def offset(self, path: Path) -> int:
        return 0

    def expands(self, path: Path) -> bool:
        return path.name != "avx2"  # nibbles are faster than bytes there, for any number of rows

    def quads(self, path: Path, panel: Value, step: Value, steps: Value) -> Iterator[Groups]:
        rows = []
        for block in self._blocks(path, panel, step):
            twice = [lane for row in range(16) for lane in (row, 16, row, 16)]  # a row's byte in both of its words
            word = block.shuffle(panel.fn.value(block.kind, 0), twice).cast("bitcast", WORDS)
            size, zero = word >> 4, word & 15
            rows.append((size, panel.fn.value(WORDS, 0x8080) - (size * zero) * 0x0101))
        for words in self.words(path, panel, step):
            yield [path.loaded(x * size + zero) for x, (size, zero) in zip(words, rows, strict=True)]

    def scales(self, path: Path, panel: Value, step: Value) -> list[tuple[Value, Value]]:
        """Step and step * zero of every row of a step, int32, per 16 rows."""
        pairs = []
        for block in self._blocks(path, panel, step):
            byte = block.cast("zext", vec("i32", 16))
            size, zero = ((x).cast("bitcast", WORDS) for x in (byte >> 4, byte & 15))
            pairs.append((size.cast("bitcast", byte.kind), (size * zero).cast("bitcast", byte.kind)))
        return pairs

    def _blocks(self, path: Path, panel: Value, step: Value) -> list[Value]:
        at = panel.at(step * self._step_bytes(path)).at(path.panel * STEP // 2)
        return [at.at(16 * j).load(vec("i8", 16), 16) for j in range(path.panel // 16)]

    def words(self, path: Path, panel: Value, step: Value) -> Iterator[list[Value]]:
        """q of the four quads, two bytes a word, per 16 rows."""
        at, groups = panel.at(step * self._step_bytes(path)), range(path.panel // 16)
        for pair in range(2):
            words = [at.at(128 * j + 64 * pair).load(WORDS, 16) for j in groups]
            for shift in (0, 4):
                yield [(word >> shift if shift else word) & 0x0F0F for word in words]

    def code_at(self, path: Path, panel: Value, row: Value, lane: Value, lanes: int) -> Value:
        """See :func:`code_at`; ``row`` is one of the panel's."""
        quad, kind = lane >> 2, vec("i32", lanes)
        at = panel.at((quad >> 2) * self._step_bytes(path))
        four = at.at((row >> 4) * 128).at(((quad >> 1) & 1) * 64).at((row & 15) * 4)
        byte = four.load(vec("i8", lanes), 1).cast("zext", kind)
        q = (byte >> ((quad & 1) * 4).cast("trunc", "i32").splat(lanes)) & 15
        block = at.at(path.panel * STEP // 2).at(row).load("i8", 1).cast("zext", "i32")
        return (q - (block & 15).splat(lanes)) * (block >> 4).splat(lanes)


BYTES, NIBBLES = _Bytes(), _Nibbles()


def expand(format: Format, path: Path, panel: Value, steps: Value, out: Value) -> None:
    """Write a panel as BYTES has it."""
    with panel.fn.loop(steps) as step:
        at = out.at(step * (STEP * path.panel))
        for quad, groups in enumerate(format.quads(path, panel, step, steps)):
            for j, group in enumerate(groups):
                path.keep(group, at.at(quad * path.panel * 4 + 64 * j))


def slices(matrix: NDArray, panel: int, unit: int = STEP) -> Iterator[tuple[int, NDArray]]:
    """(first panel, rows padded to whole panels and ``unit`` columns), some thousand rows at a time."""
    rows, k = matrix.shape
    for start in range(0, rows, SLICE):
        part = matrix[start : start + SLICE]
        if part.shape[0] % panel or k % unit:
            whole = np.zeros((padded(part.shape[0], panel), padded(k, unit)), matrix.dtype)
            whole[: part.shape[0], :k] = part
            part = whole
        yield start // panel, part


def code_at(path: Path, format: Format, table: Value, k: int, row: Value, lane: Value, lanes: int) -> Value:
    """Codes ``lane`` … ``lane + lanes - 1`` (within a quad) of one row, int32: an embedding reads a shared table."""
    panel = table.at(row.udiv(path.panel) * format.panel_bytes(path, k))
    row = row.urem(path.panel)
    if format is NIBBLES:
        return NIBBLES.code_at(path, panel, row, lane, lanes)
    code = panel.at(lane * path.panel).at(row * 4).load(vec("i8", lanes), 1)
    return (code ^ -128 if path.offset else code).cast("sext", vec("i32", lanes))
