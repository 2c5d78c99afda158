"""The graph of a stage and a chip in; a home in SRAM for everything that outlives a token out.

Weights, scales, tables, the KV cache: each has a name, slices and an address, the same for every context bucket, so
that all segments of a program share one SRAM image.  The one idea: 16 weight rows that the MXM loads together lie in
16 slices at one address, in the hemisphere of the plane that will work on them.

The chips of a stage have the same homes; what fills them differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import Unsupported
from openlpu.arch.chip import Chip
from openlpu.arch.group import Table, relative
from openlpu.arch.truepoint import BLOCK
from openlpu.checkpoint.config import ModelConfig
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph.ir import Graph, Node, layer_of
from openlpu.partition.experts import bank, parameters
from openlpu.partition.split import Stage, alone
from openlpu.partition.sweeps import entering
from openlpu.place.emplace import Source
from openlpu.place.homes import Homes, of_layer
from openlpu.place.lanes import HeadLanes, Lanes
from openlpu.place.maps import lane_maps, stage_heads
from openlpu.place.packing import Packing
from openlpu.place.partner import Order, beside, order, swapped
from openlpu.place.tables import folds, large, stretches

I32 = NDArray[np.int32]
EAST = 1  # hemisphere of the tables; the address maps that reach them lie west
STEADY = 8  # tiles per plane from which on the loads of a linear last longer than the way through the chip


@dataclass(frozen=True)
class Layout:
    """Homes of a stage on its chips for contexts up to ``context``.

    ``heads`` are those of one chip, ``lanes`` the lane map of every value, ``packings`` how each gathered one is
    put together; ``plane`` says which MXM plane (0, 1, … alternating west and east) makes each output vector of each
    linear, keyed ``where.j``, and ``side`` in which hemisphere the cache of each attention lies.  ``requests`` have a
    KV cache each: row r of request i lies at a home's address + r * requests + i.  ``partners``: linears whose tiles
    make RoPE's partners too, on the planes beside, and how.
    """

    chip: Chip
    context: int
    heads: HeadLanes
    lanes: Mapping[str, Lanes]
    packings: Mapping[str, Packing]
    homes: Homes
    plane: dict[str, int]
    requests: int = 1
    side: dict[str, int] = field(default_factory=dict)
    partners: dict[str, Order] = field(default_factory=dict)


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
    mixtures = any(map(bank, graph.nodes))
    edge = chip.slices_per_register if mixtures or requests > 1 else 0  # of address maps
    maps, packings = lane_maps(stage, heads, chip, sources or relative(stage.tensor))
    layout = Layout(chip, context, heads, maps, packings, Homes(chip, _levers(graph, requests), edge), {}, requests)
    work = [0] * (2 * chip.mxm_planes_per_hemisphere)
    _partners(layout, graph)
    caches: list[Node] = []  # where experts leave room
    later: list[tuple[Node, int]] = []  # large tables go where weights have left room
    for node in _in_order(layout, graph, work):
        if node.op in ("embed", "rope"):
            rows = table_rows(node, c, context)
            later.append((node, rows)) if large(rows, chip) else _tables(layout, node, rows)
        elif node.op == "linear":
            if not bank(node):
                for j in range(maps[node.output].vectors):
                    _tiles(layout, node, j, work, range(len(work)))
        elif node.op == "attention":
            caches.append(node) if mixtures else _cache(layout, node, _side(node, c))
        if not bank(node):
            _vectors(layout, node)
    _experts(layout, [node for node in graph.nodes if bank(node)], work)
    for node in caches:
        _cache(layout, node, max((0, 1), key=layout.homes.roomy))
    for node, rows in sorted(later, key=lambda item: item[0].op == "embed"):  # stretches fit where whole ones do not
        _tables(layout, node, rows)
    _states(layout, graph)
    layout.homes.finish()
    layout.homes.sram.require_fit()
    return layout


def _in_order(layout: Layout, graph: Graph, work: list[int]) -> Iterator[Node]:
    """The nodes in the order in which they get homes.  An encoder's layers come first, each as the first of them lies,
    so that the program of a sweep is that of another, at other addresses."""
    if not isinstance(graph.config, EncoderConfig):
        yield from graph.nodes
        return
    layout.homes.sram.copies = graph.config.layers
    for node in sorted(graph.nodes, key=lambda node: layer_of(node) < 0):
        if (layer := max(layer_of(node), 0)) != layout.homes.layer:
            layout.homes.repeat(layer)
            work[:] = [0] * len(work)
        yield node


def _side(node: Node, config: ModelConfig) -> int:
    """The hemisphere of an attention's cache: layers by turns, but those of an encoder lie alike, and the first planes
    that linears take have their weights west."""
    return EAST if isinstance(config, EncoderConfig) else node.attrs["layer"] % 2


def _levers(graph: Graph, requests: int) -> tuple[str, ...]:
    """What would make a model smaller, or its room larger."""
    narrow = any(node.attrs.get("kv_bits") == 16 for node in graph.nodes)
    bits = ("fewer bits in the KV cache (--kv-bits 8)",) if narrow else ()
    fewer = ("fewer requests at once (--requests)",) if requests > 1 else ()
    return "a larger chip (--chip FILE.toml)", "a shorter context (--context)", *bits, *fewer, "a smaller model"


def _experts(layout: Layout, nodes: Sequence[Node], work: list[int]) -> None:
    """Tiles of experts, the largest first, in the hemisphere that has more room; then what they are scaled by."""
    sizes = [(int(layout.lanes[node.output].used(j).sum()), node, j) for node in nodes if node.op == "linear"
             for j in range(layout.lanes[node.output].vectors)]
    for _, node, j in sorted(sizes, key=lambda size: -size[0]):
        side = max((0, 1), key=layout.homes.roomy)
        _tiles(layout, node, j, work, range(side, len(work), 2))
    for node in nodes:
        _vectors(layout, node)


def _partners(layout: Layout, graph: Graph) -> None:
    """The linears in front of RoPE that have so few tiles that loading them twice takes less time than a turn."""
    roped = {node.inputs[0] for node in graph.nodes if node.op == "rope"}
    found = order(layout.heads, layout.chip) if roped else None
    for node in graph.nodes if found else ():
        if node.op == "linear" and node.output in roped:
            tiles = layout.lanes[node.inputs[0]].vectors * layout.lanes[node.output].vectors
            if found and tiles <= 2 * layout.chip.mxm_planes_per_hemisphere:
                layout.partners[node.where] = found


def _tiles(layout: Layout, node: Node, j: int, work: list[int], planes: Sequence[int]) -> None:
    """Tiles of output vector j, on the one of some planes with the least work so far; none for an input vector not
    used.

    Where chips add up partial sums, and scale them later, each takes its columns, and of what several have the first
    one."""
    chip, homes = layout.chip, layout.homes
    inside, out = layout.lanes[node.inputs[0]], layout.lanes[node.output]
    inside = inside if "scale" in node.params else inside.once()
    used = [i for i in range(inside.vectors) if inside.used(i).any()]
    even = steady(len(used) * out.vectors, chip)  # then each plane reads from slices of its own
    keys, where = parameters(node, "codes"), bank(node) or node.where
    known = layout.plane.get(f"{where}.{j}")  # of another chosen expert
    plane = min(planes, key=work.__getitem__) if known is None else known
    count = int(np.flatnonzero(out.used(j))[-1]) + 1
    groups = -(-count // chip.weight_streams)
    work[plane] += len(used) * (groups if even else chip.superlanes)
    if node.where in layout.partners:
        work[beside(plane, chip)] += len(used) * chip.superlanes
    layout.plane[f"{node.where}.{j}"] = layout.plane[f"{where}.{j}"] = plane
    rows = out.row(j)[..., : groups * chip.weight_streams]
    for i in used:
        columns = inside.row(i)
        name, sources = f"weights.{where}.{j}.{i}", [Source("codes", key, rows, columns) for key in keys]
        if bank(node):  # what an idle row gives is lost in a product with a scale of 0, and its sign in a bias of 0
            homes.keep_experts(name, sources, count, (plane % 2, plane // 2), share="bias" in node.params)
        else:
            slices = homes.tile_slices(plane % 2, plane // 2, groups if even else 0)
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
            if node.where in layout.partners:
                turned = replace(sources[0], cols=channel[..., swapped(layout.heads, layout.chip)])
                layout.homes.keep(f"{word}.{node.where}.{j}.partner", turned, layout.homes.quad_slices())


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


def table_rows(node: Node, config: ModelConfig, context: int) -> int:
    """Rows of what an ``embed`` or a ``rope`` looks up."""
    return {"token": config.vocab, "type": getattr(config, "types", 0)}.get(node.inputs[0], context)


def embedding(node: Node) -> str:
    """Name of the table of an ``embed``."""
    return "embedding" if node.inputs == ("token",) else f"embedding.{node.inputs[0]}"


def _tables(layout: Layout, node: Node, vocab: int) -> None:
    """What an ``embed`` or a ``rope`` looks up: codes and scales by token, cosines and sines by position."""
    if node.op == "rope":
        _rope(layout, node)
        return
    out, name = layout.lanes[node.output], embedding(node)
    rows, everywhere = np.arange(vocab, dtype=np.int32), np.zeros(layout.chip.lanes, np.int32)
    if folds(vocab, layout.chip):
        count = -(-vocab // layout.chip.lanes)
        lane = np.arange(layout.chip.lanes, dtype=np.int32)
        _table(layout, f"{name}.scale", [Source("folded", node.params["scale"], rows[:count], lane)], 4, count)
    else:
        _table(layout, f"{name}.scale", [Source("float", node.params["scale"], rows, everywhere)], 4, vocab)
    codes = [Source("codes", node.params["codes"], rows, out.row(v)) for v in range(out.vectors)]
    _table(layout, f"{name}.codes", codes, 1, vocab)


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


def _states(layout: Layout, graph: Graph) -> None:
    """Where an encoder's residuals wait from one sweep to the next: two states, a row for each position.

    Raises :class:`~openlpu._base.errors.Unsupported` for more positions than one slice has rows.
    """
    if not isinstance(graph.config, EncoderConfig):
        return
    rows = stretches(layout.context, layout.chip)
    if not rows[0].whole:
        raise Unsupported(f"a sequence of {layout.context} positions on {layout.chip.name}", where="context",
                          fix="use a shorter one")
    for v in range(layout.lanes[entering(graph)].vectors):
        slices = layout.homes.quad_slices(EAST)
        for number in range(2):
            layout.homes.keep(state(number, v), Source("zeros"), slices, layout.context)


def state(number: int, v: int) -> str:
    """Name of where vector v of a state lies."""
    return f"state.{number}.{v}"


def of_sweep(name: str, number: int, by: int) -> str:
    """The home that the sweep ``by`` further on uses as sweep ``number`` of an encoder uses one of this name: another
    layer's, the other state's, or the same."""
    word, _, rest = name.partition(".")
    head, _, tail = rest.partition(".")
    if word == "state":
        return state((int(head) + by) % 2, int(tail))
    own = head == "layers" and int(tail.partition(".")[0]) in (number - 1, number)
    return of_layer(name, by) if own else name


def _cache(layout: Layout, node: Node, side: int) -> None:
    """K and V of one layer in a hemisphere: per kv vector and byte plane 16 slices, per KV head a table of scales."""
    blocks, homes = layout.requests * -(-layout.context // BLOCK), layout.homes
    layout.side[node.where] = side
    zeros = Source("zeros")
    for word, rows in (("k", BLOCK // layout.chip.weight_streams), ("v", layout.heads.channel_groups)):
        for c in range(layout.heads.kv.vectors):
            for plane in range(-(-node.attrs["kv_bits"] // 8)):
                name = f"kv.{node.where}.{word}.{c}.{plane}"
                homes.keep_tile(name, zeros, homes.tile_slices(side), rows * blocks)
            for g, _ in layout.heads.heads_in(c):
                homes.keep(f"kv.{node.where}.{word}.scale{g}", zeros, homes.quad_slices(side), blocks)
