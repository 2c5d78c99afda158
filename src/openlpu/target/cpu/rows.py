"""Operators on one token's vectors in, one kernel out: embed, quantize, rms, headnorm, rope, cache writes.

A row stage is a list of :class:`Op`; its kernel does one token row (a tile) through all of them, over vectors of
16 lanes.  Values live in memory between operators: a row fits the first cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from openlpu.arch.truepoint import codes as tp
from openlpu.target.cpu.cache import BLOCK, BLOCK_BITS, CacheLayout
from openlpu.target.cpu.elementwise import gated, reciprocal, round_even, rsqrt
from openlpu.target.cpu.emit import Function, Slot, Value, pair, reduce, split, vec
from openlpu.target.cpu.linear import STEP, code_stride, excess_at, padded, report, value_stride
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.weights import code_at

ROW_BYTES = 16  # one token row in the step's header: token, slot, position, unused
CENTRED_AT = 1024  # in the scratch of a cache write, behind a head's codes: the head less its centre, fp32
ROWS_AT = 64  # where the rows begin in the header

Sink = Callable[[Value, int, Value | None, Value], None]  # (index, lanes, high plane or None, low plane)


@dataclass(frozen=True)
class Op:
    """One operator of a row stage: its argument slots by word and its compile-time numbers by word."""

    name: str
    slots: tuple[tuple[str, int], ...]
    numbers: tuple[tuple[str, Any], ...]

    def slot(self, word: str) -> int:
        return dict(self.slots).get(word, -1)

    def number(self, word: str) -> Any:
        return dict(self.numbers)[word]


class RowKernel:
    """Generates the kernel of one row stage."""

    def __init__(self, fn: Function, path: Path, cache: CacheLayout) -> None:
        self.fn, self.path, self.cache = fn, path, cache
        self.row = fn.params["tile"]

    def emit(self, ops: tuple[Op, ...]) -> None:
        for op in ops:
            getattr(self, f"_{op.name}")(op)

    def pointer(self, op: Op, word: str) -> Value:
        return self.fn.params["args"].at(8 * op.slot(word)).load("ptr", 8)

    def value(self, op: Op, word: str, size: int) -> Value:
        """Pointer to this row of an fp32 value."""
        return self.pointer(op, word).at(self.row * (4 * value_stride(size)))

    def header(self, field: int) -> Value:
        """Token (0), slot (1) or position (2) of this row, as i64."""
        at = self.fn.params["step"].at(self.row * ROW_BYTES).at(ROWS_AT + 4 * field)
        return at.load("i32").cast("sext", "i64")

    def _map(self, size: int, out: Value, function: Callable[..., Value], *inputs: Value) -> None:
        """out[i] = function(inputs[i] …) over fp32 vectors."""
        for i, lanes in self.fn.chunks(size):
            kind = vec("float", lanes)
            out.at(i * 4).store(function(*(x.at(i * 4).load(kind) for x in inputs)))

    def _add(self, op: Op) -> None:
        size = op.number("size")
        a, b, out = (self.value(op, word, size) for word in ("a", "b", "out"))
        self._map(size, out, lambda x, y: x + y, a, b)

    def _mul(self, op: Op) -> None:
        size = op.number("size")
        x, out = self.value(op, "x", size), self.value(op, "out", size)
        self._map(size, out, lambda x, gain: x * gain, x, self.pointer(op, "gain"))

    def _silu_mul(self, op: Op) -> None:
        size = op.number("size")
        gate, up, out = (self.value(op, word, size) for word in ("gate", "up", "out"))
        numbers = dict(op.numbers)
        clamp = (numbers["alpha"], numbers["limit"]) if "limit" in numbers else None
        self._map(size, out, lambda g, u: gated(g, u, clamp), gate, up)

    _swiglu = _silu_mul

    def _embed(self, op: Op) -> None:
        """Gather one row of codes, plain [vocab, size] or from the panels of a tied head."""
        fn, size, format = self.fn, op.number("size"), op.number("format")
        token, table = self.header(0), self.pointer(op, "codes")
        scale = self.pointer(op, "scale").at(token * 4).load("float")
        out, gain = self.value(op, "out", size), op.slot("gain")
        for i, lanes in fn.chunks(size, 4):
            if format:
                code = code_at(self.path, format, table, size, token, i, lanes)
            else:
                code = table.at(token * size).at(i).load(vec("i8", lanes), 1)
            x = code.cast("sitofp", vec("float", lanes)) * scale.splat(lanes)
            if gain >= 0:
                x = x * self.pointer(op, "gain").at(i * 4).load(x.kind)
            out.at(i * 4).store(x)

    def _quantize(self, op: Op) -> None:
        """Codes of a row for a linear stage, or per head (``heads`` > 0) for attention's query."""
        size, wide = op.number("size"), op.number("wide")
        x = self.value(op, "x", size)
        codes = self.pointer(op, "codes").at(self.row * code_stride(self.path, size, wide))
        meta = self.pointer(op, "meta").at(self.row * 16)
        sums = [self.fn.slot(vec("i32", 16)) for _ in range(2)]
        high_at = padded(size, STEP) * self.path.code_bytes

        def sink(i: Value, lanes: int, high: Value | None, low: Value) -> None:
            at = codes.at(i * self.path.code_bytes)
            kind = vec(self.path.code, lanes)
            at.store(low.cast("trunc", kind), 1)
            _accumulate(sums[0], low)
            if high is not None:
                at.at(high_at).store(high.cast("trunc", kind), 1)
                _accumulate(sums[1], high)

        scale = self._codes(x, size, wide, sink)
        self._zero(codes, size)
        if wide:
            self._zero(codes.at(high_at), wide)
        if op.number("blocks"):
            self._excess(codes, size, wide)
        meta.store(scale)
        meta.at(4).store(reduce(sums[0].get(), "add"))
        meta.at(8).store(reduce(sums[1].get(), "add"))

    def _excess(self, codes: Value, size: int, wide: int) -> None:
        """-Σcode of every 16 codes of both planes, for products with weights in blocks."""
        out = codes.at(excess_at(self.path, size, wide))
        steps = (padded(size, STEP) + padded(wide, STEP)) // STEP
        with self.fn.loop(steps) as step:
            block = codes.at(step * (STEP * self.path.code_bytes)).load(vec(self.path.code, STEP), 1)
            block = block.cast("sext", vec("i32", STEP))
            out.at(step * 4).store(self.fn.value("i32", 0) - reduce(block, "add"))

    def _zero(self, codes: Value, size: int) -> None:
        """Codes from ``size`` to the next whole step are 0: their weights do not count."""
        zero = self.fn.value(self.path.code, 0)
        for i in range(size, padded(size, STEP)):
            codes.at(i * self.path.code_bytes).store(zero, 1)

    def _codes(self, x: Value, size: int, wide: int, sink: Sink) -> Value:
        """TruePoint's quantize: hands every vector of planes to ``sink``, returns the scale."""
        fn = self.fn
        narrow_top = self._amax(x.at(4 * wide), size - wide) * float(tp.INV_NARROW)
        wide_top = self._amax(x, wide) * float(tp.INV_WIDE)
        scale = pair(pair(narrow_top, wide_top, "fmax"), fn.value("float", float(tp.SCALE_FLOOR)), "fmax")
        inverse = reciprocal(scale)
        for start, count in ((0, wide), (wide, size - wide)):
            limit = tp.WIDE_MAX if start < wide else tp.NARROW_MAX
            for i, lanes in fn.chunks(count):
                at = i + start
                code = round_even(x.at(at * 4).load(vec("float", lanes)) * inverse.splat(lanes))
                code = fn.select(code.compare("slt", -limit), -limit, code)
                code = fn.select(code.compare("sgt", limit), limit, code)
                if start < wide:
                    high = (code + 128) >> 8
                    sink(at, lanes, high, code - (high << 8))
                else:
                    sink(at, lanes, None, code)
        return scale

    def _nibbles(self, x: Value, size: int, sink: Sink) -> tuple[Value, Value]:
        """TruePoint's quantize_nibbles: hands every vector of code - zero to ``sink``, returns scale and zero."""
        fn = self.fn
        self._amax(x, size)  # reports what is refused
        low, high = fn.slot("float", 0.0), fn.slot("float", 0.0)
        for i, lanes in fn.chunks(size):
            part = x.at(i * 4).load(vec("float", lanes))
            low.set(pair(low.get(), reduce(part, "fmin"), "fmin"))
            high.set(pair(high.get(), reduce(part, "fmax"), "fmax"))
        span = (high.get() - low.get()) * float(tp.INV_NIBBLE)
        scale = pair(span, fn.value("float", float(tp.SCALE_FLOOR)), "fmax")
        inverse = reciprocal(scale)
        zero = round_even(low.get() * inverse)
        for i, lanes in fn.chunks(size):
            code = round_even(x.at(i * 4).load(vec("float", lanes)) * inverse.splat(lanes)) - zero.splat(lanes)
            code = fn.select(code.compare("slt", 0), 0, code)
            sink(i, lanes, None, fn.select(code.compare("sgt", tp.NIBBLE_MAX), tp.NIBBLE_MAX, code))
        return scale, zero

    def _amax(self, x: Value, size: int) -> Value:
        """Largest magnitude as the integer maximum of the magnitude's bits; reports one that TruePoint refuses."""
        fn = self.fn
        if not size:
            return fn.value("float", 0.0)
        top = fn.slot(vec("i32", 16))
        for i, lanes in fn.chunks(size):
            bits = x.at(i * 4).load(vec("i32", lanes)) & 0x7FFFFFFF
            whole = _widened(bits)
            top.set(pair(top.get(), whole, "smax"))
        largest = reduce(top.get(), "smax")
        report(fn, largest, int(tp.MAGNITUDE_LIMIT.view(np.int32)))
        return largest.as_kind("float")

    def _rms(self, op: Op) -> None:
        """The scale of q times 1/rms of the reference's codes; the codes themselves stay where they are."""
        size, wide = op.number("size"), op.number("wide")
        codes = self.pointer(op, "codes").at(self.row * code_stride(self.path, size, wide))
        squares = _Squares(self.fn)
        for start, count in ((0, wide), (wide, size - wide)):
            for i, lanes in self.fn.chunks(count):
                at = codes.at((i + start) * self.path.code_bytes)
                load = vec(self.path.code, lanes)
                low = at.load(load, 1).cast("sext", vec("i32", lanes))
                high = at.at(padded(size, STEP) * self.path.code_bytes) if start < wide else None
                squares.add(high.load(load, 1).cast("sext", vec("i32", lanes)) if high else None, low)
        reference, q, out = (self.pointer(op, w).at(self.row * 16) for w in ("reference_meta", "meta", "out"))
        factor = squares.rms_factor(reference.load("float"), size, op.number("eps"))
        out.store(q.load("float") * factor)
        for field in (4, 8):
            out.at(field).store(q.at(field).load("i32"))

    def _headnorm(self, op: Op) -> None:
        """Each head times 1/rms of its two-plane codes, times the gain."""
        size, heads = op.number("size"), op.number("heads")
        dim = size // heads
        x, out = self.value(op, "x", size), self.value(op, "out", size)
        gain = self.pointer(op, "gain")
        with self.fn.loop(heads) as head:
            source, target = x.at(head * (4 * dim)), out.at(head * (4 * dim))
            squares = _Squares(self.fn)
            scale = self._codes(source, dim, dim, lambda i, lanes, high, low: squares.add(high, low))
            factor = squares.rms_factor(scale, dim, op.number("eps"))
            self._map(dim, target, lambda x, g: (x * factor.splat(split(x.kind)[1])) * g, source, gain)

    def _rope(self, op: Op) -> None:
        """Rotate the two halves of each head by the position's angles."""
        size, heads = op.number("size"), op.number("heads")
        half = size // heads // 2
        x, out = self.value(op, "x", size), self.value(op, "out", size)
        cos, sin = (self.pointer(op, word).at(self.header(2) * (4 * half)) for word in ("cos", "sin"))
        with self.fn.loop(heads) as head:
            at = head * (8 * half)
            for i, lanes in self.fn.chunks(half):
                kind = vec("float", lanes)
                a, b = x.at(at).at(i * 4).load(kind), x.at(at).at(4 * half).at(i * 4).load(kind)
                c, s = cos.at(i * 4).load(kind), sin.at(i * 4).load(kind)
                out.at(at).at(i * 4).store(a * c - b * s)
                out.at(at).at(4 * half).at(i * 4).store(b * c + a * s)

    def _store(self, op: Op) -> None:
        """Codes of every key or value head of this row into its slot's cache (``which`` is k or v)."""
        layout, fn = self.cache, self.fn
        x = self.value(op, "x", layout.heads * layout.dim)
        block, position = self.header(2) >> BLOCK_BITS, self.header(2) & (BLOCK - 1)
        bytes_ = fn.params["scratch"]
        wide = layout.dim if layout.planes == 2 else 0

        def sink(i: Value, lanes: int, high: Value | None, low: Value) -> None:
            kind = vec("i8", lanes)
            bytes_.at(i).store(low.cast("trunc", kind), 1)
            if high is not None:
                bytes_.at(i).at(layout.k_dim).store(high.cast("trunc", kind), 1)

        for i in range(layout.dim, layout.v_dim if layout.nibbles else layout.k_dim):
            for plane in range(layout.planes):
                bytes_.at(i + plane * layout.k_dim).store(fn.value("i8", 0), 1)
        with fn.loop(layout.heads) as head:
            of_head, which = x.at(head * (4 * layout.dim)), op.number("which")
            if op.slot("centre") >= 0:
                centre, centred = self.pointer(op, "centre").at(head * (4 * layout.dim)), bytes_.at(CENTRED_AT)
                self._map(layout.dim, centred, lambda key, middle: key - middle, of_head, centre)
                of_head = centred
            base = self.pointer(op, "cache").at(layout.offset(self.header(1), block, head))
            if layout.nibbles:
                scale, zero = self._nibbles(of_head, layout.dim, sink)
                layout.zero_at(base, which, position).store(zero.cast("trunc", "i8"), 1)
            else:
                scale = self._codes(of_head, layout.dim, wide, sink)
            if which == "k":
                layout.write_k(base, position, bytes_, self.path)
            else:
                layout.write_v(base, position, bytes_)
            layout.scale_at(base, which, position).store(scale)


