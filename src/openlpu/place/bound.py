"""An integer graph and a chip in; cycles that no schedule can beat out.

Three bounds, from the graph and the chip file alone: how fast weights can reach the MXM, how often the busiest
unit must dispatch, and how long the longest chain of dependent operations is.  Nothing here has seen a schedule.
They hold for every schedule that does TruePoint's operations, matrix products on the MXM, with values in as few
vectors as they fit in; the order of lanes, sharing, overlap and the way through SRAM are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from openlpu.arch.chip import Chip
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph, Node
from openlpu.partition.experts import routed


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
    """The bounds of one decode step with a context bucket of ``context`` positions; of experts, those chosen count."""
    graph = routed(graph)
    weights = sum(_weight_bytes(graph, node, context) for node in graph.nodes)
    work = [_dispatches(graph, node, chip, context) for node in graph.nodes]
    rows = {
        "MXM activations": sum(mxm for mxm, _ in work) / (2 * chip.mxm_planes_per_hemisphere),
        "VXM": sum(vxm for _, vxm in work) / chip.vxm_alus,
    }
    unit = max(rows, key=lambda name: rows[name])
    return Bound(-(-weights // weight_rate(chip)), -int(-rows[unit] // 1), unit, _longest(graph, chip, context))


def weight_rate(chip: Chip) -> int:
    """Bytes that can pass from SRAM into the MXM in a cycle."""
    return 2 * chip.lanes * min(chip.streams_per_direction, chip.mxm_planes_per_hemisphere * chip.weight_streams)


def _weight_bytes(graph: Graph, node: Node, context: int) -> int:
    """Bytes that must pass from SRAM into the MXM: weight codes, and the KV cache of the context."""
    if node.op == "linear":
        return graph.params[node.params["codes"]].size
    if node.op == "attention":
        planes = -(-node.attrs["kv_bits"] // 8)
        return 2 * planes * context * node.attrs["kv_heads"] * node.attrs["head_dim"]
    return 0


def _dispatches(graph: Graph, node: Node, chip: Chip, context: int) -> tuple[Fraction, Fraction]:
    """(activations, ALU operations) an operator cannot do without, every lane of each of them used.

    Attention does two planes of q (of p) with each plane of K (of V), and 12 operations for each score.
    """
    size, lanes = graph.values[node.output].size, chip.lanes
    if node.op == "linear":
        return Fraction(size * graph.values[node.inputs[0]].size, lanes**2), Fraction(3 * size, lanes)
    if node.op == "attention":
        scores, planes = node.attrs["heads"] * context, 2 * -(-node.attrs["kv_bits"] // 8)
        products = Fraction(scores * planes, lanes) + Fraction(scores * planes * node.attrs["head_dim"], lanes**2)
        return products, Fraction(12 * scores, lanes)
    alu = {"embed": 2, "quantize": 3, "rms": 0, "headnorm": 5, "rope": 3, "silu_mul": 7, "swiglu": 11, "add": 1,
           "mul": 1, "route": 4, "select": 0, "mix": 2 * len(node.inputs) - 2}
    return Fraction(0), Fraction(alu[node.op] * size, lanes)


def _longest(graph: Graph, chip: Chip, context: int) -> int:
    """Length of the longest chain of dependent operations.

    Codes and their scale are two results: a product needs the codes only, and ``rms`` changes the scale only.
    """
    t = Shortest(chip)
    done: dict[str, int] = {"token": 0}
    scale: dict[str, int] = {}
    for node in graph.nodes:
        first = node.inputs[0]
        size = graph.values[first].size if node.op != "embed" else 1
        if node.op == "quantize":
            scale[node.output] = done[first] + t.scale(size)
            done[node.output] = scale[node.output] + t.code
        elif node.op == "rms":
            done[node.output] = done[first]
            factor = done[node.inputs[1]] + t.total(size) + 4 * t.alu + t.special
            scale[node.output] = max(scale[first], factor) + t.alu
        elif node.op == "linear":
            ready = max(done[name] for name in node.inputs)
            done[node.output] = max(ready + t.product + t.alu, scale[first]) + 2 * t.alu
        elif node.op == "select":
            done[node.output], scale[node.output] = done[first], max(scale[first], done[node.inputs[1]]) + t.alu
        elif node.op == "attention":
            done[node.output] = _attention(node, t, [done[name] for name in node.inputs], context)
        else:
            heads = node.attrs["heads"] if node.op == "headnorm" else 1
            done[node.output] = max(done[name] for name in node.inputs) + t.elementwise(node.op, size // heads)
    return done[graph.output]


def _attention(node: Node, t: Shortest, ready: list[int], context: int) -> int:
    """When attention is done, from when q, k and v are; k may come as the vector, q as the weights."""
    q, k, v = ready
    dim = node.attrs["head_dim"]
    q_codes, k_codes = q + t.scale(node.attrs["heads"] * dim) + t.code, k + t.scale(dim) + t.code
    score = max(q_codes, k_codes) + t.product + 4 * t.alu  # as fp32, planes joined, two scales
    p = score + t.over_lanes(min(context, BLOCK)) + 4 * t.alu + t.special  # maximum, difference, exp, share, code
    v_codes = v + t.scale(dim) + t.code
    return max(p, v_codes) + t.product + 3 * t.alu


@dataclass(frozen=True)
class Shortest:
    """Fewest cycles of what operators are made of, at the chip's latencies, hops included."""

    chip: Chip

    @property
    def alu(self) -> int:
        """One VXM operation."""
        return self.chip.latency["vxm"]

    @property
    def special(self) -> int:
        """exp, rsqrt."""
        return self.chip.latency["vxm_special"]

    @property
    def product(self) -> int:
        """From the VXM through the MXM and back."""
        return 2 * (self.chip.groups + 2) + self.chip.latency["matmul"] + self.chip.latency["accumulate"]

    @property
    def code(self) -> int:
        """From a scale to codes: reciprocal, product, rounding."""
        return self.special + 3 * self.alu

    def over_lanes(self, count: int) -> int:
        """A maximum over ``count`` values that ends in every lane: a tree, and one trip to the SXM and back.

        A trip has to cross superlanes where the values do not fit in one.
        """
        lanes = min(count, self.chip.lanes)
        tree = self.alu * (count - 1).bit_length()
        if lanes == 1:
            return tree
        inside, across = ("distribute", "rotate", "transpose"), ("shift", "permute")
        moves = across if lanes > self.chip.lanes_per_superlane else inside + across
        return tree + 2 * (self.chip.groups + 1) + min(self.chip.latency[name] for name in moves)

    def scale(self, count: int) -> int:
        """Magnitude, maximum over all values, times the inverse of the largest code, floor."""
        return self.alu + self.over_lanes(count) + 2 * self.alu

    def total(self, count: int) -> int:
        """Σ code²: a product on the MXM, or squares added up as a maximum is found."""
        return min(self.product, self.alu + self.over_lanes(count))

    def elementwise(self, op: str, size: int) -> int:
        """Embedding, head norm (of heads of ``size``) and the operators without a reduction.

        RoPE's other half needs no trip of its own: the product in front can make it too.
        """
        return {
            "embed": self.chip.latency["read"] + 2 * self.alu,
            "headnorm": self.scale(size) + self.code + self.total(size) + self.special + 6 * self.alu,
            "rope": 2 * self.alu,
            "silu_mul": 5 * self.alu + 2 * self.special,
            "swiglu": 7 * self.alu + 2 * self.special,
            "add": self.alu,
            "route": self.over_lanes(size) + self.alu,
            "mix": 2 * self.alu,
            "mul": self.alu,
        }[op]
