"""Pruned matrices (:mod:`openlpu.arch.truepoint.sparse`) in memory: two formats beside those of ``weights.py``.

``PAIRS``
    The two codes of every quad that stay, and a mask of 64 bits for every group of 64: 5 bits a weight.
    ``[step][quad][16 rows][32]``, then the step's masks ``[quad][16 rows]``.  Reading expands a group in registers, so
    it needs a path that expands; on others it is BYTES, zeros and all.
``Tiles``
    The tiles that stay, each a step as BYTES has it, in order; behind them the numbers of these steps, 16 bits each,
    and a bit for every step of the matrix.  What was dropped is neither read nor multiplied, on any path.  Where
    bytes have an offset, it is taken off with -Σcode of the activations that the panel met.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from openlpu.target.cpu.emit import Value, reduce, vec
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.weights import BYTES, I8, STEP, U8, Groups, Whole, padded, slices

QUADS = STEP // 4
GROUP = 32  # bytes of a group of PAIRS
MASK = 8
LANES = 16  # steps whose bits are looked at together


def _choices() -> tuple[U8, U8, U8]:
    """For the bits of a quad's codes that are not 0: a mask of two that has them, and where in a word the two begin."""
    chosen = [sorted(sorted(range(4), key=lambda i: not bits >> i & 1)[:2]) for bits in range(16)]
    masks = [sum(1 << i for i in places) for places in chosen]
    first, second = ([8 * places[i] for places in chosen] for i in range(2))
    return np.array(masks, np.uint8), np.array(first, np.uint8), np.array(second, np.uint8)


MASKS, FIRST, SECOND = _choices()


