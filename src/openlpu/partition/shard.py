"""An integer graph and a split in; the stages, exchanges included, out.

A walk over the nodes decides of each value whether it is whole or split, and puts a gather where a split one is needed
whole.  A stage ends where the residual alone is alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from openlpu._base.errors import Unsupported
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph.ir import Graph, Node, Value, layer_of, routers
from openlpu.partition.channels import head_channels, spread
from openlpu.partition.experts import routed
from openlpu.partition.names import Local, shift
from openlpu.partition.split import CODES, EXCHANGES, I32, SUMS, VALUES, Shards, Split, Stage, alone

TENSOR = (1, 2, 4, 8, 16)  # chips of a group: those of a node, of an aligned part of one, or of two


def shard(graph: Graph, split: Split) -> Shards:
    """The stages of a split.  Raises :class:`Unsupported` naming the field of the split that cannot be."""
    assert graph.level == "int", "integer graphs are split: their sums are exact"
    _check(graph, split)
    if split.chips == 1:
        return Shards(split, (alone(graph),))
    walk = _Walk(routed(graph), split)
    spans = balanced(walk.weights(), split.stages) if split.halves else _even(graph.config.layers, split.stages)
    return Shards(split, tuple(walk.stage(*span) for span in spans))


def _check(graph: Graph, split: Split) -> None:
    if isinstance(graph.config, EncoderConfig) and split.halves:
        raise Unsupported("half layers of an encoder", where="halves", fix="use stages of whole layers")
    if split.tensor not in TENSOR:
        raise Unsupported(f"{split.tensor} chips cannot share a layer", where="tensor",
                          fix=f"use one of {', '.join(map(str, TENSOR))}")
    most = _units(graph, split)
    if not 1 <= split.stages <= most:
        raise Unsupported(f"{graph.config.layers} layers do not make {split.stages} stages", where="stages",
                          fix=f"use 1 to {most}")
    if split.exchange not in EXCHANGES:
        raise Unsupported(f"unknown exchange {split.exchange!r}", where="exchange",
                          fix=f"use one of {', '.join(EXCHANGES)}")


def _units(graph: Graph, split: Split) -> int:
    """What stages are made of: layers, of which the last has the head as well; or halves of layers, and the head."""
    return 2 * graph.config.layers + 1 if split.halves else graph.config.layers


def _even(layers: int, stages: int) -> list[tuple[int, int]]:
    """(first, last) layer of each stage; where layers do not divide, the first stages have one more.

    The last one has the head as well.
    """
    size, more = divmod(layers, stages)
    starts = [s * size + min(s, more) for s in range(stages + 1)]
    return [(a, b - 1) for a, b in zip(starts, starts[1:], strict=False)]


def balanced(costs: Sequence[int], stages: int) -> list[tuple[int, int]]:
    """(first, last) of each of ``stages`` runs of costs, none empty: the dearest as cheap as can be, the rest even."""
    low, high = max(costs), sum(costs)
    while low < high:
        limit = (low + high) // 2
        low, high = (low, limit) if _fewest(costs, limit)[0] <= stages else (limit + 1, high)
    fewest, runs, start = _fewest(costs, low), [], 0
    for left in range(stages - 1, -1, -1):
        end, cost, even = start + 1, costs[start], sum(costs[start:]) / (left + 1)
        while len(costs) - end > left and cost + costs[end] <= low and (
            fewest[end] > left or cost + costs[end] / 2 <= even
        ):
            cost, end = cost + costs[end], end + 1
        runs.append((start, end - 1))
        start = end
    return runs


def _fewest(costs: Sequence[int], limit: int) -> list[int]:
    """From each cost on, how many runs of at most ``limit`` it takes to the end."""
    out = [0] * (len(costs) + 1)
    end, total = len(costs), 0
    for start in range(len(costs) - 1, -1, -1):
        total += costs[start]
        while total > limit:
            end -= 1
            total -= costs[end]
        out[start] = 1 + out[end]
    return out


def _head_parts(graph: Graph, chips: int) -> dict[str, I32]:
    """Parts of the values that lie by heads: q, k and v, what they are made of, and attention's output."""
    producers, parts = graph.producers(), {}
    for node in graph.nodes:
        if node.op != "attention":
            continue
        a = node.attrs
        query, kv = head_channels(a["heads"], a["kv_heads"], a["head_dim"], chips)
        parts[node.output] = query
        for name, own in zip(node.inputs, (query, kv, kv), strict=True):
            parts[name] = own
            while producers[name].op in ("rope", "headnorm"):
                name = producers[name].inputs[0]
                parts[name] = own
    return parts


