"""Requests for room for what outlives a token in; a home in SRAM for each, and what will fill it, out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.partition.names import shift
from openlpu.place.emplace import Source
from openlpu.place.sram import Sram

I32 = NDArray[np.int32]
RESERVE, TIGHT = 32, 128  # that part of a set of slices is left to what is asked for without a number of rows


@dataclass(frozen=True)
class Resident:
    """Vectors in SRAM before the first token: plane p of vector i lies at (slices[i, p], addresses[i]).

    ``source`` tells how :mod:`openlpu.place.emplace` fills them: from a parameter, a constant, or zeros.
    """

    name: str
    slices: I32
    addresses: I32
    source: Source


@dataclass(frozen=True)
class Home:
    """Where a name lives: the planes' slices (1, 2, 4, or 16 for weight rows), the first address, how many."""

    slices: tuple[int, ...]
    address: int
    count: int


def of_layer(name: str, by: int) -> str:
    """The name of a home of a layer so many further on; one of no layer keeps its name."""
    word, dot, rest = name.partition(".")
    return f"{word}{dot}{shift(rest, by)}"


def strides(homes: Iterable[Home]) -> dict[int, int]:
    """By slice, the rows that some homes take, gaps included: the same in slices that a home has its address in."""
    parts: list[tuple[set[int], int, int]] = []
    for home in homes:
        slices, low, high, apart = set(home.slices), home.address, home.address + home.count, []
        for part in parts:
            if slices.isdisjoint(part[0]):
                apart.append(part)
            else:
                slices, low, high = slices | part[0], min(low, part[1]), max(high, part[2])
        parts = [*apart, (slices, low, high)]
    return {s: high - low for slices, low, high in parts for s in slices}


