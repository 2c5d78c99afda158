"""A plain matrix product and a chip in; its tiles, blocks and homes in SRAM out.

[m, k] activations times [k, n] weights.  Weights lie in SRAM as tiles: ``chunk`` of k by as many outputs as a vector
has lanes.  An *engine* (a plane of the MXM, in fp16 two in tandem) lets a *block* of rows, at most one for each
accumulator, pass tile after tile of one output vector, so that sums stay in the accumulators until they are whole.
All engines do the same in the same cycles, with other rows (split ``rows``) or other tiles (split ``columns``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import BadRequest, Unsupported
from openlpu.arch.chip import Chip
from openlpu.place.homes import Homes

Ints = NDArray[np.int64]
FORMS = ("int8", "fp16")
SPLITS = ("rows", "columns")
LARGEST = 1 << 24  # of a size: beyond the room of any chip, yet its blocks are soon counted
NARROW = "int8 instead of fp16"
LEVERS = ("more chips (--system, --chips)", NARROW, "a larger chip (--chip FILE.toml)")


@dataclass(frozen=True)
class Product:
    """[m, k] times [k, n] in one of :data:`FORMS`; sums are int32 of int8, fp32 of fp16."""

    m: int
    k: int
    n: int
    form: str

    @classmethod
    def parse(cls, text: str) -> Product:
        """``matmul:MxKxN``, fp16, or ``matmul:MxKxN:int8``."""
        kind, _, rest = text.partition(":")
        sizes, colon, form = rest.partition(":")
        numbers = [int(x) if x.isascii() and x.isdigit() else 0 for x in sizes.split("x")]
        if kind != "matmul" or len(numbers) != 3 or min(numbers) < 1 or (form if colon else FORMS[1]) not in FORMS:
            raise BadRequest(f"{text!r} is not a workload", where="workload",
                             fix=f"write matmul:MxKxN, behind it :{' or :'.join(FORMS)} (default {FORMS[1]})")
        if max(numbers) > LARGEST:
            raise BadRequest(f"{max(numbers):,} is out of range", where="workload",
                             fix=f"use 1 to {LARGEST:,}")
        m, k, n = numbers
        return cls(m, k, n, form or FORMS[1])

    def __str__(self) -> str:
        return f"matmul:{self.m}x{self.k}x{self.n}:{self.form}"

    @property
    def macs(self) -> int:
        """Products to add up."""
        return self.m * self.k * self.n

    def chunk(self, chip: Chip) -> int:
        """Numbers in a vector: products of one exact sum."""
        return chip.lanes // (1 if self.form == "int8" else 2)

    def peak(self, chip: Chip) -> int:
        """Products that a chip adds up in a cycle."""
        return len(engines(self.form, chip)) * chip.lanes * self.chunk(chip)


def engines(form: str, chip: Chip) -> list[tuple[int, int]]:
    """(hemisphere, first plane) of what multiplies on its own.  Raises :class:`Unsupported` where fp16 has none."""
    wide = 1 if form == "int8" else 2
    firsts = range(0, chip.mxm_planes_per_hemisphere - wide + 1, wide)
    if not firsts:
        raise Unsupported("fp16 takes two planes of a hemisphere", where=f"chip {chip.name}", fix="use int8")
    return [(h, first) for h in (0, 1) for first in firsts]


@dataclass(frozen=True)
class Engine:
    """Its place, its rows of the activations, its tiles of the outputs."""

    hemisphere: int
    plane: int
    index: int  # among the engines of its hemisphere
    rows: range
    tiles: range

    @property
    def name(self) -> str:
        """Of its first plane, whose queues it takes."""
        return f"mxm{'we'[self.hemisphere]}{self.plane}"


@dataclass(frozen=True)
class Tiling:
    """``blocks``: rows of each block on the engine that has most; ``periods``: cycles that each takes per tile."""

    product: Product
    chip: Chip
    split: str
    engines: tuple[Engine, ...]
    blocks: tuple[int, ...]
    periods: tuple[int, ...]
    between: bool  # loads come between the activations of two tiles, all engines at once; else beside them

    @property
    def chunks(self) -> int:
        """Tiles along k."""
        return -(-self.product.k // self.product.chunk(self.chip))

    @property
    def groups(self) -> int:
        """Loads of one tile."""
        return -(-min(self.product.n, self.chip.lanes) // self.chip.weight_streams)

    @property
    def rounds(self) -> int:
        """Output vectors of a row on the engine that has most."""
        return max(len(e.tiles) for e in self.engines)

    @property
    def cycles(self) -> int:
        """Of all blocks, tile after tile: without the way in and out."""
        return sum(self.periods) * self.rounds * self.chunks

    @property
    def shared(self) -> bool:
        """Whether the engines of a hemisphere work with the same tile."""
        return self.split == "rows"

    @cached_property
    def loaders(self) -> int:
        """Engines of a hemisphere that load tiles of their own."""
        return 1 if self.shared else 1 + max(e.index for e in self.engines)

    def starts(self) -> Ints:
        """The first row of each block, counted from the engine's own first."""
        return np.append(0, np.cumsum(self.blocks))[:-1]

    def sizes(self, engine: Engine) -> Ints:
        """Rows of each block on an engine."""
        return np.clip(len(engine.rows) - self.starts(), 0, self.blocks)


