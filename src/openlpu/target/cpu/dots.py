"""A format of weights in, dot products out: exact int32 sums of one panel and a few token rows.

``dot<rows>`` multiplies codes.  ``dot<rows>n`` never makes codes of its nibbles where the processor multiplies unsigned
by signed bytes: in a block, Σ step * (q - zero) * a = step * Σ q * a + step * zero * (-Σ a), and the activations'
quantisation has left -Σ a of every block.  Both sums fit 16 bits, so a multiply-add of 16-bit pairs joins them.
"""

from __future__ import annotations

from collections.abc import Iterator

from openlpu.target.cpu.emit import Function, Value, vec
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.weights import BYTES, NIBBLES, STEP, Format

I16 = vec("i32", 16)
EXPAND_ROWS = 8  # token rows from which on a panel of nibbles is expanded once for all of them
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
        groups = range(path.panel // 16)
        self.scaled_sums = [[[self.fn.slot(I16) for _ in range(1 + wide)] for _ in groups] for _ in range(rows)]
        # The dot instruction takes several cycles: with few rows, independent sums hide them.
        sets = {1: 4, 2: 2}.get(rows, 1) if path.bytewise and not self.scaled else 1
        self.sums = [] if self.scaled else [
            [[[path.sums(self.fn) for _ in range(1 + wide)] for _ in groups] for _ in range(rows)] for _ in range(sets)
        ]

    @property
    def scaled(self) -> bool:
        """Whether nibbles are summed as they are, and each block's sum is scaled."""
        return self.format is NIBBLES and self.path.bytewise

    def emit(self) -> Function:
        fn, p = self.fn, self.fn.params
        turn = self._scaled_turn if self.scaled else self._turn
        done = fn.value("i64", 0)
        if self.wide:
            with fn.loop(p["wide_steps"]) as step:
                turn(step, 2)
            done = p["wide_steps"]
        with fn.loop(p["steps"] - done) as i:
            turn(i + done, 1)
        self._finish(p["out"])
        fn.line("ret void")
        return fn

    def _codes(self, step: Value, planes: int) -> list[list[Value]]:
        """Where the codes of this step stand, [row][plane]."""
        at, rows = step * (STEP * self.path.code_bytes), [self.fn.params["a"]]
        for _ in range(1, self.rows):
            rows.append(rows[-1].at(self.fn.params["stride"]))
        high = self.fn.params["high"]
        return [[row.at(at), row.at(high).at(at)][:planes] for row in rows]

    def _turn(self, step: Value, planes: int) -> None:
        """STEP k of the panel."""
        if self.rows >= BUSY_ROWS:
            ahead = self.panel.at(step * (STEP * self.path.panel)).at(AHEAD)
            for line in range(0, STEP * self.path.panel, 64):
                self._prefetch(ahead.at(line))
        codes = self._codes(step, planes)
        for quad, groups in enumerate(self.format.quads(self.path, self.panel, step, self.steps)):
            sums = self.sums[quad % len(self.sums)]
            for row, pointers in enumerate(codes):
                for plane, pointer in enumerate(pointers):
                    code = self.path.codes(pointer.at(quad * 4 * self.path.code_bytes))
                    for j, group in enumerate(groups):
                        self.path.dot(sums[row][j][plane], group, code)

    def _scaled_turn(self, step: Value, planes: int) -> None:
        """STEP k of nibbles, a block: its plain sum, then the block's step and zero."""
        codes = self._codes(step, planes)
        blocks = [[[self.path.sums(self.fn) for _ in range(self.path.panel // 16)] for _ in row] for row in codes]
        for quad, groups in enumerate(NIBBLES.plain(self.path, self.panel, step)):
            for row, pointers in enumerate(codes):
                for plane, pointer in enumerate(pointers):
                    code = self.path.codes(pointer.at(quad * 4))
                    for sums, group in zip(blocks[row][plane], groups, strict=True):
                        self.path.dot(sums, group, code)
        scales = NIBBLES.scales(self.path, self.panel, step, self.steps)
        for row, sums in enumerate(self.scaled_sums):
            at = codes[row][0].at(step * (4 - STEP)).at(self.fn.params["excess"])
            for plane in range(planes):
                excess = (at.at(self.steps * 4) if plane else at).load("i32").splat(16)
                for j, (size, offset) in enumerate(scales):
                    add = self.path.times(self.path.total(blocks[row][plane][j]), size)
                    sums[j][plane].set((sums[j][plane].get() + add) + self.path.times(excess, offset))

    def _prefetch(self, at: Value) -> None:
        """Bring a line into the second-level cache: reading, middling locality, data."""
        self.fn.call("void", "@llvm.prefetch", at, *(self.fn.value("i32", word) for word in (0, 2, 1)))

    def _finish(self, out: Value) -> None:
        """Write [plane][row][panel] int32."""
        for row in range(self.rows):
            for j, planes in enumerate(self.scaled_sums[row]):
                for plane, scaled in enumerate(planes):
                    total = scaled.get()
                    for sums in self.sums:
                        total = total + self.path.total(sums[row][j][plane])
                    place = (plane * self.rows + row) * self.path.panel + 16 * j
                    out.at(4 * place).store(total, 64)


def dot_name(format: Format, rows: int, wide: bool) -> str:
    """``dot<rows>[n][w]``."""
    return f"dot{rows}{format.mark}{'w' if wide else ''}"


def dot_kernels(path: Path, used: set[tuple[Format, bool]]) -> Iterator[Function]:
    """What linear stages call, given the formats they read and whether some channels have two planes.

    ``dot…(w, a, stride, high, excess, wide_steps, steps, out)``: ``out`` becomes [plane][row][panel] int32;
    ``wide_steps`` and ``steps`` count STEPs of k, the other numbers are bytes.  ``expand(panel, steps, out)``.
    """
    if any(format is NIBBLES for format, _ in used):
        fn = Function("expand", "internal void", [("ptr", "panel"), ("i64", "steps"), ("ptr", "out")])
        NIBBLES.expand(path, fn.params["panel"], fn.params["steps"], fn.params["out"])
        fn.line("ret void")
        yield fn
        used = used | {(BYTES, wide) for _, wide in used}
    for format, wide in sorted(used, key=lambda pair: (pair[0].mark, pair[1])):
        for rows in path.blocks:
            if format is BYTES or rows < EXPAND_ROWS:
                yield _Dot(path, format, rows, wide).emit()
