"""Query codes and the KV cache in, attention output out, shared evenly among threads however long the context is.

The work of a step is a line of *units*: for each key/value head, for each token row, the blocks of 256 positions
the row sees.  Tiles are equal stretches of that line.  A unit leaves a *part* (``attention_block.py``); the parts of a
row and head are joined in ascending order in fp32, as ``arch/truepoint/attention.py`` defines, by the tile that has
them all.  Where a border of tiles falls between them they meet in shared memory, and the last to come joins.
"""

from __future__ import annotations

from dataclasses import dataclass

from openlpu.arch.truepoint.attention import PROB_ONE
from openlpu.target.cpu.attention_block import LOWEST, Areas, AttentionStage, BlockKernel, Sequence
from openlpu.target.cpu.cache import BLOCK_BITS
from openlpu.target.cpu.elementwise import exp, reciprocal
from openlpu.target.cpu.emit import Function, Value, pair, vec
from openlpu.target.cpu.linear import SHARES, code_stride, value_stride
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.rows import ROW_BYTES, ROWS_AT
from openlpu.target.cpu.weights import STEP, padded

F16 = vec("float", 16)
MOST_TILES = 256
COUNTER = 64  # bytes before the parts that tiles share: how many are there


def tiles(threads: int) -> int:
    """Tiles of an attention stage: several a thread, so that one that was interrupted holds little."""
    return min(SHARES * threads, MOST_TILES) if threads > 1 else 1


def shared_bytes(stage: AttentionStage) -> int:
    """What tiles share: no more than one row and head begins in a tile and ends in another."""
    return MOST_TILES * (COUNTER + Areas(stage).parts_bytes)


@dataclass(frozen=True)
class _Row:
    """Where one token row stands: its slot, its position, its oldest visible position, first block and blocks."""

    slot: Value
    position: Value
    oldest: Value
    first: Value
    blocks: Value