class Homes:
    """The growing table of homes of one chip; asked twice for a name, it gives the same home."""

    def __init__(self, chip: Chip, levers: tuple[str, ...], edge: int = 0) -> None:
        """``edge``: slices at each edge that hold no weights."""
        self.chip, self.sram, self.edge = chip, Sram(chip, levers), edge
        self.resident: dict[str, Resident] = {}
        self.homes: dict[str, Home] = {}
        self.banks: set[str] = set()  # homes of several experts
        self.runs: dict[str, list[tuple[int, Home]]] = {}  # of a tile of several experts, by their first groups
        self.shared: dict[tuple[int, int, int], tuple[tuple[int, ...], int, int]] = {}  # slices, address, idle ones
        self.turn = 0
        self.layer = 0  # whose homes are asked for, of layers that lie alike
        self.stride: dict[int, int] = {}  # by slice, rows from a home of one of them to that of the next

    def repeat(self, layer: int) -> None:
        """What is asked for next is of this layer and lies as it did for layer 0, further on in the same slices; for
        layer 0 it lies where there is room."""
        if not self.stride:
            self.stride, self.sram.copies = strides(self.homes.values()), 1
        self.layer = layer

    def _room(self, name: str, slices: tuple[int, ...], count: int) -> tuple[tuple[int, ...], int]:
        """The slices and the first address of a home: those given and where they have room, or as of layer 0."""
        what = name.split(".")[0]
        if not self.layer:
            return slices, self.sram.keep(slices, count, what)
        first = self.homes[of_layer(name, -self.layer)]
        address = first.address + self.layer * self.stride[first.slices[0]]
        self.sram.keep_at(address, first.slices, count, what)
        return first.slices, address

    def keep(self, name: str, source: Source, slices: tuple[int, ...], count: int = 1) -> Home:
        """``count`` vectors of ``len(slices)`` planes at consecutive addresses."""
        if name not in self.homes:
            slices, address = self._room(name, slices, count)
            rows = np.arange(address, address + count, dtype=np.int32)
            self.resident[name] = Resident(name, np.tile(np.array(slices, np.int32), (count, 1)), rows, source)
            self.homes[name] = Home(slices, address, count)
        return self.homes[name]

    def keep_tile(self, name: str, source: Source, slices: tuple[int, ...], groups: int) -> Home:
        """``groups`` addresses over 16 slices: row i of the source is plane i % 16 of group i // 16."""
        if name not in self.homes:
            slices, address = self._room(name, slices, groups)
            grid = np.tile(np.array(slices, np.int32), groups)[:, None]
            rows = np.repeat(np.arange(address, address + groups, dtype=np.int32), len(slices))
            self.resident[name] = Resident(name, grid, rows, source)
            self.homes[name] = Home(slices, address, groups)
        return self.homes[name]

    def keep_bank(self, name: str, sources: Sequence[Source], slices: tuple[int, ...], groups: int) -> Home:
        """Of several experts ``groups`` addresses over the slices, side by side: group g of expert e lies at the home's
        address + g * experts + e, so that e is all that a map of addresses says."""
        if name not in self.homes:
            each, width = len(sources), len(slices)
            address = self.sram.keep(slices, groups * each, name.split(".")[0])
            tile = width == self.chip.weight_streams
            for e, source in enumerate(sources):
                rows = np.arange(address + e, address + groups * each, each, dtype=np.int32)
                grid = np.tile(np.array(slices, np.int32), (groups, 1))
                place = (grid.reshape(-1, 1), np.repeat(rows, width)) if tile else (grid, rows)
                self.resident[f"{name}.{e}"] = Resident(f"{name}.{e}", *place, source)
            self.homes[name] = Home(slices, address, groups)
            self.banks.add(name)
        return self.homes[name]

    def keep_experts(
        self, name: str, sources: Sequence[Source], rows: int, side: tuple[int, int], *, share: bool
    ) -> None:
        """A tile of ``rows`` rows of each of several experts, in ``runs`` of groups as sets of slices have room for
        them; ``side`` as :meth:`tile_slices` takes it.  ``share``: idle rows of its last group may be anything, so that
        rows of other tiles can lie there."""
        if name in self.runs:
            return
        width, runs, each = self.chip.weight_streams, self.runs.setdefault(name, []), len(sources)
        groups, rest = divmod(rows, width)
        if not share or 2 * rest > width:
            groups, rest = -(-rows // width), 0
        start = 0
        while start < groups:
            slices = self.tile_slices(*side, rows=(groups - start) * each, tight=True)
            room = min(groups - start, (self.sram.room(slices) - self.chip.words_per_slice // TIGHT) // each)
            count = room if room > 0 else groups - start  # past the end, to be reported
            part = _rows(sources, start * width, (start + count) * width)
            home = self.keep_bank(f"{name}+{start}" if start else name, part, slices, count)
            runs.append((start, home))
            start += count
        if rest:
            part, own = _rows(sources, groups * width, rows), f"{name}+{groups}" if groups else name
            runs.append((groups, self._keep_rest(own, part, rest, side)))

    def _keep_rest(self, name: str, sources: Sequence[Source], rows: int, side: tuple[int, int]) -> Home:
        """Rows of less than half a group, in a group's slices that other tiles have a part of; read from their own
        slices on, around."""
        key, width, each = (*side, len(sources)), self.chip.weight_streams, len(sources)
        slices, address, idle = self.shared.pop(key, ((), 0, 0))
        if idle < rows:
            self._fill(slices[:idle], address, each)
            slices = self.tile_slices(*side, rows=each, tight=True)
            address, idle = self.sram.keep(slices, each, name.split(".")[0]), width
        for e, source in enumerate(sources):
            at, grid = np.full(rows, address + e, np.int32), np.array(slices[:rows], np.int32)
            self.resident[f"{name}.{e}"] = Resident(f"{name}.{e}", grid[:, None], at, source)
        self.homes[name] = Home(slices, address, 1)
        self.banks.add(name)
        self.shared[key] = (*slices[rows:], *slices[:rows]), address, idle - rows
        return self.homes[name]

    def finish(self) -> None:
        """Zeros where no tile has come to share a group: every slice of one is read."""
        for (_, _, each), (slices, address, idle) in self.shared.items():
            self._fill(slices[:idle], address, each)
        self.shared.clear()

    def _fill(self, slices: tuple[int, ...], address: int, each: int) -> None:
        """Zeros at ``each`` addresses of some slices."""
        if slices:
            name, rows = f"idle.{slices[0]}.{address}", np.arange(address, address + each, dtype=np.int32)
            self.resident[name] = Resident(name, np.tile(np.array(slices, np.int32), (each, 1)), rows, Source("zeros"))

    def quad_slices(self, hemisphere: int | None = None) -> tuple[int, ...]:
        """Slices for a 32-bit vector: groups in turn, innermost first, where there is most room."""
        half, per = self.chip.groups, self.chip.slices_per_register
        order = sorted(range(2 * half), key=lambda g: abs(2 * g + 1 - 2 * half) // 2)
        order = [g for g in order if hemisphere is None or (g >= half) == bool(hemisphere)]
        self.turn += 1
        options = [order[(self.turn + k) % len(order)] for k in range(len(order))]
        return max((tuple(range(g * per, (g + 1) * per)) for g in options), key=lambda s: self.sram.room(s) // 64)

    def map_slices(self, hemisphere: int) -> tuple[int, ...]:
        """Slices for the two planes of a lane map: in turn those between the middle, where values inside a token lie,
        and the edge, so that a map and what it turns are not read from one slice."""
        per, width, count = self.chip.slices_per_register, self.chip.weight_streams, self.chip.slices_per_hemisphere
        side = range(count) if hemisphere == 0 else range(2 * count - 1, count - 1, -1)
        span = range(width, 2 * width, 2) if count >= 2 * width else range(0, count // 2 - 1, 2)
        pairs = [tuple(sorted(side[i : i + 2])) for i in span]
        self.turn += 1
        options = [pairs[(self.turn * (per // 2 + 1) + k) % len(pairs)] for k in range(len(pairs))]
        return max(options, key=lambda s: self.sram.room(s) // 64)

    def tile_slices(self, hemisphere: int, own: int = 0, rows: int = 0, *, tight: bool = False) -> tuple[int, ...]:
        """``weight_streams`` slices of a hemisphere: set ``own``, counted from the edge inward, if it has so many
        ``rows`` left (0: any will do); else the set with the most room, which may be the one across the middle that
        both hemispheres share.  ``tight``: with less left for what is asked for later."""
        width, count = self.chip.weight_streams, self.chip.slices_per_hemisphere
        sets, left = self._sets(hemisphere)
        mine = sets[own % len(sets)]
        enough = rows * self.sram.copies + self.chip.words_per_slice // (TIGHT if tight else RESERVE)
        if rows and self.sram.room(mine) >= enough:
            return mine
        best = max(sets, key=self.sram.room)
        if 2 * left >= width and self.sram.room(best) < enough:
            middle = tuple(range(count - left, count - left + width))
            best = max(best, middle, key=self.sram.room)
        return best

    def roomy(self, hemisphere: int) -> int:
        """Rows left in the sets of slices of a hemisphere."""
        return sum(map(self.sram.room, self._sets(hemisphere)[0]))

    def _sets(self, hemisphere: int) -> tuple[list[tuple[int, ...]], int]:
        """The sets of ``weight_streams`` slices of a hemisphere, from the edge inward, and how many slices are left."""
        width, count, edge = self.chip.weight_streams, self.chip.slices_per_hemisphere, self.edge
        side = range(edge, count) if hemisphere == 0 else range(2 * count - 1 - edge, count - 1, -1)
        sets = [tuple(sorted(side[i : i + width])) for i in range(0, len(side) - width + 1, width)]
        return sets, len(side) % width


def _rows(sources: Sequence[Source], start: int, end: int) -> list[Source]:
    """The same of some of their vectors."""
    return [replace(source, rows=source.rows[..., start:end]) for source in sources]
