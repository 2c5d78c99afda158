"""Packed weights and activation codes in, fp32 rows out: the matrix product of a step.

Weights lie in panels (:mod:`~openlpu.target.cpu.weights`): one sequential stream in which every 64 codes meet four
broadcast codes of a token row.  A *tile* is some panels and all token rows of the step: its bytes come from memory
once and from the cache for the other blocks of rows.  With many rows a panel of nibbles or pairs is expanded once,
into scratch.  The epilogue turns the exact sums into fp32
and applies scales, bias, and what follows in the graph: a residual addition or the gated product.
"""

from __future__ import annotations

from dataclasses import dataclass

from openlpu.target.cpu.dots import dot_name
from openlpu.target.cpu.elementwise import gated
from openlpu.target.cpu.emit import Function, Slot, Value, reduce, vec
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.weights import BYTES, STEP, Format, padded

ERROR_AT = 8  # in the step header: the lowest stage number that met a NaN or an infinity
F16, I16 = vec("float", 16), vec("i32", 16)
TILE_BYTES = 512 << 10  # claiming a tile drains the loads in flight: it should be rare
SHARES = 4  # tiles of a small stage per thread, so that one that was interrupted holds little


@dataclass(frozen=True)
class Part:
    """One weight matrix of a linear stage: its row count and the argument slots of what its epilogue reads.

    ``gate`` is a second matrix, whose silu multiplies this one's result; with ``clamp`` (alpha, limit) they make a
    swiglu.
    """

    rows: int
    codes: int
    scale: int
    out: int
    bias: int = -1
    residual: int = -1
    format: Format = BYTES
    gate: Part | None = None
    clamp: tuple[float, float] | None = None
    logits: bool = False  # a NaN or an infinity in the result is reported

    def matrices(self) -> tuple[Part, ...]:
        """Itself and the gate, if it has one."""
        return (self, self.gate) if self.gate else (self,)

    def expands(self, path: Path) -> bool:
        """Whether many token rows first expand a panel."""
        return any(matrix.format.expands(path) for matrix in self.matrices())


