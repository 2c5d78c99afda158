"""Query codes and the KV cache in, attention output out: one tile is one token row and one key/value head.

Pass one over each block of 256 positions: scores by the dot instruction, the block's maximum, probabilities as
15-bit integers, Σp and Σp·v exact in int32.  Pass two joins the blocks in ascending order in fp32, as
``arch/truepoint/attention.py`` defines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from openlpu.arch.truepoint.attention import BLOCK, PROB_ONE
from openlpu.arch.truepoint.codes import SCALE_FLOOR
from openlpu.target.cpu.cache import BLOCK_BITS, CacheLayout
from openlpu.target.cpu.elementwise import exp, reciprocal, round_even
from openlpu.target.cpu.emit import Function, Slot, Value, pair, reduce, vec
from openlpu.target.cpu.linear import STEP, code_stride, padded, value_stride
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.rows import ROW_BYTES, ROWS_AT

F16, I16 = vec("float", 16), vec("i32", 16)
LOWEST = float(-np.finfo(np.float32).max)


@dataclass(frozen=True)
class AttentionStage:
    """Shapes and argument slots of one attention stage."""

    heads: int
    cache: CacheLayout
    softmax_scale: float
    codes: int = 1
    meta: int = 2
    kv: int = 3
    out: int = 4

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.cache.heads


@dataclass(frozen=True)
class Areas:
    """Byte offsets of what a tile keeps in its scratch, for G query heads."""

    stage: AttentionStage

    @property
    def probabilities(self) -> int:
        """[G][2 planes of bytes or one of 16 bits][256 positions]."""
        return 4 * self.stage.group * BLOCK  # after the scores, fp32 [G][256]

    @property
    def ratio(self) -> int:
        """fp32 [256]: V's scales relative to the block's largest."""
        return self.probabilities + 2 * self.stage.group * BLOCK

    @property
    def excess(self) -> int:
        """int32 [G][2 planes]: what the offset of K's bytes adds to every sum."""
        return self.ratio + 4 * BLOCK

    @property
    def blocks(self) -> int:
        """Per block: Σp·v fp32 [G][D], then maximum and Σp fp32 [G] each, then V's block scale."""
        return self.excess + padded(8 * self.stage.group, 64)

    @property
    def block_bytes(self) -> int:
        group = self.stage.group
        return padded(4 * (group * self.stage.cache.v_dim + 2 * group + 1), 64)

    @property
    def maxima(self) -> int:
        return 4 * self.stage.group * self.stage.cache.v_dim

    @property
    def totals(self) -> int:
        return self.maxima + 4 * self.stage.group

    @property
    def v_top(self) -> int:
        return self.totals + 4 * self.stage.group

    @property
    def size(self) -> int:
        return self.blocks + self.block_bytes * self.stage.cache.blocks


