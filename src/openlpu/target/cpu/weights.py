"""Weight codes in, panels out; and how a kernel reads a panel back, sixteen rows and four k at a time.

A matrix is cut into *panels* of ``path.panel`` rows, each one sequential stream.  A *step* is 16 k of a panel, a
*group* 16 rows by four k of it: 64 codes, the operand of a dot instruction.

``BYTES``
    One byte a code, plus the path's offset: ``[step][quad][row][4]``.
``NIBBLES``
    Half a byte a code, in blocks (:mod:`openlpu.arch.truepoint.blocks`): ``[step][16 rows][quad pair][row][4]``, the
    even quad in the low nibbles; behind all steps the block bytes ``[step][row]``.  Reading expands a step to the
    codes that BYTES has in memory, in registers: both bytes of a 16-bit word are multiplied at once, since
    q * step <= 225 leaves a byte free of carries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint import blocks as tp
from openlpu.target.cpu.emit import Value, vec
from openlpu.target.cpu.path import Path

STEP = 16  # k per turn of the inner loop; K is padded to it
SLICE = 4096  # rows packed at a time: no second copy of a large matrix
WORDS = vec("i16", 32)

Groups = list[list[Value]]  # [16 rows] of what Path.dot takes


def padded(size: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return -(-size // unit) * unit


class Format(Protocol):
    """How the codes of a matrix lie in memory."""

    mark: str  # in the names of kernels

    def panel_bytes(self, path: Path, k: int) -> int:
        """Bytes of one panel of rows of ``k`` codes; a multiple of a cache line."""
        ...

    def pack(self, path: Path, codes: NDArray[np.int8], blocks: NDArray[np.uint8] | None, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with all panels of codes [N, K]; missing rows and channels become code 0."""
        ...

    def quads(self, path: Path, panel: Value, step: Value, steps: Value) -> Iterator[Groups]:
        """The four quads of a step of ``panel``, which has ``steps`` of them."""
        ...


class _Bytes:
    mark = ""

    def panel_bytes(self, path: Path, k: int) -> int:
        return path.panel * padded(k, STEP)

    def pack(self, path: Path, codes: NDArray[np.int8], blocks: NDArray[np.uint8] | None, out: NDArray[np.uint8]) -> None:
        quads = padded(codes.shape[1], STEP) // 4
        target = out.view(np.uint32).reshape(-1, quads, path.panel)
        fill = np.uint32(path.offset * 0x01010101)
        for at, part in _slices(codes, path.panel):
            words = np.ascontiguousarray(part).view(np.uint32).reshape(-1, path.panel, quads)
            np.bitwise_xor(words.transpose(0, 2, 1), fill, out=target[at : at + len(words)])

    def quads(self, path: Path, panel: Value, step: Value, steps: Value) -> Iterator[Groups]:
        at = panel.at(step * (STEP * path.panel))
        for quad in range(STEP // 4):
            yield [path.group(at.at(quad * path.panel * 4 + 64 * j)) for j in range(path.panel // 16)]


class _Nibbles:
    mark = "n"

    def panel_bytes(self, path: Path, k: int) -> int:
        steps = padded(k, STEP) // STEP
        return steps * path.panel * STEP // 2 + padded(steps * path.panel, 64)

    def pack(self, path: Path, codes: NDArray[np.int8], blocks: NDArray[np.uint8] | None, out: NDArray[np.uint8]) -> None:
        assert blocks is not None, "nibbles are expanded with block bytes"
        steps = blocks.shape[1]
        target = out.reshape(-1, self.panel_bytes(path, codes.shape[1]))
        nibbles = target[:, : steps * path.panel * STEP // 2].reshape(-1, steps, path.panel // 16, 2, 16, 4)
        scales = target[:, nibbles[0].size : nibbles[0].size + steps * path.panel].reshape(-1, steps, path.panel)
        for (at, part), (_, bytes_) in zip(_slices(codes, path.panel), _slices(blocks, path.panel, 1), strict=True):
            q = tp.split(part, bytes_).reshape(-1, path.panel // 16, 16, steps, 2, 2, 4)
            q = q.transpose(5, 0, 3, 1, 4, 2, 6)  # [even, odd quad][panel][step][16 rows][quad pair][row][4]
            np.bitwise_or(q[0], q[1] << 4, out=nibbles[at : at + q.shape[1]])
            scales[at : at + q.shape[1]] = bytes_.reshape(-1, path.panel, steps).transpose(0, 2, 1)

    def quads(self, path: Path, panel: Value, step: Value, steps: Value) -> Iterator[Groups]:
        fn = panel.fn
        scales = panel.at(steps * (path.panel * STEP // 2)).at(step * path.panel)
        at, groups = panel.at(step * (path.panel * STEP // 2)), range(path.panel // 16)
        twice = [lane for row in range(16) for lane in (row, 16, row, 16)]  # a row's byte in both of its words
        rows = []
        for j in groups:
            block = scales.at(16 * j).load(vec("i8", 16), 16)
            word = block.shuffle(fn.value(block.kind, 0), twice).cast("bitcast", WORDS)
            size, zero = word >> 4, word & 15
            rows.append((size, fn.value(WORDS, 0x8080) - (size * zero) * 0x0101))
        for pair in range(2):
            words = [at.at(128 * j + 64 * pair).load(WORDS, 64) for j in groups]
            for shift in (0, 4):
                q = [(word >> shift if shift else word) & 0x0F0F for word in words]
                yield [path.loaded(x * size + zero) for x, (size, zero) in zip(q, rows, strict=True)]

    def expand(self, path: Path, panel: Value, steps: Value, out: Value) -> None:
        """Write the panel as BYTES has it."""
        with panel.fn.loop(steps) as step:
            at = out.at(step * (STEP * path.panel))
            for quad, groups in enumerate(self.quads(path, panel, step, steps)):
                for j, group in enumerate(groups):
                    path.keep(group, at.at(quad * path.panel * 4 + 64 * j))


BYTES, NIBBLES = _Bytes(), _Nibbles()


def _slices(matrix: NDArray, panel: int, unit: int = STEP) -> Iterator[tuple[int, NDArray]]:
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
    """Codes ``lane`` … ``lane + lanes - 1`` (within a quad) of one row, int32: how an embedding reads a shared table."""
    panel = table.at(row.udiv(path.panel) * format.panel_bytes(path, k))
    row, kind = row.urem(path.panel), vec("i32", lanes)
    if format is BYTES:
        code = panel.at(lane * path.panel).at(row * 4).load(vec("i8", lanes), 1)
        return (code ^ -128 if path.offset else code).cast("sext", kind)
    quad, steps = lane >> 2, padded(k, STEP) // STEP
    step = quad >> 2
    at = panel.at(step * (path.panel * STEP // 2)).at((row >> 4) * 128).at(((quad >> 1) & 1) * 64).at((row & 15) * 4)
    byte = at.load(vec("i8", lanes), 1).cast("zext", kind)
    q = (byte >> ((quad & 1) * 4).cast("trunc", "i32").splat(lanes)) & 15
    block = panel.at(steps * (path.panel * STEP // 2)).at(step * path.panel).at(row).load("i8", 1).cast("zext", "i32")
    return (q - (block & 15).splat(lanes)) * (block >> 4).splat(lanes)