@dataclass(frozen=True)
class _Pairs(Whole):
    mark: str = "p"

    def panel_bytes(self, path: Path, k: int) -> int:
        if not path.expands:
            return BYTES.panel_bytes(path, k)
        return padded(self.steps(k) * self._step(path), 64)

    def pack(self, path: Path, codes: I8, blocks: U8 | None, out: U8) -> None:
        if not path.expands:
            BYTES.pack(path, codes, blocks, out)
            return
        steps, groups = self.steps(codes.shape[1]), path.panel // 16
        target = out.reshape(-1, self.panel_bytes(path, codes.shape[1]))[:, : steps * self._step(path)]
        target, codes_end = target.reshape(-1, steps, self._step(path)), QUADS * groups * GROUP
        for at, part in slices(codes, path.panel):
            both = np.packbits(part != 0, bitorder="little")  # two quads a byte
            bits = np.stack([both & 15, both >> 4], axis=1).ravel()
            words = np.ascontiguousarray(part).view(np.uint32).ravel()
            pairs = words >> FIRST[bits] & 0xFF | (words >> SECOND[bits] & 0xFF) << 8
            pairs = (pairs.astype(np.uint16) ^ np.uint16(path.offset * 0x0101)).reshape(-1, groups, 16, steps, QUADS)
            masks = MASKS[bits].reshape(-1, groups, 8, 2, steps, QUADS)
            masks = masks[:, :, :, 0] | masks[:, :, :, 1] << 4  # two rows a byte
            stop = at + len(pairs)
            for found, where in ((pairs, slice(codes_end)), (masks, slice(codes_end, None))):
                laid = np.ascontiguousarray(found.transpose(0, 3, 4, 1, 2))
                target[at:stop, :, where] = laid.view(np.uint8).reshape(stop - at, steps, -1)

    def unpack(self, path: Path, data: U8, n: int, k: int) -> tuple[I8, U8 | None]:
        if not path.expands:
            return BYTES.unpack(path, data, n, k)
        steps, groups = self.steps(k), path.panel // 16
        panels = data.reshape(-1, self.panel_bytes(path, k))[:, : steps * self._step(path)]
        panels = panels.reshape(-1, steps, self._step(path))
        kept = panels[:, :, : QUADS * groups * GROUP] ^ np.uint8(path.offset)
        masks = np.unpackbits(panels[:, :, QUADS * groups * GROUP :], axis=2, bitorder="little").astype(bool)
        quads = np.zeros(masks.shape, np.uint8)
        quads[masks] = kept.ravel()
        rows = quads.reshape(-1, steps, QUADS, groups, 16, 4).transpose(0, 3, 4, 1, 2, 5).reshape(-1, steps * STEP)
        return np.ascontiguousarray(rows[:n, :k]).view(np.int8), None

    def offset(self, path: Path) -> int:
        return path.offset

    def expands(self, path: Path) -> bool:
        return path.expands

    def quads(self, path: Path, panel: Value, step: Value, steps: Value) -> Iterator[Groups]:
        if not path.expands:
            yield from BYTES.quads(path, panel, step, steps)
            return
        at, groups = panel.at(step * self._step(path)), path.panel // 16
        masks = at.at(QUADS * groups * GROUP)
        for quad in range(QUADS):
            numbers = range(quad * groups, (quad + 1) * groups)
            yield [path.expanded(at.at(GROUP * i), masks.at(MASK * i).load("i64", MASK)) for i in numbers]

    def _step(self, path: Path) -> int:
        """Bytes of a step."""
        return QUADS * (path.panel // 16) * (GROUP + MASK)


@dataclass(frozen=True)
class Tiles:
    """``kept`` steps of every panel."""

    kept: int

    @property
    def mark(self) -> str:
        return "t"

    def panel_bytes(self, path: Path, k: int) -> int:
        return padded(self._numbers_end(path) + 2 * (padded(k, STEP * LANES) // (STEP * LANES)), 64)

    def pack(self, path: Path, codes: I8, blocks: U8 | None, out: U8) -> None:
        target = out.reshape(-1, self.panel_bytes(path, codes.shape[1]))
        tiles, numbers, bits = np.split(target, [self.kept * STEP * path.panel, self._numbers_end(path)], axis=1)
        bits[:] = 0
        for at, part in slices(codes, path.panel):
            words = np.ascontiguousarray(part).view(np.uint32).reshape(-1, path.panel, part.shape[1] // STEP, QUADS)
            for i, panel in enumerate(words, at):
                used = panel.any(axis=(0, 2))
                assert used.sum() <= self.kept, "a panel has more tiles than its matrix says"
                kept = np.sort(np.argsort(~used, kind="stable")[: self.kept])
                tiles[i] = panel[:, kept].transpose(1, 2, 0).ravel().view(np.uint8)
                numbers[i].view(np.uint16)[:] = kept
                there = np.zeros(words.shape[2], np.bool_)
                there[kept] = True
                packed = np.packbits(there, bitorder="little")
                bits[i, : len(packed)] = packed
        tiles ^= np.uint8(path.offset)

    def unpack(self, path: Path, data: U8, n: int, k: int) -> tuple[I8, U8 | None]:
        panels, size = data.reshape(-1, self.panel_bytes(path, k)), self.kept * STEP * path.panel
        numbers = np.ascontiguousarray(panels[:, size : size + 2 * self.kept]).view(np.uint16)
        tiles = (panels[:, :size] ^ np.uint8(path.offset)).reshape(-1, self.kept, QUADS, path.panel, 4)
        steps = np.zeros((len(panels), path.panel, padded(k, STEP) // STEP, QUADS, 4), np.uint8)
        index = numbers[:, None, :, None, None].astype(np.intp)
        np.put_along_axis(steps, index, tiles.transpose(0, 3, 1, 2, 4), axis=2)
        return np.ascontiguousarray(steps.reshape(-1, padded(k, STEP))[:n, :k]).view(np.int8), None

    def offset(self, path: Path) -> int:
        return 0  # which activations meet an offset differs from panel to panel: the dot product takes it off

    def expands(self, path: Path) -> bool:
        return False

    def steps(self, k: int) -> int:
        return self.kept

    def place(self, path: Path, panel: Value, step: Value, steps: Value) -> Value:
        return self._numbers(path, panel, steps).at(step * 2).load("i16", 2).cast("zext", "i64")

    def before(self, path: Path, panel: Value, place: Value, steps: Value) -> Value:
        total = panel.fn.slot(vec("i16", LANES))
        with self.some(path, panel, place, steps) as (_, there):
            total.set(total.get() + there.cast("zext", total.kind))
        return reduce(total.get(), "add").cast("zext", "i64")

    @contextmanager
    def some(self, path: Path, panel: Value, place: Value, steps: Value) -> Iterator[tuple[Value, Value]]:
        """A loop over the matrix's steps before a place: the number of each sixteenth, and which of 16 stay."""
        fn = panel.fn
        bits = self._numbers(path, panel, steps).at(steps * 2)
        with fn.loop((place + (LANES - 1)).udiv(LANES)) as i:
            left = (place - i * LANES).cast("trunc", "i16").splat(LANES)
            before = Value(fn, left.kind, f"<{', '.join(f'i16 {lane}' for lane in range(LANES))}>").compare("slt", left)
            yield i * LANES, bits.at(i * 2).load("i16", 2).cast("bitcast", vec("i1", LANES)) & before

    def quads(self, path: Path, panel: Value, step: Value, steps: Value) -> Iterator[Groups]:
        return BYTES.quads(path, panel, step, steps)

    def _numbers_end(self, path: Path) -> int:
        return self.kept * (STEP * path.panel + 2)

    def _numbers(self, path: Path, panel: Value, steps: Value) -> Value:
        return panel.at(steps * (STEP * path.panel))


PAIRS = _Pairs()
