"""A stage in; the lane map of every value on its chips, and how gathered values are put together, out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openlpu.arch.chip import Chip
from openlpu.arch.group import Table
from openlpu.graph.ir import Node
from openlpu.partition.split import Stage
from openlpu.place.lanes import HeadLanes, Lanes, head_lanes, packed
from openlpu.place.packing import Packing, dense, gathered, loose, meeting, pieces

FOLLOWERS = ("quantize", "rms", "add", "mul", "select", "silu_mul", "swiglu", "layernorm", "gelu",
             "pass")  # lie as their first input lies


def stage_heads(stage: Stage, chip: Chip) -> HeadLanes:
    """Lane maps of the heads that one chip of a stage has."""
    c = stage.graph.config
    for node in stage.graph.nodes:
        if node.op == "attention" and node.inputs[0] in stage.parts:
            query, kv = (stage.parts[name].shape[1] // c.head_dim for name in node.inputs[:2])
            return head_lanes(query, kv, c.head_dim, chip)
    return head_lanes(c.heads, c.kv_heads, c.head_dim, chip)


def lane_maps(
    stage: Stage, heads: HeadLanes, chip: Chip, sources: Table
) -> tuple[dict[str, Lanes], dict[str, Packing]]:
    """By name: heads side by side for what attention reads and makes, gathered values and partial sums slot by slot,
    others packed; and of each gathered value how it is put together.  ``sources``: as in
    :class:`~openlpu.arch.group.Group`."""
    nodes, maps, packings = stage.graph.nodes, {}, {}
    by_head, cuts = _by_head(nodes, heads), _cuts(stage, chip)
    for at, node in enumerate(nodes):
        name, parts = node.output, stage.parts.get(node.output)
        if node.op == "pass" and node.inputs[0] not in stage.parts:  # each role its own part, which comes first
            whole = maps[node.inputs[0]]
            maps[name] = Lanes(whole.channel[:, : whole.vectors // stage.tensor])
        elif node.op in FOLLOWERS:
            maps[name] = maps[node.inputs[0]]
        elif node.op == "mix":
            maps[name] = maps[node.inputs[1]]
        elif node.op == "gather":
            own = maps[node.inputs[0]]
            packings[name] = _packing(stage, own, nodes[at:], chip)
            maps[name] = gathered(own, packings[name], sources)
        elif node.op in ("scale", "max"):  # the same in every lane
            maps[name] = Lanes(np.where(np.arange(chip.lanes) == 0, 0, -1).astype(np.int32).reshape(1, 1, -1))
        else:
            own = by_head.get(name) or packed(_width(stage, name), chip, cuts.get(_width(stage, name), ()))
            own = own if parts is None else own.of(parts)
            maps[name] = own.slots(sources) if stage.graph.values[name].kind == "sums" else own
    return maps, packings


def _width(stage: Stage, name: str) -> int:
    """Channels of a value that one chip has."""
    return stage.graph.values[name].size if name not in stage.parts else stage.parts[name].shape[1]


def _packing(stage: Stage, own: Lanes, nodes: Sequence[Node], chip: Chip) -> Packing:
    """Dense where the loads of weights that it saves take longer than a turn and a sum.  Of experts all count, because
    all take room."""
    saved = stage.tensor * own.vectors - len(dense(own).slots(stage.tensor))
    return dense(own) if _worth(saved * _readers(stage, nodes, chip), chip) else loose(own)


def _cuts(stage: Stage, chip: Chip) -> dict[int, tuple[int, ...]]:
    """By width of a part the lanes of its vectors, where cutting what the full ones leave saves the room of experts'
    weights.  It saves no time worth mentioning: few of them are loaded, and each vector more has work of its own.

    The model decides, not what the stage has of it: the residual lies alike in all stages."""
    c, chips, saved = stage.graph.config, stage.tensor, dict[int, int]()
    hidden, inner = (-(-size // chips) for size in (c.hidden, c.intermediate))
    for width, made in ((hidden, 2 * -(-inner // chip.lanes)), (inner, -(-hidden // chip.lanes))):
        cut, plain = pieces(width, chips, chip.lanes), -(-width // chip.lanes)
        fewer = chips * plain - sum(chips // meeting(s, chips, chip.lanes) for s in cut)
        saved[width] = saved.get(width, 0) + fewer * made * c.experts
    return {width: pieces(width, chips, chip.lanes) for width, loads in saved.items() if _worth(loads, chip)}


def _worth(tiles: int, chip: Chip) -> bool:
    """Whether so many tiles of weights take longer than a turn and a sum."""
    loads = tiles * chip.superlanes // (2 * chip.mxm_planes_per_hemisphere)
    return loads > chip.latency["permute"] + 3 * chip.positions


def _readers(stage: Stage, nodes: Sequence[Node], chip: Chip) -> int:
    """Vectors that linears make of the first node's output, each of which reads every vector of it; those of a chosen
    expert count for all experts."""
    name, vectors = nodes[0].output, 0
    reached = {name}
    for node in nodes:
        if reached.isdisjoint(node.inputs):
            continue
        if node.op in ("quantize", "rms", "mul", "select"):
            reached.add(node.output)
        elif node.op == "linear":
            vectors += -(-_width(stage, node.output) // chip.lanes) * node.attrs.get("experts", 1)
    return vectors


def _by_head(nodes: tuple[Node, ...], heads: HeadLanes) -> dict[str, Lanes]:
    """Attention's output, its inputs, and what these are made of head by head."""
    out: dict[str, Lanes] = {}
    for node in reversed(nodes):
        if node.op == "attention":
            out[node.output] = out[node.inputs[0]] = heads.query
            out[node.inputs[1]] = out[node.inputs[2]] = heads.kv
        elif node.op in ("rope", "headnorm") and node.output in out:
            out[node.inputs[0]] = out[node.output]
    return out
