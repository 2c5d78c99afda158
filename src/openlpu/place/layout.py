"""The graph of a stage and a chip in; a home in SRAM for everything that outlives a token out.

Weights, scales, tables, the KV cache: each has a name, slices and an address, the same for every context bucket, so
that all segments of a program share one SRAM image.  The one idea: 16 weight rows that the MXM loads together lie in
16 slices at one address, in the hemisphere of the plane that will work on them.

The chips of a stage have the same homes; what fills them differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.group import Table, relative
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph, Node
from openlpu.partition.experts import bank, parameters
from openlpu.partition.split import Stage, alone
from openlpu.place.emplace import Source
from openlpu.place.lanes import HeadLanes, Lanes
from openlpu.place.maps import lane_maps, stage_heads
from openlpu.place.packing import Packing
from openlpu.place.sram import Sram
from openlpu.place.tables import folds, large, stretches

I32 = NDArray[np.int32]
EAST = 1  # hemisphere of the tables; the address maps that reach them lie west
RESERVE = 32  # that part of a set of slices is left to what is asked for without a number of rows
STEADY = 8  # tiles per plane from which on the loads of a linear last longer than the way through the chip


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


class Homes:
    """The growing table of homes of one chip; asked twice for a name, it gives the same home."""

    def __init__(self, chip: Chip, levers: tuple[str, ...], edge: int = 0) -> None:
        """``edge``: slices at each edge that hold no weights."""
        self.chip, self.sram, self.edge = chip, Sram(chip, levers), edge
        self.resident: dict[str, Resident] = {}
        self.homes: dict[str, Home] = {}
        self.banks: set[str] = set()  # homes of several experts
        self.turn = 0

    def keep(self, name: str, source: Source, slices: tuple[int, ...], count: int = 1) -> Home:
        """``count`` vectors of ``len(slices)`` planes at consecutive addresses."""
        if name not in self.homes:
            address = self.sram.keep(slices, count, name.split(".")[0])
            rows = np.arange(address, address + count, dtype=np.int32)
            self.resident[name] = Resident(name, np.tile(np.array(slices, np.int32), (count, 1)), rows, source)
            self.homes[name] = Home(slices, address, count)
        return self.homes[name]

    def keep_tile(self, name: str, source: Source, slices: tuple[int, ...], groups: int) -> Home:
        """``groups`` addresses over 16 slices: row i of the source is plane i % 16 of group i // 16."""
        if name not in self.homes:
            address = self.sram.keep(slices, groups, name.split(".")[0])
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

    def tile_slices(self, hemisphere: int, own: int = 0, rows: int = 0) -> tuple[int, ...]:
        """``weight_streams`` slices of a hemisphere: set ``own``, counted from the edge inward, if it has so many
        ``rows`` left (0: any will do); else the set with the most room, which may be the one across the middle that
        both hemispheres share."""
        width, count, edge = self.chip.weight_streams, self.chip.slices_per_hemisphere, self.edge
        side = range(edge, count) if hemisphere == 0 else range(2 * count - 1 - edge, count - 1, -1)
        sets = [tuple(sorted(side[i : i + width])) for i in range(0, len(side) - width + 1, width)]
        mine = sets[own % len(sets)]
        enough = rows + self.chip.words_per_slice // RESERVE
        if rows and self.sram.room(mine) >= enough:
            return mine
        best, left = max(sets, key=self.sram.room), len(side) % width
        if 2 * left >= width and self.sram.room(best) < enough:
            middle = tuple(range(count - left, count - left + width))
            best = max(best, middle, key=self.sram.room)
        return best


@dataclass(frozen=True)
class Layout:
    """Homes of a stage on its chips for contexts up to ``context``.

    ``heads`` are those of one chip, ``lanes`` the lane map of every value, ``packings`` how each gathered one is
    put together; ``plane`` says which MXM plane (0, 1, … alternating west and east) makes each output vector of each
    linear, keyed ``where.j``.  ``requests`` have a KV cache each: row r of request i lies at a home's address +
    r * requests + i.
    """

    chip: Chip
    context: int
    heads: HeadLanes
    lanes: Mapping[str, Lanes]
    packings: Mapping[str, Packing]
    homes: Homes
    plane: dict[str, int]
    requests: int = 1


def place(graph: Graph, chip: Chip, context: int = 0, requests: int = 1) -> Layout:
    """Home everything of a model on one chip: :func:`place_stage` of the whole graph."""
    return place_stage(alone(graph), chip, context, requests=requests)


