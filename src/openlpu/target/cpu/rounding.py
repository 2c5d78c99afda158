"""A window's factor in, the rounder of :mod:`openlpu.numerics.feedback` in machine code out: the same codes, sooner.

Sixteen rows are the lanes of a vector; they go through all blocks of the window together.  Every operation is the one
that :class:`~openlpu.numerics.feedback.Plain` does, in its order, except for sums of integers, which are exact.
Arrays lie as [group of rows, channel, 16], so that a group's are one stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint import blocks as tp
from openlpu.numerics import blocks
from openlpu.numerics.feedback import ERROR_BITS, FEEDBACK_BITS, MOST_ERROR, Factor, Rounded, inside, relative
from openlpu.target.cpu.emit import Function, Slot, Value, vec
from openlpu.target.cpu.native import Module
from openlpu.target.cpu.path import Path, choose

T = TypeVar("T", bound=np.generic)
LANES = 16
F32, F64, I8, I32 = (vec(element, LANES) for element in ("float", "double", "i8", "i32"))
POINTERS = ("t", "error", "upper", "inside", "shift", "unit", "cost", "codes", "blocks", "total")
_MOST = MOST_ERROR * 2.0**ERROR_BITS
DECLARES = f"""declare {F32} @llvm.rint.v16f32({F32})
declare {F32} @llvm.floor.v16f32({F32})
declare {F32} @llvm.ceil.v16f32({F32})
declare {F64} @llvm.rint.v16f64({F64})
declare {F64} @llvm.fmuladd.v16f64({F64}, {F64}, {F64})
"""


class Rounder:
    """Rounds rows of one window, [n, k] in units of a code; any number of threads may call it at once."""

    def __init__(self, factor: Factor, path: str = "auto") -> None:
        self.factor, self._round = factor, _compiled(path)[1]
        size = len(factor.cost)
        self._count = size // tp.BLOCK
        units = relative(factor)
        own = [inside(factor, slice(at, at + tp.BLOCK)) for at in range(0, size, tp.BLOCK)]
        exact = np.full(size, 2.0 ** -(ERROR_BITS + FEEDBACK_BITS))
        by_block = factor.upper.reshape(size, self._count, tp.BLOCK).transpose(1, 0, 2)
        self._tables = (
            np.ascontiguousarray(by_block), np.stack([upper for upper, _ in own]),
            np.divide(exact, units, out=np.zeros(size), where=units > 0), units * 2.0**ERROR_BITS,
            np.concatenate([cost for _, cost in own]),
        )

    def __call__(self, t: np.ndarray, /) -> Rounded:
        n, k = t.shape
        groups, size = -(-n // LANES), len(self.factor.cost)
        rows = np.zeros((groups * LANES, size), np.float32)
        rows[:n, :k] = t
        lanes = np.ascontiguousarray(rows.reshape(groups, LANES, size).transpose(0, 2, 1))
        codes = np.empty(lanes.shape, np.int8)
        pairs = np.empty((groups, self._count, LANES), np.uint8)
        cost = np.empty(pairs.shape, np.float32)
        arrays = (lanes, np.empty_like(lanes), *self._tables, codes, pairs, cost)
        self._round(*(array.ctypes.data for array in arrays), self._count, groups)
        return Rounded(_by_row(codes)[:n, :k], _by_row(pairs)[:n], _by_row(cost)[:n])


def _by_row(lanes: NDArray[T]) -> NDArray[T]:
    return lanes.transpose(0, 2, 1).reshape(len(lanes) * LANES, -1)


@cache
def _compiled(path: str) -> tuple[Module, Any]:
    """The machine code for a path, kept alive beside its function."""
    chosen = choose(path)
    module = Module(text(chosen), chosen)
    return module, module.function("round_rows", *[ctypes.c_void_p] * len(POINTERS), ctypes.c_int64, ctypes.c_int64)


def text(path: Path) -> str:
    """The IR of ``round_rows``: pointers to arrays, the number of blocks, the number of groups of rows."""
    fn = Function("round_rows", "void", [*(("ptr", word) for word in POINTERS), ("i64", "count"), ("i64", "groups")])
    with fn.loop(fn.params["count"]) as block, fn.loop(fn.params["groups"]) as group:
        _Block(fn, block, group).emit(8 if path.registers == 32 else 2)
    fn.line("ret void")
    return DECLARES + fn.text()


class _Try(NamedTuple):
    """A step and a zero in the making: the ends of its codes, its codes and errors so far, what it costs so far."""

    zero: Value
    low: Value
    high: Value
    codes: list[Value]
    errors: list[Value]


class _Block:
    """One block of one group of rows."""

    def __init__(self, fn: Function, block: Value, group: Value) -> None:
        self.fn, self.block, self.p = fn, block, fn.params
        self.size = self.p["count"] * tp.BLOCK  # channels of the window
        self.rows = group * self.size
        self.first = block * tp.BLOCK
        self.place = (group * self.p["count"] + block) * LANES  # in arrays of one number per block and row

    def emit(self, width: int) -> None:
        moved = self._moved(width)
        total, step, zero, codes = self._search(moved)
        pair = (step * 16.0 + zero).cast("fptosi", I32).cast("trunc", I8)
        self.p["blocks"].at(self.place).store(pair, 1)
        self.p["total"].at(self.place * 4).store(total)
        for j, code in enumerate(codes):
            at = self.rows + self.first + j
            self.p["codes"].at(at * LANES).store(code.cast("fptosi", I32).cast("trunc", I8), 1)
            off = (self._weight(j) - code).cast("fpext", F64) * self._channel("unit", j)
            error = self._call("rint", off).cast("fptrunc", F32)
            self.p["error"].at(at * LANES * 4).store(self._clip(error, -_MOST, _MOST))

    def _moved(self, width: int) -> list[Value]:
        """The block's weights plus what the errors before it add, ``width`` channels at a time."""
        fn, out = self.fn, []
        for first in range(0, tp.BLOCK, width):
            sums = [fn.slot(F64, Value(fn, F64, "zeroinitializer")) for _ in range(width)]
            with fn.loop(self.first) as i:
                error = self.p["error"].at((self.rows + i) * LANES * 4).load(F32).cast("fpext", F64)
                upper = self.p["upper"].at(((self.block * self.size + i) * tp.BLOCK + first) * 8)
                for j, total in enumerate(sums):
                    factor = upper.at(8 * j).load("double", 8).splat(LANES)
                    total.set(fn.call(F64, "@llvm.fmuladd.v16f64", error, factor, total.get()))
            for j, total in enumerate(sums, first):
                shift = (total.get() * self._channel("shift", j)).cast("fptrunc", F32)
                out.append(self._weight(j) + shift)
        return out

    def _search(self, moved: list[Value]) -> tuple[Value, Value, Value, list[Value]]:
        """Cost, step, zero and codes of the best of all pairs."""
        fn = self.fn
        nothing = fn.value(F32, 0.0)
        low, high = nothing, nothing
        for x in moved:
            low, high = self._pick(x, "olt", low), self._pick(x, "ogt", high)
        reach = self._call("ceil", self._divide(high - low, fn.value(F32, 15.0)))
        best = [fn.slot(F32, float("inf")), *(fn.slot(F32) for _ in range(2 + tp.BLOCK))]
        with fn.loop(len(blocks.STEPS)) as at:
            offset = at.cast("trunc", "i32").cast("sitofp", "float") + float(blocks.STEPS[0])
            step = self._clip(reach + offset.splat(LANES), 1.0, float(tp.MAX_STEP))
            self._step(step, low, high, moved, best)
        total, step, zero, *codes = (slot.get() for slot in best)
        return total, step, zero, codes

    def _step(self, step: Value, low: Value, high: Value, moved: list[Value], best: Sequence[Slot]) -> None:
        """All windows of one step, side by side, each kept if it is better than what was best."""
        fn = self.fn
        start = fn.value(F32, 0.0) - self._call("rint", self._divide(low, step))
        end = fn.value(F32, 15.0) - self._call("rint", self._divide(high, step))
        most = self._call("floor", self._divide(fn.value(F32, 127.0), step))
        least = fn.value(F32, 0.0) - most
        tries = []
        for window in blocks.WINDOWS:
            zero = self._clip(self._call("rint", start + (end - start) * float(window)), 0.0, 15.0)
            lowest, highest = fn.value(F32, 0.0) - zero, fn.value(F32, 15.0) - zero
            tries.append(_Try(zero, self._pick(lowest, "ogt", least), self._pick(highest, "olt", most), [], []))
        totals = [fn.value(F32, 0.0)] * len(tries)
        for j, x in enumerate(moved):
            upper = [self._upper(i, j) for i in range(j)]
            weight, cost = self._weight(j), self.p["cost"].at((self.first + j) * 4).load("float").splat(LANES)
            for at, one in enumerate(tries):
                off = self._next(one, x, step, weight, upper)
                totals[at] = totals[at] + off * off * cost
        for total, one in zip(totals, tries, strict=True):
            better = total.compare("olt", best[0].get())
            for slot, value in zip(best, (total, step, one.zero, *one.codes), strict=True):
                slot.set(fn.select(better, value, slot.get()))

    def _next(self, one: _Try, target: Value, step: Value, weight: Value, upper: Sequence[Value]) -> Value:
        """One more code; returns how far it is from what it should be."""
        for error, factor in zip(one.errors, upper, strict=True):
            target = target + error * factor
        nearest = self._call("rint", self._divide(target, step))
        code = self._pick(self._pick(nearest, "ogt", one.low), "olt", one.high) * step
        one.codes.append(code)
        one.errors.append(weight - code)
        return target - code

    def _weight(self, j: int) -> Value:
        return self.p["t"].at((self.rows + self.first + j) * LANES * 4).load(F32)

    def _channel(self, word: str, j: int) -> Value:
        """The number of channel ``j`` in a table of doubles, in every lane."""
        return self.p[word].at((self.first + j) * 8).load("double", 8).splat(LANES)

    def _upper(self, i: int, j: int) -> Value:
        at = self.first * tp.BLOCK + (i * tp.BLOCK + j)
        return self.p["inside"].at(at * 4).load("float").splat(LANES)

    def _call(self, name: str, x: Value) -> Value:
        width = 64 if x.kind == F64 else 32
        return self.fn.call(x.kind, f"@llvm.{name}.v{LANES}f{width}", x)

    def _divide(self, a: Value, b: Value) -> Value:
        return self.fn.define(F32, f"fdiv {F32} {a.ref}, {b.ref}")

    def _pick(self, a: Value, predicate: str, b: Value) -> Value:
        """The larger (ogt) or the smaller (olt) of two."""
        return self.fn.select(a.compare(predicate, b), a, b)

    def _clip(self, x: Value, low: float, high: float) -> Value:
        return self._pick(self._pick(x, "ogt", self.fn.value(F32, low)), "olt", self.fn.value(F32, high))

