"""One block of 256 positions of one token row and key/value head in, its part out: exact sums and their scales.

Scores by the dot instruction, the block's maximum, probabilities as 15-bit integers, Σp and Σp·v exact in int32.
The dot instruction is what takes the time, so operands are kept in registers: a load of keys or values serves
several query heads, a broadcast of a query's or a probability's codes serves several vectors of keys or values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from openlpu.arch.truepoint.attention import BLOCK, PROB_ONE
from openlpu.arch.truepoint.codes import SCALE_FLOOR
from openlpu.target.cpu.cache import GROUP, CacheLayout, nibble_groups
from openlpu.target.cpu.elementwise import ROUNDER_BITS, exp, reciprocal, rounded
from openlpu.target.cpu.emit import Function, Slot, Value, pair, reduce, vec
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.weights import padded

F16, I16 = vec("float", 16), vec("i32", 16)
LOWEST = float(-np.finfo(np.float32).max)
CHUNKS = GROUP // 16  # vectors of positions in a group


@dataclass(frozen=True)
class AttentionStage:
    """Shapes and argument slots of one attention stage; ``window`` 0 sees every position.  Without ``sinks`` (-1) no
    head has a score beside those of positions."""

    heads: int
    cache: CacheLayout
    softmax_scale: float
    window: int = 0
    codes: int = 1
    meta: int = 2
    kv: int = 3
    out: int = 4
    parts: int = 5
    sinks: int = -1

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.cache.heads


@dataclass(frozen=True)
class Areas:
    """Byte offsets of what a tile keeps in its scratch, for G query heads; and, from ``maxima`` on, within a part."""

    stage: AttentionStage

    @property
    def probabilities(self) -> int:
        """[G][2 planes of bytes or one of 16 bits][256 positions]; before that, a maximum per head and lane."""
        return 4 * self.stage.group * BLOCK  # after the scores, fp32 [G][256]

    @property
    def ratio(self) -> int:
        """fp32 [256]: V's scales relative to the block's largest."""
        return self.probabilities + 2 * self.stage.group * BLOCK

    @property
    def limits(self) -> int:
        """fp32 [256]: the largest score a position may have; the lowest there is where it does not count."""
        return self.ratio + 4 * BLOCK

    @property
    def excess(self) -> int:
        """int32 [G][2 planes]: what the offset of K's bytes adds to every sum, or Σq and Σp·zero of 4-bit codes."""
        return self.limits + 4 * BLOCK

    @property
    def parts(self) -> int:
        """A part per block of the context."""
        return self.excess + padded(8 * self.stage.group, 64)

    @property
    def maxima(self) -> int:
        """fp32 per head, in whole vectors; before that Σp·v fp32 [G][D]."""
        return 4 * self.stage.group * self.stage.cache.v_dim

    @property
    def totals(self) -> int:
        """Σp as fp32 per head."""
        return self.maxima + 4 * padded(self.stage.group, 16)

    @property
    def v_top(self) -> int:
        """V's block scale."""
        return self.totals + 4 * padded(self.stage.group, 16)

    @property
    def part_bytes(self) -> int:
        return padded(self.v_top + 4, 64)

    @property
    def parts_bytes(self) -> int:
        return self.part_bytes * self.stage.cache.blocks

    @property
    def size(self) -> int:
        return self.parts + self.parts_bytes


@dataclass(frozen=True)
class Sequence:
    """The queries of one token row and key/value head: codes [G][D], the high plane's distance, their scale."""

    codes: Value
    high: int
    scale: Value