def place_stage(
    stage: Stage, chip: Chip, context: int = 0, sources: Table = (), requests: int = 1
) -> Layout:
    """Home everything that outlives a token, for ``context`` positions (0: the model's own).

    ``sources``: whose part lies where in what the chips gather (none given: as in a node).  ``requests``: how many
    sequences have a KV cache of their own, side by side as experts lie.

    Raises :class:`~openlpu._base.errors.DoesNotFit` with what takes the room.
    """
    graph, c = stage.graph, stage.graph.config
    context = context or c.context
    assert context <= c.context, "the rotary tables end at the model's context"
    heads = stage_heads(stage, chip)
    edge = chip.slices_per_register if any(map(bank, graph.nodes)) or requests > 1 else 0  # of address maps
    maps, packings = lane_maps(stage, heads, chip, sources or relative(stage.tensor))
    layout = Layout(chip, context, heads, maps, packings, Homes(chip, _levers(graph, requests), edge), {}, requests)
    work = [0] * (2 * chip.mxm_planes_per_hemisphere)
    later = []  # large tables go where weights have left room
    for node in graph.nodes:
        if node.op in ("embed", "rope"):
            is_large = large(c.vocab if node.op == "embed" else context, chip)
            later.append(node) if is_large else _tables(layout, node, c.vocab)
        elif node.op == "linear":
            _linear(layout, node, work, partial=graph.values[node.output].kind == "sums")
        elif node.op == "attention":
            _cache(layout, node)
        _vectors(layout, node)
    for node in sorted(later, key=lambda n: n.op == "embed"):  # tables in stretches fit where whole ones do not
        _tables(layout, node, c.vocab)
    layout.homes.sram.require_fit()
    return layout


def _levers(graph: Graph, requests: int) -> tuple[str, ...]:
    """What would make a model smaller, or its room larger."""
    narrow = any(node.attrs.get("kv_bits") == 16 for node in graph.nodes)
    bits = ("fewer bits in the KV cache (--kv-bits 8)",) if narrow else ()
    fewer = ("fewer requests at once (--requests)",) if requests > 1 else ()
    return "a larger chip (--chip FILE.toml)", "a shorter context (--context)", *bits, *fewer, "a smaller model"


