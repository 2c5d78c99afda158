"""A format of weights in, dot products out: exact int32 sums of one panel and a few token rows.

``dot<rows>`` multiplies codes.  ``dot<rows>n`` never makes codes of its nibbles: in a block, Σ step * (q - zero) * a
= step * Σ q * a + step * zero * (-Σ a), and the activations' quantisation has left -Σ a of every block.  Both sums fit
16 bits, so a multiply-add of 16-bit pairs joins them where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from openlpu.target.cpu.emit import Function, Value, reduce, vec
from openlpu.target.cpu.nibbles import block_products
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.sparse import Tiles
from openlpu.target.cpu.weights import BYTES, NIBBLES, STEP, Format, expand

I16 = vec("i32", 16)
# With many rows the multiplications fill the processor's window, and no load of later weights is started in time:
# they are asked for ahead.  With few rows the window itself runs ahead, and asking costs more than it saves.
BUSY_ROWS, AHEAD = 8, 16 << 10


class _Dot:
    """Sums of ``rows`` token rows times one panel, while a kernel is generated."""

    def __init__(self, path: Path, format: Format, rows: int, wide: bool) -> None:
        params = [("ptr", "w"), ("ptr", "a"), ("i64", "stride"), ("i64", "high"), ("i64", "excess"),
                  ("i64", "wide_steps"), ("i64", "steps"), ("ptr", "out")]
        self.fn = Function(dot_name(format, rows, wide), "internal void", params)
        self.path, self.format, self.rows, self.wide = path, format, rows, wide
        self.panel, self.steps = self.fn.params["w"], self.fn.params["steps"]
        self.products = block_products(path)
        groups = range(path.panel // 16)
        # Sums of both planes would be more than three quarters of the registers when there are many rows: then one
        # plane follows the other, unless a group must be sign-extended every time it is read.
        held = rows * len(groups) * path.sum_registers  # by one plane
        self.together = not path.bytewise or 2 * held * (2 if self.scaled else 1) <= path.registers * 3 // 4
        self.scaled_sums = [[[self.fn.slot(I16) for _ in range(1 + wide)] for _ in groups] for _ in range(rows)]
        # The dot instruction takes several cycles: with few rows, independent sums hide them, in half the registers.
        fit = path.registers // 2 // (held * (2 if wide and self.together else 1))
        sets = max(1, min(4 // rows, fit)) if path.bytewise else 1
        self.sums = [] if self.scaled else [
            [[[path.sums(self.fn) for _ in range(1 + wide)] for _ in groups] for _ in range(rows)] for _ in range(sets)
        ]

    @property
    def scaled(self) -> bool:
        """Whether nibbles are summed as they are, and each block's sum is scaled."""
        return self.format is NIBBLES

    def emit(self) -> Function:
        fn, p = self.fn, self.fn.params
        turn = self._scaled_turn if self.scaled else self._turn
        done = fn.value("i64", 0)
        if isinstance(self.format, Tiles) and self.path.offset:
            self._meet(self.format)
        if self.wide:
            done = self.format.before(self.path, self.panel, p["wide_steps"], self.steps)
            with fn.loop(done) as step:
                turn(step, (0, 1) if self.together else (1,))
            if not self.together:
                self._finish(p["out"], 1)
                done = fn.value("i64", 0)
        with fn.loop(p["steps"] - done) as i:
            turn(i + done, (0,))
        for plane in range(2 if self.wide and self.together else 1):
            self._finish(p["out"], plane)
        fn.line("ret void")
        return fn

    def _codes(self, step: Value) -> list[list[Value]]:
        """Where the codes of this step stand, [row][plane]."""
        place = self.format.place(self.path, self.panel, step, self.steps)
        at, rows = place * (STEP * self.path.code_bytes), [self.fn.params["a"]]
        for _ in range(1, self.rows):
            rows.append(rows[-1].at(self.fn.params["stride"]))
        high = self.fn.params["high"]
        return [[row.at(at), row.at(high).at(at)] for row in rows]

    def _turn(self, step: Value, planes: tuple[int, ...]) -> None:
        """One step of the panel."""
        if self.rows >= BUSY_ROWS:
            ahead = self.panel.at(step * (STEP * self.path.panel)).at(AHEAD)
            for line in range(0, STEP * self.path.panel, 64):
                self._prefetch(ahead.at(line))
        codes = self._codes(step)
        fetch = [{plane: self.path.quads(pointers[plane]) for plane in planes} for pointers in codes]
        for quad, groups in enumerate(self.format.quads(self.path, self.panel, step, self.steps)):
            sums = self.sums[quad % len(self.sums)]
            for row, of_plane in enumerate(fetch):
                for plane in planes:
                    code = of_plane[plane](quad)
                    for j, group in enumerate(groups):
                        self.path.dot(sums[row][j][plane], group, code)

    def _scaled_turn(self, step: Value, planes: tuple[int, ...]) -> None:
        """One step of nibbles, a block: its plain sum, then the block's step and zero."""
        codes, products = self._codes(step), self.products
        blocks = [{p: [products.sums(self.fn) for _ in range(self.path.panel // 16)] for p in planes} for _ in codes]
        fetch = [{plane: products.quads(pointers[plane]) for plane in planes} for pointers in codes]
        for quad, groups in enumerate(NIBBLES.words(self.path, self.panel, step)):
            for row, of_plane in enumerate(fetch):
                for plane in planes:
                    code = of_plane[plane](quad)
                    for sums, words in zip(blocks[row][plane], groups, strict=True):
                        products.dot(sums, products.group(words), code)
        scales = NIBBLES.scales(self.path, self.panel, step)
        for row, sums in enumerate(self.scaled_sums):
            at = codes[row][0].at(step * (4 - STEP * self.path.code_bytes)).at(self.fn.params["excess"])
            for plane in planes:
                excess = (at.at(self.steps * 4) if plane else at).load("i32").splat(16)
                for j, (size, offset) in enumerate(scales):
                    add = products.scaled(blocks[row][plane][j], size)
                    sums[j][plane].set((sums[j][plane].get() + add) + self.path.times(excess, offset))

    def _meet(self, format: Tiles) -> None:
        """Begin with the offset times -Σcode of the activations that the panel's tiles meet."""
        fn, p = self.fn, self.fn.params
        low = p["high"].udiv(STEP * self.path.code_bytes)  # steps of the low plane
        for plane, place in enumerate((low, p["wide_steps"])[: 1 + self.wide]):
            met = [fn.slot(I16) for _ in range(self.rows)]
            with format.some(self.path, self.panel, place, self.steps) as (step, there):
                for row, total in enumerate(met):
                    at = p["a"].at(p["stride"] * row).at(p["excess"]).at((step + low if plane else step) * 4)
                    total.set(total.get() + fn.select(there, at.load(I16), 0))
            for row, total in enumerate(met):
                start = (reduce(total.get(), "add") * self.path.offset).splat(16)
                for planes in self.scaled_sums[row]:
                    planes[plane].set(start)

    def _prefetch(self, at: Value) -> None:
        """Bring a line into the second-level cache: reading, middling locality, data."""
        self.fn.call("void", "@llvm.prefetch", at, *(self.fn.value("i32", word) for word in (0, 2, 1)))

    def _finish(self, out: Value, plane: int) -> None:
        """Write the sums of one plane into [plane][row][panel] int32."""
        for row in range(self.rows):
            for j, scaled in enumerate(self.scaled_sums[row]):
                total = scaled[plane].get()
                for sums in self.sums:
                    total = total + self.path.total(sums[row][j][plane])
                place = (plane * self.rows + row) * self.path.panel + 16 * j
                out.at(4 * place).store(total, 64)


def dot_name(format: Format, rows: int, wide: bool) -> str:
    """``dot<rows>[mark][w]``."""
    return f"dot{rows}{format.mark}{'w' if wide else ''}"


def dot_kernels(path: Path, used: set[tuple[Format, bool]]) -> Iterator[Function]:
    """What linear stages call, given the formats they read and whether some channels have two planes.

    ``dot…(w, a, stride, high, excess, wide_steps, steps, out)``: ``out`` becomes [plane][row][panel] int32;
    ``steps`` are the panel's, ``wide_steps`` the matrix's that have two planes, the other numbers are bytes.
    ``expand…(panel, steps, out)``.
    """
    kernels = {(format.mark, wide): format for format, wide in used}  # the same for any number of tiles
    for mark, format in sorted({mark: format for (mark, _), format in kernels.items()}.items()):
        if format.expands(path):
            fn = Function(f"expand{mark}", "internal void", [("ptr", "panel"), ("i64", "steps"), ("ptr", "out")])
            expand(format, path, fn.params["panel"], fn.params["steps"], fn.params["out"])
            fn.line("ret void")
            yield fn
            kernels |= {(BYTES.mark, wide): BYTES for _, wide in kernels}
    for (_, wide), format in sorted(kernels.items()):
        for rows in path.blocks:
            if rows < path.expand_rows or not format.expands(path):
                yield _Dot(path, format, rows, wide).emit()