class AttentionKernel:
    """Generates the kernel of one :class:`AttentionStage`."""

    def __init__(self, fn: Function, path: Path, stage: AttentionStage, threads: int) -> None:
        self.fn, self.path, self.stage, self.tiles = fn, path, stage, tiles(threads)
        self.cache, self.area, self.scratch = stage.cache, Areas(stage), fn.params["scratch"]
        self.block = BlockKernel(fn, path, stage)

    def arg(self, slot: int) -> Value:
        return self.fn.params["args"].at(8 * slot).load("ptr", 8)

    def emit(self) -> None:
        """Walk this tile's stretch of units: heads, then rows, then blocks."""
        fn, rows, tile = self.fn, self.fn.params["rows"], self.fn.params["tile"]
        each = fn.slot("i64")  # units of one head
        with fn.loop(rows) as r:
            each.set(each.get() + self._row(r).blocks)
        units = each.get() * self.cache.heads
        first, end = ((tile + i) * units for i in range(2))
        first, end = first.udiv(self.tiles), end.udiv(self.tiles)
        head = first.udiv(each.get())
        heads = fn.select(first.compare("slt", end), (end - 1).udiv(each.get()) - head + 1, 0)
        with fn.loop(heads) as i:
            start = fn.slot("i64")
            start.set((head + i) * each.get())
            with fn.loop(rows) as r:
                row, at = self._row(r), start.get()
                low = fn.select(first.compare("sgt", at), first - at, 0)
                high = fn.select(end.compare("slt", at + row.blocks), end - at, row.blocks)
                with fn.when(low.compare("slt", high)):
                    owner = ((at + 1) * self.tiles - 1).udiv(units)  # the tile in which this row and head begin
                    self._units(r, row, head + i, (low, high), owner)
                start.set(at + row.blocks)

    def _row(self, r: Value) -> _Row:
        header, fn = self.fn.params["step"].at(r * ROW_BYTES).at(ROWS_AT), self.fn
        slot, position = (header.at(at).load("i32").cast("sext", "i64") for at in (4, 8))
        oldest = fn.value("i64", 0)
        if self.stage.window:
            begin = position - (self.stage.window - 1)
            oldest = fn.select(begin.compare("sgt", 0), begin, 0)
        first = oldest >> BLOCK_BITS
        return _Row(slot, position, oldest, first, (position >> BLOCK_BITS) - first + 1)

    def _units(self, r: Value, row: _Row, head: Value, span: tuple[Value, Value], owner: Value) -> None:
        """Blocks span[0] to span[1] of one row and head; then the join, if no part is missing."""
        fn, (low, high) = self.fn, span
        whole = (high - low).compare("eq", row.blocks)
        shared = self.arg(self.stage.parts).at(owner * (COUNTER + self.area.parts_bytes))
        parts = fn.select(whole, self.scratch.at(self.area.parts), shared.at(COUNTER))
        sequence = self._sequence(r, head)
        with fn.loop(high - low) as i:
            b = low + i
            block = row.first + b
            seen = [limit - (block << BLOCK_BITS) for limit in (row.oldest, row.position + 1)]
            base = self.arg(self.stage.kv).at(self.cache.offset(row.slot, block, head))
            self.block.emit(sequence, base, (seen[0], seen[1]), parts.at(b * self.area.part_bytes))
        missing = fn.slot("i64")
        with fn.when(whole.compare("eq", 0)):
            before = fn.define("i64", f"atomicrmw add ptr {shared.ref}, i64 {(high - low).ref} acq_rel")
            missing.set(row.blocks - before - (high - low))
            with fn.when(missing.get().compare("eq", 0)):
                shared.store(fn.value("i64", 0), 8)  # for the next stage
        with fn.when(missing.get().compare("eq", 0)):
            self._join(parts, row.blocks, r, head)

    def _sequence(self, r: Value, head: Value) -> Sequence:
        stage, path = self.stage, self.path
        size = stage.heads * self.cache.dim
        codes = self.arg(stage.codes).at(r * code_stride(path, size, size))
        queries = codes.at(head * (stage.group * self.cache.dim * path.code_bytes))
        scale = self.arg(stage.meta).at(r * 16).load("float") * stage.softmax_scale
        return self.block.sequence(queries, padded(size, STEP) * path.code_bytes, scale)

    def _join(self, parts: Value, blocks: Value, r: Value, head: Value) -> None:
        """Parts in ascending order: numerator and denominator relative to the overall maximum."""
        fn, area, group, dim = self.fn, self.area, self.stage.group, self.cache.dim
        inverse = self.scratch  # the scores are spent: 1 / denominator, fp32 per head
        for head16 in range(0, group, 16):
            sinks = self._sinks(head, head16, inverse.at(4 * head16))
            self._shares(parts, blocks, 4 * head16, inverse.at(4 * head16), sinks)
        out = self.arg(self.stage.out).at(r * (4 * value_stride(self.stage.heads * dim)))
        with fn.loop(group) as g:
            sums = [fn.slot(F16, 0.0) for _ in range(self.cache.v_dim // 16)]
            with fn.loop(blocks) as b:
                part = parts.at(b * area.part_bytes)
                factor = part.at(area.maxima).at(g * 4).load("float").splat(16)
                for i, total in enumerate(sums):
                    weighted = part.at(g * (4 * self.cache.v_dim)).at(64 * i).load(F16, 64)
                    total.set(total.get() + weighted * factor)
            target = out.at((head * group + g) * (4 * dim))
            scale = inverse.at(g * 4).load("float").splat(16)
            for i, total in enumerate(sums):
                _store(target.at(64 * i), total.get() * scale, min(16, dim - 16 * i))

    def _sinks(self, head: Value, first: int, area: Value) -> Value | None:
        """The sinks of 16 query heads of a key/value head from ``first`` on, by way of a free area; None without."""
        if self.stage.sinks < 0:
            return None
        group = self.stage.group
        own = self.arg(self.stage.sinks).at(head * (4 * group)).at(4 * first)
        area.store(self.fn.value(F16, 0.0))
        for g in range(min(16, group - first)):
            area.at(4 * g).store(own.at(4 * g).load("float"))
        return area.load(F16)

    def _shares(self, parts: Value, blocks: Value, heads: int, inverse: Value, sinks: Value | None) -> None:
        """For 16 heads from byte ``heads`` on: 1 / denominator, and in place of each maximum its block's factor.

        A head's sink takes part in the maximum, and the denominator begins with it."""
        fn, area = self.fn, self.area
        top, den = fn.slot(F16, LOWEST if sinks is None else sinks), fn.slot(F16, 0.0)
        with fn.loop(blocks) as b:
            maxima = parts.at(b * area.part_bytes).at(area.maxima + heads).load(F16)
            top.set(pair(top.get(), maxima, "fmax"))
        if sinks is not None:
            den.set(exp(sinks - top.get()) * float(PROB_ONE))
        with fn.loop(blocks) as b:
            part = parts.at(b * area.part_bytes)
            at = part.at(area.maxima + heads)
            alpha = exp(at.load(F16) - top.get())
            den.set(den.get() + part.at(area.totals + heads).load(F16) * alpha)
            at.store(alpha * part.at(area.v_top).load("float").splat(16))
        inverse.store(reciprocal(den.get()))


def _store(at: Value, vector: Value, count: int) -> None:
    """The first ``count`` lanes of a vector."""
    done = 0
    while done < count:
        lanes = 1 << ((count - done).bit_length() - 1)
        at.at(4 * done).store(vector if lanes == 16 else vector.part(done, lanes))
        done += lanes
