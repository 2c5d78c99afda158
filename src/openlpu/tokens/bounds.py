"""A loaded model and a piece of work in, what that needs of the machine out: bytes to read, codes to multiply.

Divided by the machine's two rates these are the bounds that no kernel passes: memory and integer arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from openlpu.arch.truepoint.sparse import TILE
from openlpu.graph.ir import Graph
from openlpu.target.cpu.cost import Step, walked
from openlpu.target.cpu.run import CpuExecutable


@dataclass(frozen=True)
class Work:
    """``tokens`` behind ``context`` others: a prompt, run ``together``, or an answer, run one after another."""

    name: str
    tokens: int
    context: int
    together: bool


@dataclass(frozen=True)
class Need:
    """What one timed run needs at least: a whole prompt, or one token of an answer."""

    bytes: float
    products: float  # of two 8-bit codes


@dataclass(frozen=True)
class Rates:
    """What this machine's threads can do, per wall second: medians of plain loops in the same run."""

    read_bytes_per_s: float
    products_per_s: float

    def bounds(self, need: Need) -> dict[str, float]:
        """Seconds that each of the two rates demands."""
        return {"memory": need.bytes / self.read_bytes_per_s, "integer": need.products / self.products_per_s}


def need(graph: Graph, executable: CpuExecutable, work: Work) -> Need:
    """Weights once and every cached position once; of an answer, what its middle token needs."""
    cache, last = executable.plan.cache, work.context + work.tokens
    middle = work.context + (work.tokens + 1) // 2  # positions that a token looks at, its own included, on average
    read = walked(executable.plan, executable.path, Step((last if work.together else middle,)))
    # A query and a probability have two planes of codes each, a cached code has the cache's.
    attention = 4 * cache.planes * graph.config.layers * graph.config.heads * cache.dim * middle
    count = work.tokens if work.together else 1
    return Need(read, _linear(graph, executable, count) + count * attention)


def weight_bytes(executable: CpuExecutable) -> int:
    """Bytes of weights that are read for every token."""
    return walked(executable.plan, executable.path, Step((0,)))


def _linear(graph: Graph, executable: CpuExecutable, count: int) -> float:
    """Products of the matrices for ``count`` tokens; only the last of them has logits."""
    total = 0.0
    for node in graph.nodes:
        if node.op == "linear":
            source = executable.plan.alias.get(node.inputs[0], node.inputs[0])
            size, wide = executable.plan.codes[source]
            tiles = -(-size // TILE)
            kept = node.attrs.get("tiles", tiles) / tiles  # what is dropped whole is not multiplied
            chosen, experts = executable.plan.experts.get(source, (1, 1))
            rows = graph.values[node.output].size * (1 if node.output == graph.output else count * chosen / experts)
            total += rows * (size + wide) * kept
    return total