def _linear(layout: Layout, node: Node, work: list[int], *, partial: bool) -> None:
    """Tiles of every output vector, on the plane with the least work so far; none for an input vector not used.

    Where chips add up ``partial`` sums, each takes its columns, and of what several have the first one."""
    chip, homes = layout.chip, layout.homes
    inside, out = layout.lanes[node.inputs[0]], layout.lanes[node.output]
    inside = inside.once() if partial else inside
    used = [i for i in range(inside.vectors) if inside.used(i).any()]
    even = steady(len(used) * out.vectors, chip)  # then each plane reads from slices of its own
    keys, where = parameters(node, "codes"), bank(node) or node.where
    columns = {i: inside.row(i) for i in used}
    for j in range(out.vectors):
        known = layout.plane.get(f"{where}.{j}")  # of another chosen expert
        plane = work.index(min(work)) if known is None else known
        groups = -(-(int(np.flatnonzero(out.used(j))[-1]) + 1) // chip.weight_streams)
        work[plane] += len(used) * (groups if even else chip.superlanes)
        layout.plane[f"{node.where}.{j}"] = layout.plane[f"{where}.{j}"] = plane
        rows = out.row(j)[..., : groups * chip.weight_streams]
        for i in used:
            name, sources = f"weights.{where}.{j}.{i}", [Source("codes", key, rows, columns[i]) for key in keys]
            slices = homes.tile_slices(plane % 2, plane // 2, groups * len(keys) if even or bank(node) else 0)
            if bank(node):
                homes.keep_bank(name, sources, slices, groups)
            else:
                homes.keep_tile(name, sources[0], slices, groups)


def steady(tiles: int, chip: Chip) -> bool:
    """Whether the loads of a linear of so many tiles last longer than a vector's way through the chip."""
    return tiles >= STEADY * 2 * chip.mxm_planes_per_hemisphere


def _vectors(layout: Layout, node: Node) -> None:
    """fp32 parameters with an entry per channel: row scales, biases, gains."""
    one = np.zeros(1, np.int32)
    if "centre" in node.params:
        keys = layout.lanes[node.inputs[1]]
        for j in range(keys.vectors):
            source = Source("row", node.params["centre"], one, keys.row(j))
            layout.homes.keep(f"centre.{node.where}.{j}", source, layout.homes.quad_slices())
    if "sinks" in node.params:
        _sinks(layout, node)
    for word in ("scale", "bias", "gain"):
        if word not in node.params or (node.op == "embed" and word == "scale"):
            continue
        for j in range(layout.lanes[node.output].vectors):
            channel = layout.lanes[node.output].row(j)
            if node.op == "headnorm":
                channel = np.where(channel >= 0, channel % layout.heads.dim, -1).astype(np.int32)
            sources = [Source("row", key, one, channel) for key in parameters(node, word)]
            if where := bank(node):
                layout.homes.keep_bank(f"{word}.{where}.{j}", sources, layout.homes.quad_slices(), 1)
            else:
                layout.homes.keep(f"{word}.{node.where}.{j}", sources[0], layout.homes.quad_slices())


def _sinks(layout: Layout, node: Node) -> None:
    """A vector for each query head a chip has, by its vector and first lane: the head's sink in every lane."""
    query, dim = layout.lanes[node.inputs[0]], layout.heads.dim
    for v in range(query.vectors):
        for lane in np.flatnonzero(query.used(v))[::dim].tolist():
            head = np.where(query.channel[:, v, lane] >= 0, query.channel[:, v, lane] // dim, -1).astype(np.int32)
            cols = np.repeat(head[:, None], layout.chip.lanes, axis=1)
            source = Source("row", node.params["sinks"], np.zeros(1, np.int32), cols[0] if len(cols) == 1 else cols)
            layout.homes.keep(f"sinks.{node.where}.{v}.{lane}", source, layout.homes.quad_slices())


def _table(layout: Layout, name: str, sources: list[Source], planes: int, rows: int) -> None:
    """Tables that gathers read by row number: ``name.i`` (the only one: ``name``), a stretch after the other.

    Stretches that have room side by side in a group of slices share it.
    """
    slices: tuple[int, ...] = ()
    for stretch in stretches(rows, layout.chip):
        cut = slice(stretch.start, stretch.start + stretch.count)
        for i, source in enumerate(sources):
            spent = len(slices) < planes or (i == 0 and layout.homes.sram.room(slices[:planes]) < stretch.count)
            if stretch.whole or spent:
                slices = layout.homes.quad_slices(EAST if stretch.whole else None)
                if layout.homes.sram.room(slices) < stretch.count:
                    slices = layout.homes.quad_slices()
            own, slices = slices[:planes], slices[planes:]
            table = f"{name}.{i}" if len(sources) > 1 or planes == 1 else name
            part = source if stretch.whole else replace(source, rows=source.rows[..., cut])
            layout.homes.keep(stretch.home(table), part, own, stretch.count)


def _tables(layout: Layout, node: Node, vocab: int) -> None:
    """What an ``embed`` or a ``rope`` looks up: codes and scales by token, cosines and sines by position."""
    if node.op == "rope":
        _rope(layout, node)
        return
    out = layout.lanes[node.output]
    rows, everywhere = np.arange(vocab, dtype=np.int32), np.zeros(layout.chip.lanes, np.int32)
    if folds(vocab, layout.chip):
        count = -(-vocab // layout.chip.lanes)
        lane = np.arange(layout.chip.lanes, dtype=np.int32)
        _table(layout, "embedding.scale", [Source("folded", node.params["scale"], rows[:count], lane)], 4, count)
    else:
        _table(layout, "embedding.scale", [Source("float", node.params["scale"], rows, everywhere)], 4, vocab)
    codes = [Source("codes", node.params["codes"], rows, out.row(v)) for v in range(out.vectors)]
    _table(layout, "embedding.codes", codes, 1, vocab)


def _rope(layout: Layout, node: Node) -> None:
    """Cosines and signed sines over the lanes of heads side by side; the sine is negative on first halves."""
    if "rope.cos" in layout.homes.homes:
        return
    dim, lane = layout.heads.dim, np.arange(layout.chip.lanes, dtype=np.int32)
    used = lane < layout.heads.per_vector * dim
    pair = np.where(used, lane % dim % (dim // 2), -1).astype(np.int32)
    rows = np.arange(layout.context, dtype=np.int32)
    for word, negate in (("cos", None), ("sin", used & (lane % dim < dim // 2))):
        source = Source("float", node.params[word], rows, pair, negate=negate)
        _table(layout, f"rope.{word}", [source], 4, layout.context)


def _cache(layout: Layout, node: Node) -> None:
    """K and V of one layer: per kv vector and byte plane 16 slices, per KV head a table of scales."""
    side, blocks, homes = node.attrs["layer"] % 2, layout.requests * -(-layout.context // BLOCK), layout.homes
    zeros = Source("zeros")
    for word, rows in (("k", BLOCK // layout.chip.weight_streams), ("v", layout.heads.channel_groups)):
        for c in range(layout.heads.kv.vectors):
            for plane in range(-(-node.attrs["kv_bits"] // 8)):
                name = f"kv.{node.where}.{word}.{c}.{plane}"
                homes.keep_tile(name, zeros, homes.tile_slices(side), rows * blocks)
            for g, _ in layout.heads.heads_in(c):
                homes.keep(f"kv.{node.where}.{word}.scale{g}", zeros, homes.quad_slices(side), blocks)