class _Squares:
    """Exact Σ high², Σ high * low, Σ low² of a coded vector."""

    def __init__(self, fn: Function) -> None:
        self.fn = fn
        self.hh, self.hl, self.ll = (fn.slot(vec("i32", 16)) for _ in range(3))

    def add(self, high: Value | None, low: Value) -> None:
        _accumulate(self.ll, low * low)
        if high is not None:
            _accumulate(self.hh, high * high)
            _accumulate(self.hl, high * low)

    def rms_factor(self, scale: Value, size: int, eps: float) -> Value:
        """1/rms: rsqrt((Σcode² * scale²) * fp32(1/size) + eps)."""
        hh, hl, ll = (reduce(s.get(), "add").cast("sitofp", "float") for s in (self.hh, self.hl, self.ll))
        total = (hh * 65536.0 + hl * 512.0) + ll
        mean = (total * (scale * scale)) * float(np.float32(1 / size))
        return rsqrt(mean + float(np.float32(eps)))


def _widened(vector: Value) -> Value:
    """A shorter integer vector with zeros up to 16 lanes."""
    lanes = split(vector.kind)[1]
    if lanes == 16:
        return vector
    fn = vector.fn
    if lanes == 1:
        return fn.define(vec("i32", 16), f"insertelement <16 x i32> zeroinitializer, i32 {vector.ref}, i32 0")
    zero = fn.value(vector.kind, 0)
    return vector.shuffle(zero, [*range(lanes), *[lanes] * (16 - lanes)])


def _accumulate(total: Slot, part: Value) -> None:
    """Add a vector of up to 16 lanes to a sum of 16."""
    total.set(total.get() + _widened(part))
