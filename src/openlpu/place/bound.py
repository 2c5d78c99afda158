"""An integer graph and a chip in; cycles that no schedule can beat out.

Three bounds, from the graph and the chip file alone: how fast weights can reach the MXM, how often the busiest
unit must dispatch, and how long the longest chain of dependent operators is.  Nothing here has seen a schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from openlpu.arch.chip import Chip
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph, Node


@dataclass(frozen=True)
class Bound:
    """Cycles of a decode step that each limit alone would need."""

    weights: int
    issue: int
    issue_unit: str
    path: int

    @property
    def cycles(self) -> int:
        """The largest of the three."""
        return max(self.weights, self.issue, self.path)

    @property
    def limit(self) -> str:
        """Which of the three that is."""
        return {self.weights: "weights", self.issue: self.issue_unit, self.path: "path"}[self.cycles]


def bound(graph: Graph, chip: Chip, context: int) -> Bound:
    """The bounds of one decode step with a context bucket of ``context`` positions."""
    stream_bytes = 2 * chip.streams_per_direction * chip.lanes  # both hemispheres' outward streams
    blocks = -(-context // BLOCK)
    weights = sum(_weight_bytes(graph, node, blocks) for node in graph.nodes)
    rows = {"MXM activations": 0.0, "VXM": 0.0}
    for node in graph.nodes:
        mxm, vxm = _dispatches(graph, node, chip, blocks)
        rows["MXM activations"] += mxm / (2 * chip.mxm_planes_per_hemisphere)
        rows["VXM"] += vxm / chip.vxm_alus
    unit = max(rows, key=lambda name: rows[name])
    return Bound(-(-weights // stream_bytes), int(-(-rows[unit] // 1)), unit, _longest(graph, chip))


def _weight_bytes(graph: Graph, node: Node, blocks: int) -> int:
    """Bytes that must pass from SRAM into the MXM: weight codes, and the KV cache of the context."""
    if node.op == "linear":
        return graph.params[node.params["codes"]].size
    if node.op == "attention":
        planes = node.attrs["kv_bits"] // 8
        return 2 * planes * blocks * BLOCK * node.attrs["kv_heads"] * node.attrs["head_dim"]
    return 0


def _vectors(size: int, chip: Chip) -> int:
    return -(-size // chip.lanes)


def _dispatches(graph: Graph, node: Node, chip: Chip, blocks: int) -> tuple[int, int]:
    """(activations, ALU operations) an operator cannot do without, in vectors."""
    size = graph.values[node.output].size
    n = _vectors(size, chip)
    if node.op == "linear":
        return n * _vectors(graph.values[node.inputs[0]].size, chip), 3 * n
    if node.op == "attention":
        heads = node.attrs["heads"]
        return 4 * heads * blocks, 12 * heads * blocks
    alu = {"embed": 2, "quantize": 6, "rms": 4, "headnorm": 10, "rope": 3, "silu_mul": 7, "add": 1, "mul": 1}
    return 0, alu[node.op] * n


def _longest(graph: Graph, chip: Chip) -> int:
    """Length of the longest chain of operators, each at its shortest."""
    done: dict[str, int] = {"token": 0}
    for node in graph.nodes:
        done[node.output] = max(done[name] for name in node.inputs) + _shortest(node, chip)
    return done[graph.output]


def _shortest(node: Node, chip: Chip) -> int:
    """Cycles from an operator's last input to its first output at the chip's latencies, hops included."""
    lat = chip.latency
    alu, special = lat["vxm"], lat["vxm_special"]
    to_mxm = chip.groups + 2  # stream registers between VXM and MXM
    product = 2 * to_mxm + lat["matmul"] + lat["accumulate"]
    top = lane_max(chip.lanes, chip)
    scale = alu + top + 2 * alu + special + alu  # magnitude, maximum, scale and floor, reciprocal
    code = 4 * alu  # product, rounding, two clips
    return {
        "embed": lat["read"] + 2 * alu,
        "quantize": scale + code,
        "rms": product + 5 * alu + special,
        "headnorm": scale + code + product + 5 * alu + special,
        "linear": product + 3 * alu,
        "rope": lat["permute"] + 2 * (chip.groups + 1) + 2 * alu,
        "silu_mul": 5 * alu + 2 * special,
        "add": alu,
        "mul": alu,
        # codes of q, q.k, scores, maximum, exp, probabilities, p.v, normalisation
        "attention": scale + code + product + 5 * alu + top + special + 5 * alu + product + 3 * alu,
    }[node.op]


@lru_cache
def _lane_max(lanes: int, hop: int, permute: int, alu: int) -> int:
    """Shortest all-lanes maximum: rounds of r - 1 permutations (two units) and a tree of maxima."""
    if lanes == 1:
        return 0
    costs = []
    for radix in range(2, lanes + 1):
        one = permute + 2 * hop + (radix - 2) // 2 + alu * (radix - 1).bit_length()
        costs.append(one + _lane_max(-(-lanes // radix), hop, permute, alu))
    return min(costs)


def lane_max(lanes: int, chip: Chip) -> int:
    """Cycles of a maximum over all lanes that ends in every lane, at its shortest on this chip."""
    return _lane_max(lanes, chip.groups + 1, chip.latency["permute"], chip.latency["vxm"])