class BlockKernel:
    """Generates what one block contributes."""

    def __init__(self, fn: Function, path: Path, stage: AttentionStage) -> None:
        self.fn, self.path, self.stage = fn, path, stage
        self.cache, self.area, self.scratch = stage.cache, Areas(stage), fn.params["scratch"]
        # Sums fill half the registers: with 32 long ones, those of two heads and 64 positions or channels.
        self.at_once = max(1, path.registers // (2 * path.sum_registers * (self.cache.planes + 1)))
        self.heads_at_once = min(2, self.at_once)
        self.vectors_at_once = self.at_once // self.heads_at_once
        self.codes_a_byte = 2 if self.cache.nibbles else 1
        self.lanes = GROUP if path.lanes == 16 else 16  # of the arithmetic between the sums: it hides its own latency

    def sequence(self, codes: Value, high: int, scale: Value) -> Sequence:
        """What all blocks of a row and head need; leaves sums of each head's query codes in scratch."""
        with self.fn.loop(self.stage.group) as g:
            at = codes.at(g * (self.cache.dim * self.path.code_bytes))
            keep = self.scratch.at(self.area.excess).at(g * 8)
            if self.cache.nibbles:
                keep.store((self._sum(at.at(high), self.cache.dim) << 8) + self._sum(at, self.cache.dim))
            elif self.path.offset:  # K's padding counts: there the offset meets the next head's codes
                for plane, start in enumerate((high, 0)):
                    keep.at(4 * plane).store(self._sum(at.at(start), self.cache.k_dim) * self.path.offset)
        return Sequence(codes, high, scale)

    def _sum(self, codes: Value, size: int) -> Value:
        """Σ of one plane of codes."""
        total = self.fn.slot("i32")
        for i, lanes in self.fn.chunks(size):
            part = codes.at(i * self.path.code_bytes).load(vec(self.path.code, lanes), 1)
            total.set(total.get() + reduce(part.cast("sext", vec("i32", lanes)), "add"))
        return total.get()

    def emit(self, sequence: Sequence, base: Value, seen: tuple[Value, Value], part: Value) -> None:
        """The block at ``base``, of which the positions seen[0] … seen[1] - 1 count, into ``part``.

        The limits may lie outside the block.
        """
        fn = self.fn
        low = fn.select(seen[0].compare("sgt", 0), seen[0], 0)
        high = fn.select(seen[1].compare("slt", BLOCK), seen[1], BLOCK)
        first, groups = low.udiv(GROUP), (high + (GROUP - 1)).udiv(GROUP)
        self._ratios(base, (low, high), (first, groups), part)
        tops = self.scratch.at(self.area.probabilities)
        with fn.loop(self.stage.group) as g:
            tops.at(g * 64).store(fn.value(F16, LOWEST), 64)
        with fn.loop(groups - first) as i:
            for head, count in self._heads():
                for chunk in range(0, CHUNKS, self.vectors_at_once):
                    self._scores(sequence, base, ((first + i) * CHUNKS + chunk, head, count))
        with fn.loop(self.stage.group) as g:
            top = reduce(tops.at(g * 64).load(F16, 64), "fmax")
            part.at(self.area.maxima).at(g * 4).store(top)
        with fn.loop(self.stage.group) as g:
            self._probabilities(base, g, (first, groups), part)
        self._values(base, first, high, part)

    def _heads(self) -> Iterator[tuple[Value, int]]:
        """(first head, count): the group's query heads, several at a time."""
        yield from self._several(self.stage.group, self.heads_at_once)

    def _several(self, total: int, at_once: int) -> Iterator[tuple[Value, int]]:
        full = total - total % at_once
        if full:
            with self.fn.loop(full, at_once) as i:
                yield i, at_once
        if total % at_once:
            yield self.fn.value("i64", full), total % at_once

    def _scores(self, sequence: Sequence, base: Value, which: tuple[Value, Value, int]) -> None:
        """fp32 scores of a few chunks of positions for a few heads, and their maxima per lane."""
        fn, cache, path = self.fn, self.cache, self.path
        first, head, count = which
        chunks = range(self.vectors_at_once)
        chunk_bytes = 16 * cache.k_bytes
        keys, queries = base.at(first * chunk_bytes), sequence.codes.at(head * (cache.dim * path.code_bytes))
        # sums[head][chunk][q plane + k plane]: low * low, the two mixed products, high * high
        sums = [[self._score_sums(head + g) for _ in chunks] for g in range(count)]
        quads = range(self.codes_a_byte)
        with fn.loop(cache.k_dim // (4 * len(quads))) as turn:
            at, query = keys.at(turn * (64 * cache.planes)), queries.at(turn * (4 * len(quads) * path.code_bytes))
            codes = [[[path.codes(query.at((4 * q + g * cache.dim) * path.code_bytes + plane * sequence.high))
                       for plane in range(2)] for g in range(count)] for q in quads]
            for c in chunks:
                for k_plane in range(cache.planes):
                    for q, group in enumerate(self._groups(at.at(c * chunk_bytes + 64 * k_plane))):
                        for g in range(count):
                            for plane in range(2):
                                path.dot(sums[g][c][k_plane + plane], group, codes[q][g][plane])
            self._ask_ahead(at, head, [c * chunk_bytes + 64 * p for c in chunks for p in range(cache.planes)])
        scale = sequence.scale.splat(16)
        for g in range(count):
            top = self.scratch.at(self.area.probabilities).at((head + g) * 64)
            best = top.load(F16, 64)
            for c in chunks:
                k_scale = cache.scale_at(base, "k", (first + c) * 16).load(F16)
                shift = self._shift(base, head + g, first + c) if cache.nibbles else None
                score = (self._score(sums[g][c], shift) * scale) * k_scale
                score = pair(score, self.scratch.at(self.area.limits).at((first + c) * 64).load(F16, 64), "fmin")
                self.scratch.at((head + g) * (4 * BLOCK)).at((first + c) * 64).store(score, 64)
                best = pair(best, score, "fmax")
            top.store(best, 64)

    def _ask_ahead(self, at: Value, head: Value, lines: list[int]) -> None:
        """Ask for the same lines of the next block; the turns over heads that share them ask for some each."""
        turns = -(-self.stage.group // self.heads_at_once)
        each = -(-len(lines) // turns)
        if turns > 1 and len(lines) > 1:
            at = at.at(head.udiv(self.heads_at_once) * (each * (lines[1] - lines[0])))
        for line in lines[:each]:
            self._ask(at.at(line))

    def _ask(self, at: Value) -> None:
        """Bring the line that stands here in the next block into the second-level cache: reading, middling locality."""
        following = at.at(self.cache.heads * self.cache.head_bytes)
        self.fn.call("void", "@llvm.prefetch", following, *(self.fn.value("i32", word) for word in (0, 2, 1)))

    def _score_sums(self, head: Value) -> list[list[Slot]]:
        """Fresh sums; they begin below zero by what the offset of K's bytes will add."""
        sums = [self.path.sums(self.fn) for _ in range(self.cache.planes + 1)]
        if self.path.offset and not self.cache.nibbles:
            at = self.scratch.at(self.area.excess).at(head * 8)
            high, low = at.load("i32"), at.at(4).load("i32")
            excess = [low, high + low, high] if self.cache.planes == 2 else [low, high]
            for totals, more in zip(sums, excess, strict=True):
                for total in totals:
                    total.set((self.fn.value("i32", 0) - more).splat(self.path.lanes))
        return sums

    def _groups(self, at: Value) -> list[list[Value]]:
        """The groups that 64 bytes of keys or values hold."""
        return nibble_groups(self.path, at) if self.cache.nibbles else [self.path.group(at)]

    def _shift(self, base: Value, head: Value, chunk: Value) -> Value:
        """zero * Σq of 16 positions with 4-bit keys."""
        zeros = self.cache.zero_at(base, "k", chunk * 16).load(vec("i8", 16), 16).cast("sext", I16)
        return zeros * self.scratch.at(self.area.excess).at(head * 8).load("i32").splat(16)

    def _score(self, sums: list[list[Slot]], shift: Value | None) -> Value:
        """(fp32(hh) * 65536 + fp32(hl + lh) * 256) + fp32(ll); without hh the last sum is exact as an integer."""
        total = [self.path.total(s) for s in sums]
        if self.cache.planes == 1:
            exact = (total[1] << 8) + total[0]
            return (exact + shift if shift else exact).cast("sitofp", F16)
        ll, mid, hh = (t.cast("sitofp", F16) for t in total)
        return (hh * 65536.0 + mid * 256.0) + ll

    def _ratios(self, base: Value, seen: tuple[Value, Value], span: tuple[Value, Value], part: Value) -> None:
        """V's largest scale into the part; into scratch every position's ratio to it, and the limit of its score."""
        fn, (first, groups) = self.fn, span
        scales = self.cache.scale_at(base, "v", fn.value("i64", 0))
        ratios, limits = self.scratch.at(self.area.ratio), self.scratch.at(self.area.limits)
        lane = Value(fn, I16, "<" + ", ".join(f"i32 {i}" for i in range(16)) + ">")
        count, best = (seen[1] - seen[0]).cast("trunc", "i32").splat(16), fn.slot(F16, 0.0)
        with fn.loop((groups - first) * CHUNKS) as i:
            chunk = first * CHUNKS + i
            keep = (lane + (chunk * 16 - seen[0]).cast("trunc", "i32").splat(16)).compare("ult", count)
            scale = fn.select(keep, scales.at(chunk * 64).load(F16), 0.0)
            ratios.at(chunk * 64).store(scale, 64)
            limits.at(chunk * 64).store(fn.select(keep, fn.value(F16, -LOWEST), LOWEST), 64)
            best.set(pair(best.get(), scale, "fmax"))
            for which in ("k", "v"):
                self._ask(self.cache.scale_at(base, which, chunk * 16))
                if self.cache.nibbles:
                    self._ask(self.cache.zero_at(base, which, chunk * 16))
        top = pair(reduce(best.get(), "fmax"), fn.value("float", float(SCALE_FLOOR)), "fmax")
        part.at(self.area.v_top).store(top)
        inverse = reciprocal(top).splat(16)
        with fn.loop((groups - first) * CHUNKS) as i:
            at = ratios.at((first * CHUNKS + i) * 64)
            at.store(at.load(F16, 64) * inverse, 64)

    def _probabilities(self, base: Value, g: Value, span: tuple[Value, Value], part: Value) -> None:
        """exp(score - maximum) as 15-bit integers: their sum, and weighted by V's ratios.

        Positions that do not count have the lowest score and the ratio 0: both integers are 0.
        """
        fn, (first, groups) = self.fn, span
        wide = vec("float", self.lanes)
        top = part.at(self.area.maxima).at(g * 4).load("float").splat(self.lanes)
        total, shift = fn.slot(I16), fn.slot(I16)
        scores, ratios = self.scratch.at(g * (4 * BLOCK)), self.scratch.at(self.area.ratio)
        with fn.loop(groups - first) as i:
            group, weighted = first + i, []
            for lanes in range(0, GROUP, self.lanes):
                at = group * (4 * GROUP) + 4 * lanes
                e = exp(scores.at(at).load(wide, 64) - top, small=True)
                p = rounded(e * float(PROB_ONE))
                w = rounded((e * ratios.at(at).load(wide, 64)) * float(PROB_ONE))
                for c in range(0, self.lanes, 16):
                    total.set(total.get() + p.part(c, 16))
                    weighted.append(w.part(c, 16))
                    if self.cache.nibbles:
                        zeros = self.cache.zero_at(base, "v", group * GROUP + (lanes + c)).load(vec("i8", 16), 16)
                        shift.set(shift.get() + (weighted[-1] - ROUNDER_BITS) * zeros.cast("sext", I16))
            self._store_weighted(g, group, weighted)
        if self.cache.nibbles:
            self.scratch.at(self.area.excess).at(g * 8 + 4).store(reduce(shift.get(), "add"))
        # Each lane has counted the rounder's own bits once a chunk.
        count = ((groups - first) * GROUP).cast("trunc", "i32")
        sums = reduce(total.get(), "add") - count * ROUNDER_BITS
        part.at(self.area.totals).at(g * 4).store(sums.cast("sitofp", "float"))

    def _store_weighted(self, g: Value, group: Value, w: list[Value]) -> None:
        """Four vectors of probabilities, in their low 16 bits, as the codes of 16 quads: one lane of each vector."""
        at = self.scratch.at(self.area.probabilities).at(g * (2 * BLOCK)).at(group * (GROUP * self.path.code_bytes))
        if self.path.bytewise:
            even, odd = (w[0] & 0xFFFF) | (w[2] << 16), (w[1] & 0xFFFF) | (w[3] << 16)
            at.at(BLOCK).store((even & 0xFF00FF) | ((odd << 8) & ~0xFF00FF), 64)
            if not self.path.unsigned:  # a signed low byte is 256 less from 128 on: the high one makes up for it
                even, odd = even + 0x800080, odd + 0x800080
            at.store(((even >> 8) & 0xFF00FF) | (odd & ~0xFF00FF), 64)
        else:
            first, second = (w[0] & 0xFFFF) | (w[1] << 16), (w[2] & 0xFFFF) | (w[3] << 16)
            at.store(first.shuffle(second, [lane + 16 * half for lane in range(16) for half in range(2)]), 64)

    def _values(self, base: Value, first: Value, end: Value, part: Value) -> None:
        """Σp·v of the block for a few vectors of channels and a few heads at a time."""
        rest = end.urem(GROUP)
        quads = end.udiv(GROUP) * 16 + self.fn.select(rest.compare("slt", 16), rest, 16)
        at_once = max(self.vectors_at_once, self.codes_a_byte)
        heads = self.heads_at_once if at_once == self.vectors_at_once else 1
        for d, vectors in self._several(self.cache.v_dim // 16, at_once):
            for head, count in self._several(self.stage.group, heads):
                self._weigh(base.at(self.cache.v_start), (first * 16, quads), (d, vectors, head, count), part)

    def _weigh(self, values: Value, quads: tuple[Value, Value], which: tuple[Value, int, Value, int],
               part: Value) -> None:
        fn, cache, path = self.fn, self.cache, self.path
        d, vectors, head, count = which
        planes = 2 if path.bytewise else 1
        sums = [[[[path.sums(fn) for _ in range(planes)] for _ in range(cache.planes)] for _ in range(vectors)]
                for _ in range(count)]
        p = self.scratch.at(self.area.probabilities).at(head * (2 * BLOCK))
        with fn.loop(quads[1] - quads[0]) as i:
            quad = quads[0] + i
            row = values.at(d * (64 // self.codes_a_byte)).at(quad * (4 * cache.v_bytes))
            at = p.at(quad * (4 * path.code_bytes))
            codes = [[path.codes(at.at(g * 2 * BLOCK + plane * BLOCK)) for plane in range(planes)]
                     for g in range(count)]
            for first in range(0, vectors, self.codes_a_byte):
                for v_plane in range(cache.planes):
                    line = row.at(64 * first // self.codes_a_byte + v_plane * cache.v_dim * 4)
                    for v, group in enumerate(self._groups(line), first):
                        for g in range(count):
                            for plane in range(planes):
                                path.dot(sums[g][v][v_plane][plane], group, codes[g][plane], signed_group=True)
            lines = range(0, 64 * vectors // self.codes_a_byte, 64)
            self._ask_ahead(row, head, [line + p * cache.v_dim * 4 for line in lines for p in range(cache.planes)])
        for g in range(count):
            at = part.at((head + g) * (4 * cache.v_dim)).at(d * 64)
            shift = self.scratch.at(self.area.excess).at((head + g) * 8 + 4).load("i32").splat(16)
            for v in range(vectors):
                at.at(64 * v).store(self._weighted_sum(sums[g][v], shift), 64)

    def _weighted_sum(self, sums: list[list[list[Slot]]], shift: Value) -> Value:
        """fp32(Σp·high) * 256 + fp32(Σp·low); one plane of V is the low one alone, nibbles are ``shift`` below it."""
        floats = []
        for planes in sums:
            total = [self.path.total(s) for s in planes]
            exact = (total[0] << 8) + total[1] if len(total) == 2 else total[0]
            floats.append((exact + shift if self.cache.nibbles else exact).cast("sitofp", F16))
        return floats[1] * 256.0 + floats[0] if len(floats) == 2 else floats[0]