class AttentionKernel:
    """Generates the kernel of one :class:`AttentionStage`."""

    def __init__(self, fn: Function, path: Path, stage: AttentionStage) -> None:
        self.fn, self.path, self.stage = fn, path, stage
        self.cache, self.area, self.scratch = stage.cache, Areas(stage), fn.params["scratch"]
        tile = fn.params["tile"]
        self.row, self.head = tile.udiv(self.cache.heads), tile.urem(self.cache.heads)
        header = fn.params["step"].at(self.row * ROW_BYTES)
        self.slot = header.at(ROWS_AT + 4).load("i32").cast("sext", "i64")
        self.count = header.at(ROWS_AT + 8).load("i32").cast("sext", "i64") + 1  # positions seen
        size = stage.heads * self.cache.dim
        self.first = self.head * (stage.group * self.cache.dim)  # first channel of this group
        row_codes = self.arg(stage.codes).at(self.row * code_stride(path, size, size))
        self.q = row_codes.at(self.first * path.code_bytes)
        self.high = padded(size, STEP) * path.code_bytes
        q_scale = self.arg(stage.meta).at(self.row * 16).load("float")
        self.q_scale = q_scale * stage.softmax_scale

    def arg(self, slot: int) -> Value:
        return self.fn.params["args"].at(8 * slot).load("ptr", 8)

    def emit(self) -> None:
        if self.path.offset:
            self._excess()
        blocks = (self.count + (BLOCK - 1)) >> BLOCK_BITS
        with self.fn.loop(blocks) as b:
            left = self.count - b * BLOCK
            valid = self.fn.select(left.compare("slt", BLOCK), left, BLOCK)
            base = self.arg(self.stage.kv).at(self.cache.offset(self.slot, b, self.head))
            self._block(base, valid, self.scratch.at(self.area.blocks).at(b * self.area.block_bytes))
        self._join(blocks)

    def head_groups(self, at_once: int) -> Iterator[tuple[Value, int]]:
        """(first head, count): the group's query heads, several at a time so that loads are shared."""
        full = self.stage.group // at_once
        if full:
            with self.fn.loop(full * at_once, at_once) as g:
                yield g, at_once
        if rest := self.stage.group % at_once:
            yield self.fn.value("i64", full * at_once), rest

    def query(self, head: Value, quad: Value) -> tuple[Value, Value]:
        """Four codes of both planes of a query head."""
        at = self.q.at(head * (self.cache.dim * self.path.code_bytes)).at(quad * (4 * self.path.code_bytes))
        return self.path.codes(at.at(self.high)), self.path.codes(at)

    def _excess(self) -> None:
        """128 * Σq per head and plane: the dot product with a vector of offsets alone."""
        offsets = [self.fn.value(I16, 0x80808080)]
        with self.fn.loop(self.stage.group) as g:
            sums = [self.path.sums(self.fn) for _ in range(2)]
            with self.fn.loop(self.cache.k_dim // 4) as quad:
                for plane, codes in enumerate(self.query(g, quad)):
                    self.path.dot(sums[plane], offsets, codes)
            for plane in range(2):
                total = self.path.total(sums[plane]).part(0, 1)
                self.scratch.at(self.area.excess).at(g * 8).at(4 * plane).store(total)

    def _block(self, base: Value, valid: Value, part: Value) -> None:
        fn = self.fn
        chunks = (valid + 15) >> 4
        tops = self.scratch.at(self.area.probabilities)  # not yet in use: maxima per head, 16 lanes each
        with fn.loop(self.stage.group) as g:
            tops.at(g * 64).store(fn.value(F16, LOWEST), 64)
        with fn.loop(chunks) as c:
            for g, count in self.head_groups(4 if self.path.unsigned else 1):
                self._scores(base, valid, c, (g, count), tops)
        with fn.loop(self.stage.group) as g:
            top = reduce(tops.at(g * 64).load(F16, 64), "fmax")
            part.at(self.area.maxima).at(g * 4).store(top)
        v_scales = self.cache.scale_at(base, "v", self.fn.value("i64", 0))
        v_top = self._v_top(v_scales, valid, chunks)
        part.at(self.area.v_top).store(v_top)
        with fn.loop(self.stage.group) as g:
            self._probabilities(g, valid, chunks, part)
        self._values(base, chunks, part)

    def _lanes(self, chunk: Value, valid: Value) -> Value:
        """Which of a chunk's 16 positions count."""
        fn = self.fn
        lane = Value(fn, I16, "<" + ", ".join(f"i32 {i}" for i in range(16)) + ">")
        left = (valid - chunk * 16).cast("trunc", "i32").splat(16)
        return lane.compare("slt", left)

    def _scores(self, base: Value, valid: Value, chunk: Value, heads: tuple[Value, int], tops: Value) -> None:
        """fp32 scores of 16 positions for a few heads, and their running maxima per lane."""
        fn, cache = self.fn, self.cache
        first, count = heads
        keys = base.at(chunk * (16 * cache.k_dim * cache.planes))
        # sums[head][q plane + k plane]: low * low, the two mixed products, high * high
        sums = [[self.path.sums(fn) for _ in range(cache.planes + 1)] for _ in range(count)]
        with fn.loop(cache.k_dim // 4) as quad:
            for k_plane in range(cache.planes):
                group = self.path.group(keys.at(quad * (64 * cache.planes)).at(64 * k_plane))
                for g in range(count):
                    high, low = self.query(first + g, quad)
                    self.path.dot(sums[g][k_plane], group, low)
                    self.path.dot(sums[g][k_plane + 1], group, high)
        k_scale = cache.scale_at(base, "k", chunk * 16).load(F16)
        keep = self._lanes(chunk, valid)
        for g in range(count):
            score = (self._score(sums[g], first + g) * self.q_scale.splat(16)) * k_scale
            score = fn.select(keep, score, LOWEST)
            self.scratch.at((first + g) * (4 * BLOCK)).at(chunk * 64).store(score, 64)
            top = tops.at((first + g) * 64)
            top.store(pair(top.load(F16, 64), score, "fmax"), 64)

    def _score(self, sums: list[list[Slot]], head: Value) -> Value:
        """(fp32(hh) * 65536 + fp32(hl + lh) * 256) + fp32(ll)."""
        total = [self.path.total(s) for s in sums]
        if self.path.offset:
            at = self.scratch.at(self.area.excess).at(head * 8)
            high, low = at.load("i32").splat(16), at.at(4).load("i32").splat(16)
            total[0] = total[0] - low
            total[1] = total[1] - (high + low if self.cache.planes == 2 else high)
            if self.cache.planes == 2:
                total[2] = total[2] - high
        ll, mid, *hh = (t.cast("sitofp", F16) for t in total)
        top = mid * 256.0
        if hh:
            top = hh[0] * 65536.0 + top
        return top + ll

    def _v_top(self, scales: Value, valid: Value, chunks: Value) -> Value:
        """The block's largest V scale; leaves every position's ratio to it in scratch, 0 where masked."""
        fn = self.fn
        best = fn.slot(F16, 0.0)
        ratio = self.scratch.at(self.area.ratio)
        with fn.loop(chunks) as c:
            scale = fn.select(self._lanes(c, valid), scales.at(c * 64).load(F16), 0.0)
            ratio.at(c * 64).store(scale, 64)
            best.set(pair(best.get(), scale, "fmax"))
        top = pair(reduce(best.get(), "fmax"), fn.value("float", float(SCALE_FLOOR)), "fmax")
        inverse = reciprocal(top).splat(16)
        with fn.loop(chunks) as c:
            at = ratio.at(c * 64)
            at.store(at.load(F16, 64) * inverse, 64)
        return top

    def _probabilities(self, g: Value, valid: Value, chunks: Value, part: Value) -> None:
        """exp(score - maximum) as 15-bit integers: their sum, and weighted by V's ratios."""
        fn = self.fn
        top = part.at(self.area.maxima).at(g * 4).load("float").splat(16)
        total = fn.slot(I16)
        with fn.loop(chunks) as c:
            score = self.scratch.at(g * (4 * BLOCK)).at(c * 64).load(F16, 64)
            e = fn.select(self._lanes(c, valid), exp(score - top), 0.0)
            total.set(total.get() + round_even(e * float(PROB_ONE)))
            ratio = self.scratch.at(self.area.ratio).at(c * 64).load(F16, 64)
            self._store_weighted(g, c, round_even((e * ratio) * float(PROB_ONE)))
        sums = reduce(total.get(), "add").cast("sitofp", "float")
        part.at(self.area.totals).at(g * 4).store(sums)

    def _store_weighted(self, g: Value, chunk: Value, weighted: Value) -> None:
        at = self.scratch.at(self.area.probabilities).at(g * (2 * BLOCK))
        if self.path.unsigned:
            at.at(chunk * 16).store((weighted >> 8).cast("trunc", vec("i8", 16)), 16)
            at.at(BLOCK).at(chunk * 16).store(weighted.cast("trunc", vec("i8", 16)), 16)
        else:
            at.at(chunk * 32).store(weighted.cast("trunc", vec("i16", 16)), 32)

    def _values(self, base: Value, chunks: Value, part: Value) -> None:
        """Σp·v of the block, 16 channels and a few heads at a time, V read once for them."""
        fn, cache = self.fn, self.cache
        values = base.at(cache.v_start)
        with fn.loop(cache.v_dim // 16) as d:
            for first, count in self.head_groups(4 if self.path.unsigned else 1):
                planes = 2 if self.path.unsigned else 1
                sums = [[[self.path.sums(fn) for _ in range(planes)] for _ in range(cache.planes)]
                        for _ in range(count)]
                with fn.loop(chunks * 4) as quad:
                    row = values.at(quad * (cache.v_dim * 4 * cache.planes)).at(d * 64)
                    for v_plane in range(cache.planes):
                        group = self.path.group(row.at(v_plane * cache.v_dim * 4))
                        for g in range(count):
                            self._weigh(sums[g][v_plane], group, first + g, quad)
                for g in range(count):
                    at = part.at((first + g) * (4 * cache.v_dim)).at(d * 64)
                    at.store(self._weighted_sum(sums[g]), 64)

    def _weigh(self, sums: list[list[Slot]], group: list[Value], head: Value, quad: Value) -> None:
        """sums += p · v for four positions; p in one 16-bit plane or two unsigned byte planes."""
        at = self.scratch.at(self.area.probabilities).at(head * (2 * BLOCK)).at(quad * (4 * self.path.code_bytes))
        for plane, total in enumerate(sums):
            self.path.dot(total, group, self.path.codes(at.at(plane * BLOCK)), signed_group=True)

    def _weighted_sum(self, sums: list[list[list[Slot]]]) -> Value:
        """fp32(Σp·high) * 256 + fp32(Σp·low); one plane of V is the low one alone."""
        floats = []
        for planes in sums:
            total = [self.path.total(s) for s in planes]
            exact = (total[0] << 8) + total[1] if len(total) == 2 else total[0]
            floats.append(exact.cast("sitofp", F16))
        return floats[1] * 256.0 + floats[0] if len(floats) == 2 else floats[0]

    def _join(self, blocks: Value) -> None:
        """Blocks in ascending order: numerator and denominator relative to the overall maximum."""
        fn, cache = self.fn, self.cache
        parts = self.scratch.at(self.area.blocks)
        out = self.arg(self.stage.out).at(self.row * (4 * value_stride(self.stage.heads * cache.dim)))
        with fn.loop(self.stage.group) as g:
            top = fn.slot("float", LOWEST)
            with fn.loop(blocks) as b:
                maximum = parts.at(b * self.area.block_bytes).at(self.area.maxima).at(g * 4).load("float")
                top.set(pair(top.get(), maximum, "fmax"))
            den = fn.slot("float", 0.0)
            sums = self.scratch  # the scores are spent: numerator fp32 [D]
            for i, lanes in fn.chunks(cache.v_dim):
                sums.at(i * 4).store(fn.value(vec("float", lanes), 0.0))
            with fn.loop(blocks) as b:
                part = parts.at(b * self.area.block_bytes)
                alpha = exp(part.at(self.area.maxima).at(g * 4).load("float") - top.get())
                den.set(den.get() + part.at(self.area.totals).at(g * 4).load("float") * alpha)
                factor = (alpha * part.at(self.area.v_top).load("float")).splat(16)
                for i, _ in fn.chunks(cache.v_dim):
                    at = sums.at(i * 4)
                    at.store(at.load(F16) + part.at(g * (4 * cache.v_dim)).at(i * 4).load(F16) * factor)
            inverse = reciprocal(den.get())
            target = out.at((self.first + g * cache.dim) * 4)
            for i, lanes in fn.chunks(cache.dim):
                kind = vec("float", lanes)
                target.at(i * 4).store(sums.at(i * 4).load(kind) * inverse.splat(lanes))
