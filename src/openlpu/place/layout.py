"""An integer graph and a chip in; a home in SRAM for everything that outlives a token out.

Weights, scales, tables, the KV cache: each has a name, slices and an address, the same for every context bucket, so
that all segments of a program share one SRAM image.  The one idea: 16 weight rows that the MXM loads together lie in
16 slices at one address, in the hemisphere of the plane that will work on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph, Node
from openlpu.place.emplace import Source
from openlpu.place.lanes import HeadLanes, Lanes, head_lanes, packed
from openlpu.place.sram import Sram

I32 = NDArray[np.int32]
EAST = 1  # hemisphere of the tables; the address maps that reach them lie west


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

    def __init__(self, chip: Chip, levers: tuple[str, ...]) -> None:
        self.chip, self.sram = chip, Sram(chip, levers)
        self.resident: dict[str, Resident] = {}
        self.homes: dict[str, Home] = {}
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

    def quad_slices(self, hemisphere: int | None = None) -> tuple[int, ...]:
        """Slices for a 32-bit vector: groups in turn, innermost first, where there is most room."""
        half, per = self.chip.groups, self.chip.slices_per_register
        order = sorted(range(2 * half), key=lambda g: abs(2 * g + 1 - 2 * half) // 2)
        order = [g for g in order if hemisphere is None or (g >= half) == bool(hemisphere)]
        self.turn += 1
        options = [order[(self.turn + k) % len(order)] for k in range(len(order))]
        return max((tuple(range(g * per, (g + 1) * per)) for g in options), key=lambda s: self.sram.room(s) // 64)

    def tile_slices(self, hemisphere: int) -> tuple[int, ...]:
        """``weight_streams`` slices of a hemisphere, from the edge inward; the set with the most room."""
        width, count = self.chip.weight_streams, self.chip.slices_per_hemisphere
        side = range(count) if hemisphere == 0 else range(2 * count - 1, count - 1, -1)
        sets = [tuple(sorted(side[i : i + width])) for i in range(0, count - width + 1, width)]
        return max(sets, key=self.sram.room)


@dataclass(frozen=True)
class Layout:
    """Homes of a model on a chip for contexts up to ``context``; ``plane`` says which MXM plane (0, 1, … alternating
    west and east) makes each output vector of each linear, keyed ``where.j``."""

    chip: Chip
    context: int
    heads: HeadLanes
    homes: Homes
    plane: dict[str, int]


def place(graph: Graph, chip: Chip, context: int = 0) -> Layout:
    """Home everything that outlives a token, for ``context`` positions (0: the model's own).

    Raises :class:`~openlpu._base.errors.DoesNotFit` with what takes the room.
    """
    c = graph.config
    context = context or c.context
    assert context <= c.context, "the rotary tables end at the model's context"
    heads = head_lanes(c.heads, c.kv_heads, c.head_dim, chip)
    layout = Layout(chip, context, heads, Homes(chip, _levers(graph)), {})
    work = [0] * (2 * chip.mxm_planes_per_hemisphere)
    for node in graph.nodes:
        if node.op == "embed":
            _embedding(layout, node, c.vocab, lanes_of(graph, heads, chip, node.output))
        elif node.op == "linear":
            _linear(layout, graph, node, work)
        elif node.op == "attention":
            _cache(layout, node)
        elif node.op == "rope":
            _rope(layout, node)
        _vectors(layout, graph, node)
    layout.homes.sram.require_fit()
    return layout


def _levers(graph: Graph) -> tuple[str, ...]:
    """What would make a model smaller, or its room larger."""
    narrow = any(node.attrs.get("kv_bits") == 16 for node in graph.nodes)
    bits = ("fewer bits in the KV cache (--kv-bits 8)",) if narrow else ()
    return "a larger chip (--chip FILE.toml)", "a shorter context (--context)", *bits, "a smaller model"


def lanes_of(graph: Graph, heads: HeadLanes, chip: Chip, name: str) -> Lanes:
    """The lane map of a graph value: heads side by side for q, k, v and attention's output; packed otherwise."""
    for node in graph.nodes:
        if node.op == "attention" and (name == node.output or name == node.inputs[0]):
            return heads.query
        if node.op == "attention" and name in node.inputs[1:]:
            return heads.kv
        if node.op in ("rope", "headnorm") and name in node.inputs:
            return lanes_of(graph, heads, chip, node.output)
        if node.op in ("quantize", "rms") and name == node.output:
            return lanes_of(graph, heads, chip, node.inputs[0])
    return packed(graph.values[name].size, chip)


def _linear(layout: Layout, graph: Graph, node: Node, work: list[int]) -> None:
    """Tiles of every output vector, on the plane with the least work so far."""
    chip, homes = layout.chip, layout.homes
    inside = lanes_of(graph, layout.heads, chip, node.inputs[0])
    for j, rows in enumerate(lanes_of(graph, layout.heads, chip, node.output).channel):
        plane = work.index(min(work))
        work[plane] += inside.vectors
        layout.plane[f"{node.where}.{j}"] = plane
        groups = -(-(int(np.flatnonzero(rows >= 0)[-1]) + 1) // chip.weight_streams)
        for i, cols in enumerate(inside.channel):
            source = Source("codes", node.params["codes"], rows[: groups * chip.weight_streams], cols)
            homes.keep_tile(f"weights.{node.where}.{j}.{i}", source, homes.tile_slices(plane % 2), groups)


def _vectors(layout: Layout, graph: Graph, node: Node) -> None:
    """fp32 parameters with an entry per channel: row scales, biases, gains."""
    one = np.zeros(1, np.int32)
    if "centre" in node.params:
        for j, channel in enumerate(layout.heads.kv.channel):
            source = Source("row", node.params["centre"], one, channel)
            layout.homes.keep(f"centre.{node.where}.{j}", source, layout.homes.quad_slices())
    channels = lanes_of(graph, layout.heads, layout.chip, node.output).channel
    for word in ("scale", "bias", "gain"):
        if word not in node.params or (node.op == "embed" and word == "scale"):
            continue
        for j, channel in enumerate(channels):
            if node.op == "headnorm":
                channel = np.where(channel >= 0, channel % layout.heads.dim, -1).astype(np.int32)
            source = Source("row", node.params[word], one, channel)
            layout.homes.keep(f"{word}.{node.where}.{j}", source, layout.homes.quad_slices())


def _table(layout: Layout, name: str, source: Source, planes: int, rows: int) -> None:
    """A table that a gather reads by row number."""
    layout.homes.keep(name, source, layout.homes.quad_slices(EAST)[:planes], rows)


def _embedding(layout: Layout, node: Node, vocab: int, out: Lanes) -> None:
    rows, everywhere = np.arange(vocab, dtype=np.int32), np.zeros(layout.chip.lanes, np.int32)
    _table(layout, "embedding.scale", Source("float", node.params["scale"], rows, everywhere), 4, vocab)
    for v, channel in enumerate(out.channel):
        _table(layout, f"embedding.codes.{v}", Source("codes", node.params["codes"], rows, channel), 1, vocab)


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
        _table(layout, f"rope.{word}", source, 4, layout.context)


def _cache(layout: Layout, node: Node) -> None:
    """K and V of one layer: per kv vector and byte plane 16 slices, per KV head a table of scales."""
    side, blocks, homes = node.attrs["layer"] % 2, -(-layout.context // BLOCK), layout.homes
    zeros = Source("zeros")
    for word, rows in (("k", BLOCK // layout.chip.weight_streams), ("v", layout.heads.channel_groups)):
        for c in range(layout.heads.kv.vectors):
            for plane in range(-(-node.attrs["kv_bits"] // 8)):
                name = f"kv.{node.where}.{word}.{c}.{plane}"
                homes.keep_tile(name, zeros, homes.tile_slices(side), rows * blocks)
            for g, _ in layout.heads.heads_in(c):
                homes.keep(f"kv.{node.where}.{word}.scale{g}", zeros, homes.quad_slices(side), blocks)