@dataclass(frozen=True)
class LinearStage:
    """Matrices that read the same codes: k channels, ``wide`` of them with two planes."""

    k: int
    wide: int
    codes: int
    meta: int
    parts: tuple[Part, ...]
    experts: int = 0  # that a matrix has one of each for, their argument slots one after another; 0: all rows share one
    chosen: int = 1  # experts of a token
    starts: int = -1  # where each expert's rows begin

    def met(self, rows: int) -> tuple[int, int]:
        """The most experts (or 1) that so many tokens read, and the rows of each when they do."""
        active = min(self.experts, rows * self.chosen) or 1
        return active, -(-rows * self.chosen // active)

    def panels(self, path: Path) -> int:
        """Panels in all parts together; of one expert."""
        return sum(padded(part.rows, path.panel) // path.panel for part in self.parts)

    def tiles(self, path: Path, threads: int) -> int:
        """Tiles of near equal size, as many for each thread, no smaller than a panel."""
        each = max(SHARES if threads > 1 else 1, self.weight_bytes(path) // (TILE_BYTES * threads))
        return min(self.met(1)[0] * self.panels(path), each * threads)

    def weight_bytes(self, path: Path, rows: int = 1) -> int:
        """Bytes of all panels that a step of so many tokens reads, once each."""
        return self.met(rows)[0] * sum(
            padded(part.rows, path.panel) // path.panel * matrix.format.panel_bytes(path, self.k)
            for part in self.parts for matrix in part.matrices()
        )


Panels = dict[Part, tuple[Format, Value]]  # where the panel of each matrix, or its sums, are; and in which format


class LinearKernel:
    """Generates the kernel of one :class:`LinearStage`: ``tile`` picks the part and the panel."""

    def __init__(self, fn: Function, path: Path, stage: LinearStage, threads: int) -> None:
        self.fn, self.path, self.stage, self.tiles = fn, path, stage, stage.tiles(path, threads)
        self.args = fn.params["args"]
        self.planes = 2 if stage.wide else 1
        self.code_stride = code_stride(path, stage.k, stage.wide)
        self.first, self.rows, self.expert = fn.value("i64", 0), fn.params["rows"], fn.value("i64", 0)

    def arg(self, slot: int) -> Value:
        return self.args.at(8 * slot).load("ptr", 8)

    def weights(self, slot: int) -> Value:
        """An argument that the rows ``first`` … ``first + rows`` meet: of a matrix."""
        return self.arg(slot)

    def emit(self) -> None:
        fn, panels = self.fn, self.stage.panels(self.path)
        tile = fn.params["tile"]
        first, end = ((tile + i) * panels for i in range(2))
        first, end = first.udiv(self.tiles), end.udiv(self.tiles)
        start = 0
        for part in self.stage.parts:
            stop = start + padded(part.rows, self.path.panel) // self.path.panel
            low = fn.select(first.compare("slt", start), start, first)
            high = fn.select(end.compare("sgt", stop), stop, end)
            with fn.loop(high - low) as i:
                self._panel(part, i + low - start)
            start = stop

    def _panel(self, part: Part, panel: Value) -> None:
        """All rows of the step in blocks: as many of the largest as fit, then of the next."""
        fn, rows, row = self.fn, self.rows, self.fn.slot("i64")
        at = {m: self.weights(m.codes).at(panel * m.format.panel_bytes(self.path, self.stage.k))
              for m in part.matrices()}
        expands = part.expands(self.path)
        if expands:
            with fn.when(rows.compare("sge", self.path.expand_rows)):
                bytes_ = {m: self._expanded(i, m, at[m]) for i, m in enumerate(at)}
                for block in self.path.blocks:
                    self._blocks(part, panel, row, block, bytes_)
        for block in self.path.blocks:
            if block < self.path.expand_rows or not expands:
                self._blocks(part, panel, row, block, {m: (m.format, p) for m, p in at.items()})

    def _expanded(self, place: int, matrix: Part, at: Value) -> tuple[Format, Value]:
        """A panel that expands as bytes, in scratch behind the sums."""
        if not matrix.format.expands(self.path):
            return matrix.format, at
        out = self.fn.params["scratch"].at(sums_bytes(self.path) + place * BYTES.panel_bytes(self.path, self.stage.k))
        steps = self.fn.value("i64", padded(self.stage.k, STEP) // STEP)
        self.fn.call("void", f"@expand{matrix.format.mark}", at, steps, out)
        return BYTES, out

    def _blocks(self, part: Part, panel: Value, row: Slot, block: int, at: Panels) -> None:
        with self.fn.loop((self.rows - row.get()).udiv(block)):
            self._block(part, panel, self.first + row.get(), block, at)
            row.set(row.get() + block)

    def _block(self, part: Part, panel: Value, row: Value, block: int, at: Panels) -> None:
        area = 4 * self.planes * block * self.path.panel
        sums = {m: (format, self.fn.params["scratch"].at(i * area)) for i, (m, (format, _)) in enumerate(at.items())}
        for matrix, (format, place) in at.items():
            self._dot(format, place, row, block, sums[matrix][1])
        with self.fn.loop(block) as i:
            for j in range(self.path.panel // 16):
                self._epilogue(part, panel * self.path.panel + 16 * j, row + i, sums, (i, j, block))

    def _dot(self, format: Format, at: Value, row: Value, block: int, out: Value) -> None:
        k = padded(self.stage.k, STEP)
        wide = padded(self.stage.wide, STEP)
        number = self.fn.value
        self.fn.call(
            "void", f"@{dot_name(format, block, bool(wide))}", at,
            self.arg(self.stage.codes).at(row * self.code_stride),
            number("i64", self.code_stride), number("i64", k * self.path.code_bytes),
            number("i64", excess_at(self.path, self.stage.k, self.stage.wide)),
            number("i64", wide // STEP), number("i64", format.steps(self.stage.k)), out,
        )

    def _epilogue(self, part: Part, column: Value, row: Value, sums: Panels,
                  place: tuple[Value, int, int]) -> None:
        """16 results of one token row: ((Σ * scale) * row scale) + bias, then the fused operator."""
        y = self._scaled(part, column, row, sums[part], place)
        if part.gate:
            y = gated(self._scaled(part.gate, column, row, sums[part.gate], place), y, part.clamp)
        at = row * (4 * value_stride(part.rows)) + column * 4
        if part.residual >= 0:
            y = self.arg(part.residual).at(at).load(F16) + y
        if part.logits:
            report(self.fn, reduce(y.as_kind("i32") & 0x7FFFFFFF, "smax"))
        self.arg(part.out).at(at).store(y)

    def _scaled(self, part: Part, column: Value, row: Value, sums: tuple[Format, Value],
                place: tuple[Value, int, int]) -> Value:
        (format, at), (i, j, block) = sums, place
        meta = self.arg(self.stage.meta).at(row * 16)
        at = at.at(i * (4 * self.path.panel) + 64 * j)
        offset = format.offset(self.path)
        y = self._sum(at, meta.at(4), offset)
        if self.stage.wide:
            high = self._sum(at.at(4 * block * self.path.panel), meta.at(8), offset)
            y = high * 256.0 + y
        y = (y * meta.load("float").splat(16)) * self.weights(part.scale).at(column * 4).load(F16)
        return y + self.weights(part.bias).at(column * 4).load(F16) if part.bias >= 0 else y

    def _sum(self, at: Value, codes_sum: Value, offset: int) -> Value:
        """An exact sum as fp32, free of the weights' offset."""
        total = at.load(I16, 64)
        if offset:
            total = total - (codes_sum.load("i32") * offset).splat(16)
        return total.cast("sitofp", F16)


def report(fn: Function, magnitude: Value, limit: int = 0x7F800000) -> None:
    """Leave the stage's number in the step header if these magnitude bits reach ``limit``, or are a NaN's."""
    with fn.when(magnitude.compare("sge", limit)):
        stage = fn.params["args"].load("i64", 8).cast("trunc", "i32")
        at = fn.params["step"].at(ERROR_AT)
        fn.define("i32", f"atomicrmw umin ptr {at.ref}, i32 {stage.ref} monotonic")


def value_stride(size: int) -> int:
    """Elements between token rows of an fp32 value; padded so that whole panels can be written."""
    return padded(size, 32)


def code_stride(path: Path, size: int, wide: int) -> int:
    """Bytes between token rows of a coded value: the low plane, the wide channels' high plane, sums of blocks.

    An odd number of cache lines: rows a power of two apart would compete for the same sets of the cache.
    """
    excess = 4 * (padded(size, STEP) + padded(wide, STEP)) // STEP + (64 if wide else 0)  # read 16 at a time
    return 64 * (padded(excess_at(path, size, wide) + excess, 64) // 64 | 1)


def excess_at(path: Path, size: int, wide: int) -> int:
    """Where in a coded row -Σcode of every 16 codes stand, int32, of the low plane and then of the high one."""
    return padded((padded(size, STEP) + padded(wide, STEP)) * path.code_bytes, 64)


def sums_bytes(path: Path) -> int:
    """Sums of a linear tile: two matrices, two planes, the largest block."""
    return 4 * 2 * 2 * path.blocks[0] * path.panel


def scratch_bytes(path: Path, stage: LinearStage) -> int:
    """Scratch of a linear tile: sums, and panels expanded."""
    expanded = max(len(part.matrices()) if part.expands(path) else 0 for part in stage.parts)
    return sums_bytes(path) + expanded * BYTES.panel_bytes(path, stage.k)