class _Walk:
    """A graph and a split; each call of :meth:`stage` walks the nodes of one stage."""

    def __init__(self, graph: Graph, split: Split) -> None:
        self.graph, self.split, self.chips = graph, split, split.tensor
        self.units = 2 if split.halves else 1  # of a layer
        self.end = _units(graph, split) - 1  # the last one
        self.routers, self.readers = {node.output for node in routers(graph)}, graph.consumers()
        self.number = {node.output: self.unit(self.readers[node.output][0] if node.op == "quantize" else node)
                       for node in graph.nodes}  # codes are made where they are read
        self.heads = _head_parts(graph, self.chips) if self.chips > 1 else {}
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.parts: dict[str, I32] = {}
        self.whole: dict[str, str] = {}  # split value -> where it was gathered

    def stage(self, first: int, last: int) -> Stage:
        """The stage of the units ``first`` to ``last`` (layers, or halves), and of what lies before or behind all."""
        self.nodes, self.values, self.parts, self.whole = [], {}, {}, {}
        self.values |= {name: value for name, value in self.graph.values.items() if value.kind == "token"}
        inside = [n for n in self.graph.nodes if first <= self.number[n.output] <= last]
        if first > 0:
            self.arrive(self.residual(first), inside[0].where)
        for node in inside:
            getattr(self, f"_{node.op}", self._local)(node)
        layers = tuple(min(unit // self.units, self.graph.config.layers - 1) for unit in (first, last))
        if last == self.end:
            return self._finish(self.graph.output, *layers)
        x = self.residual(last + 1)
        self.add(Node("pass", inside[-1].where, (x,), f"{x}.pass"), self.graph.values[x].size, self.parts.get(x))
        return self._finish(f"{x}.pass", *layers)

    def unit(self, node: Node) -> int:
        """What a node belongs to; what lies before all layers counts with the first unit, the head with the last."""
        layer = layer_of(node)
        if layer < 0:
            return 0 if node.where.startswith("embed") else self.end
        return self.units * layer + (self.units > 1 and node.where.split(".")[2] == "mlp")

    def weights(self) -> list[int]:
        """Weights of each unit: what a stage takes most of its time, and its room, for.  Embedding counts thrice: a
        scale takes four planes of all lanes.  Of experts all count, once."""
        out = [0] * (self.end + 1)
        for node in self.graph.nodes:
            if node.op in ("linear", "embed"):
                size = self.graph.params[node.params["codes"]].size * (1 if node.op == "linear" else 3)
                banks = node.attrs.get("experts", 1) if node.attrs.get("chosen", 0) == 0 else 0
                out[self.unit(node)] += size * banks
        return out

    def residual(self, unit: int) -> str:
        """The only value that is read from ``unit`` on of those made before."""
        before = {name for name, number in self.number.items() if number < unit}
        crossing = {i for n in self.graph.nodes if self.number[n.output] >= unit for i in n.inputs if i in before}
        assert len(crossing) == 1, f"between stages only the residual is alive, not {sorted(crossing)}"
        return crossing.pop()

    def add(self, node: Node, size: int, parts: I32 | None = None, kind: str = "f32") -> str:
        """Append a node; returns its output."""
        self.nodes.append(node)
        self.values[node.output] = Value(node.output, kind, size)
        if parts is not None:
            self.parts[node.output] = parts
        return node.output

    def arrive(self, x: str, where: str) -> None:
        """Take over the residual: each role its part.  An encoder's, which is whole on all chips, is gathered again."""
        size, parts = self.graph.values[x].size, None
        if self.chips > 1:
            parts = spread(size, self.chips)
        if parts is None or not isinstance(self.graph.config, EncoderConfig):
            self.add(Node("arrive", where, (), x), size, parts)
        else:
            own = self.add(Node("arrive", where, (), f"{x}.part"), size, parts)
            self.add(Node("gather", where, (own,), x), size)

    def keep(self, node: Node, inputs: tuple[str, ...], parts: I32 | None) -> str:
        """Append a node of the graph with other inputs."""
        value = self.graph.values[node.output]
        return self.add(replace(node, inputs=inputs), value.size, parts, value.kind)

    def gathered(self, x: str, where: str) -> str:
        """A value whole on every chip: itself, or after one gather."""
        if x not in self.parts:
            return self.whole.get(x, x)
        if x not in self.whole:
            value = self.values[x]
            self.whole[x] = self.add(Node("gather", where, (x,), f"{x}.whole"), value.size, kind=value.kind)
        return self.whole[x]

    def scale(self, x: str, node: Node, wide: int) -> str:
        """The scale that codes of a split value have on every chip, for an operator that makes them.

        Products with a constant keep the order of magnitudes, so the largest of the chips' own scales is the scale of
        the whole.
        """
        own = self.add(Node("scale", node.where, (x,), f"{node.output}.own", attrs={"wide": wide}), 1)
        return self.add(Node("max", node.where, (own,), f"{node.output}.scale"), 1)

    def by_columns(self, node: Node) -> bool:
        """Whether linears alone read some codes, and their exact sums are fewer bytes than the values coded."""
        readers = self.readers[node.output]
        planes = 2 if node.attrs["wide"] else 1
        sums = sum(self.graph.values[reader.output].size for reader in readers) * planes
        able = all(reader.op == "linear" and reader.output not in self.routers for reader in readers)
        return able and sums < self.graph.values[node.output].size

    # -- operators ---------------------------------------------------------------------------------------------

    def _local(self, node: Node) -> None:
        """Each channel, or head, on its own: the output is as the inputs are."""
        x, *others = node.inputs
        parts = self.parts.get(x)
        for other in map(self.parts.get, others):
            same = other is None if parts is None else other is not None and np.array_equal(other, parts)
            assert same, f"{node.where}: {node.op} has its inputs on the same chips"
        self.keep(node, node.inputs, parts)

    def _made(self, node: Node, inputs: tuple[str, ...]) -> None:
        """An operator that makes channels of its own: by heads where attention reads them, else round robin."""
        size = self.graph.values[node.output].size
        parts = None if self.chips == 1 else self.heads.get(node.output, spread(size, self.chips))
        self.keep(node, inputs, parts)

    def _embed(self, node: Node) -> None:
        self._made(node, node.inputs)

    def _linear(self, node: Node) -> None:
        """A router is small, and all chips must know whom it chose: each makes all of it."""
        if self.split.exchange == SUMS and node.inputs[0] in self.parts:
            self._summed(node)
            return
        inputs = (self.gathered(node.inputs[0], node.where), *node.inputs[1:])
        self.keep(node, inputs, None) if node.output in self.routers else self._made(node, inputs)

    def _summed(self, node: Node) -> None:
        """Each chip makes partial sums of all channels from its part of the input; added up, each keeps its own."""
        size, parts = self.graph.values[node.output].size, spread(self.graph.values[node.output].size, self.chips)
        codes = {word: key for word, key in node.params.items() if word.partition(".")[0] == "codes"}
        rest = {word: key for word, key in node.params.items() if word not in codes}
        partial = self.add(replace(node, output=f"{node.output}.sums", params=codes), size, parts, "sums")
        inputs = (partial, *node.inputs[1:], node.inputs[0])
        self.add(Node("sum", node.where, inputs, node.output, rest, node.attrs), size, parts)

    def _mix(self, node: Node) -> None:
        """The weights are whole, the experts' results are split alike."""
        first, *others = (self.parts.get(name) for name in node.inputs[1:])
        same = all(o is first or (first is not None and o is not None and np.array_equal(o, first)) for o in others)
        assert same, f"{node.where}: experts are split alike"
        self.keep(node, node.inputs, first)

    def _mul(self, node: Node) -> None:
        """A gain is cheap to apply everywhere, where its input is needed whole anyway."""
        (x,) = node.inputs
        x = self.gathered(x, node.where) if self.split.exchange == VALUES else x
        self.keep(node, (x,), self.parts.get(x))

    def _quantize(self, node: Node) -> None:
        (x,) = node.inputs
        summed = self.split.exchange == SUMS and self.by_columns(node)
        if x not in self.parts or not (summed or self.split.exchange == CODES):
            self.keep(node, (self.gathered(x, node.where),), None)
            return
        known = self.scale(x, node, node.attrs["wide"])
        made = self.keep(node, (x, known), self.parts[x])
        if not summed:
            self.gathered(made, node.where)

    def _add(self, node: Node) -> None:
        """What one of both is whole for, the other is gathered for: the norm behind it is made of all channels."""
        apart = any(name in self.parts for name in node.inputs) and any(name not in self.parts for name in node.inputs)
        inputs = tuple(self.gathered(name, node.where) for name in node.inputs) if apart else node.inputs
        self._local(replace(node, inputs=inputs))

    def _layernorm(self, node: Node) -> None:
        self.keep(node, (self.gathered(node.inputs[0], node.where),), None)

    def _rms(self, node: Node) -> None:
        self.keep(node, tuple(self.gathered(i, node.where) for i in node.inputs), None)

    def _attention(self, node: Node) -> None:
        q = node.inputs[0]
        known = (self.scale(q, node, self.values[q].size),) if q in self.parts else ()
        self.keep(node, (*node.inputs, *known), self.parts.get(q))

    # -- result ------------------------------------------------------------------------------------------------

    def _finish(self, output: str, first: int, last: int) -> Stage:
        """The stage, its names counted from its first layer."""
        nodes = tuple(_local_node(n, first) for n in self.nodes)
        names = tuple(dict.fromkeys(key for n in nodes for key in n.params.values()))
        values = {shift(v.name, -first): replace(v, name=shift(v.name, -first)) for v in self.values.values()}
        config = replace(self.graph.config, layers=last - first + 1)
        graph = Graph("int", config, nodes, values, Local(self.graph.params, first, names), shift(output, -first))
        parts = {shift(name, -first): own for name, own in self.parts.items()}
        return Stage(graph, parts, self.chips, first, last)


def _local_node(node: Node, first: int) -> Node:
    """A node under its stage's names."""
    attrs = {**node.attrs, "layer": node.attrs["layer"] - first} if "layer" in node.attrs else node.attrs
    return Node(node.op, shift(node.where, -first), tuple(shift(i, -first) for i in node.inputs),
                shift(node.output, -first), {w: shift(key, -first) for w, key in node.params.items()}, attrs)