def tilings(product: Product, chip: Chip) -> list[Tiling]:
    """Both splits, the one that takes fewer cycles first."""
    return sorted((_tiling(product, chip, split) for split in SPLITS), key=lambda t: t.cycles)


def _tiling(product: Product, chip: Chip, split: str) -> Tiling:
    places = engines(product.form, chip)
    each = -(-product.m // len(places)) if split == "rows" else product.m
    tiles = -(-product.n // chip.lanes)
    found = []
    for i, (hemisphere, plane) in enumerate(places):
        rows = range(min(i * each, product.m), min((i + 1) * each, product.m)) if split == "rows" else range(product.m)
        mine = range(tiles) if split == "rows" else range(i, tiles, len(places))
        index = sum(h == hemisphere for h, _ in places[:i])
        found.append(Engine(hemisphere, plane, index, rows, mine))
    plain = Tiling(product, chip, split, tuple(found), (), (), False)
    groups = plain.groups
    most = chip.accumulators
    if each > most and most > groups:
        most = most // groups * groups  # loads then follow each other at equal distances, which takes few instructions
    blocks = [most] * (each // most) + [each % most] * (each % most > 0)
    beside = [max(size, plain.loaders * groups + 1) for size in blocks]
    side = replace(plain, blocks=tuple(blocks), periods=tuple(beside))
    behind = apart(side)
    return behind if plain.loaders > 1 and sum(behind.periods) < sum(beside) else side


def apart(t: Tiling) -> Tiling:
    """The same, but nothing overlaps: loads come between the activations of two tiles."""
    return replace(t, periods=tuple(size + t.chip.latency["install"] + t.groups for size in t.blocks), between=True)


@dataclass(frozen=True)
class Store:
    """Vectors one after the other: ``per`` to each of ``sets`` of slices, then the next; ``first``: its address."""

    sets: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]
    per: int

    def at(self, index: Ints) -> tuple[Ints, Ints]:
        """The sets and the addresses of vectors."""
        return index // self.per, np.array(self.first, np.int64)[index // self.per] + index % self.per


@dataclass(frozen=True)
class Homing:
    """Where a product lies: weights and activations by engine (some share), sums by engine."""

    tiling: Tiling
    homes: Homes
    weights: tuple[Store, ...]
    activations: tuple[Store, ...]
    sums: tuple[Store, ...]


def place_product(tiling: Tiling) -> Homing:
    """Homes of all three.  Raises :class:`~openlpu._base.errors.DoesNotFit` with what takes the room.

    What moves in one cycle lies in slices of its own: each set of weights, the activations of each stream, the sums of
    each engine.
    """
    chip, t = tiling.chip, tiling
    homes = Homes(chip, tuple(lever for lever in LEVERS if lever != NARROW or t.product.form == "fp16"))
    pools = [_Pool(homes, h) for h in (0, 1)]
    weights: list[Store] = []
    activations: list[Store] = []
    sums: list[Store] = []
    for e in t.engines:
        pool, first = pools[e.hemisphere], e.index == 0
        many = len(e.tiles) * t.chunks * t.groups
        weights.append(pool.take("weights", chip.weight_streams, many, t.groups) if first or not t.shared
                       else weights[-1])
        activations.append(pool.take("activations", 1, len(e.rows) * t.chunks) if first or t.shared
                           else activations[-1])
        sums.append(pool.take("sums", 4, len(e.rows) * len(e.tiles)))
    for pool in pools:
        pool.require_fit()
    homes.sram.require_fit()
    return Homing(t, homes, tuple(weights), tuple(activations), tuple(sums))


class _Pool:
    """The slices of a hemisphere, from its edge inward."""

    def __init__(self, homes: Homes, hemisphere: int) -> None:
        self.homes, self.hemisphere, self.used = homes, hemisphere, 0
        count = homes.chip.slices_per_hemisphere
        self.slices = range(count) if hemisphere == 0 else range(2 * count - 1, count - 1, -1)

    def take(self, what: str, width: int, count: int, step: int = 1) -> Store:
        """``count`` addresses over ``width`` slices; ``step`` of them stay together."""
        per = self.homes.chip.words_per_slice // step * step
        sets, first = [], []
        for start in range(0, count, per):
            slices = tuple(self.slices[(self.used + i) % len(self.slices)] for i in range(width))
            self.used += width
            sets.append(slices)
            first.append(self.homes.sram.keep(slices, min(per, count - start), what))
        return Store(tuple(sets), tuple(first), per)

    def require_fit(self) -> None:
        """Refuse more slices than there are."""
        if self.used > len(self.slices):
            side = ("west", "east")[self.hemisphere]
            gap = f"the {side} hemisphere has {len(self.slices)} slices and would need {self.used}"
            raise self.homes.sram.does_not_fit(gap)


