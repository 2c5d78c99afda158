"""An integer graph in; the same with as many experts as a token chooses in place of all, which is what chips run, out.

A chip does the same in every token, so it works on as many experts as a token chooses, whichever these are; where their
weights lie is looked up when they are known.  ``chosen<j>`` is the j-th chosen expert, in ascending order of experts.
Its linears read what the router made too, and name the parameters of all experts: ``codes`` of the first one,
``codes.<e>`` of expert e.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from openlpu.graph.ir import Graph, Node, twins


def routed(graph: Graph) -> Graph:
    """The graph with the experts that a token chooses; a graph without experts is itself."""
    alike = twins(graph)
    if not alike:
        return graph
    inside = {node.output for nodes in alike.values() for node in nodes}
    nodes: list[Node] = []
    values = {name: value for name, value in graph.values.items() if name not in inside}
    first: list[Node] = []  # operators of the first expert of the mixture at hand
    makers = graph.producers()
    for node in graph.nodes:
        if node.output in alike:
            first.append(node)
        elif node.op == "mix":
            chosen = makers[node.inputs[0]].attrs["chosen"]
            made = [_Chosen(first, node.where, node.inputs[0], j, alike) for j in range(chosen)]
            nodes += [new for phase in _phases(first) for one in made for new in map(one.node, phase)]
            nodes.append(replace(node, inputs=(node.inputs[0], *(one.name(node.inputs[1]) for one in made))))
            for one in made:
                values |= {one.name(n.output): replace(graph.values[n.output], name=one.name(n.output)) for n in first}
            first = []
        elif node.output not in inside:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes), values=values)


def parameters(node: Node, word: str) -> tuple[str, ...]:
    """The keys of what an operator calls ``word``, one of each expert; one alone where there are none."""
    others = (node.params[f"{word}.{e}"] for e in range(1, node.attrs.get("experts", 1)))
    return node.params[word], *others


def bank(node: Node) -> str:
    """The path of a linear, the same for whichever experts are chosen; "" if it belongs to none."""
    return re.sub(r"\.chosen\d+\.", ".experts.", node.where) if "experts" in node.attrs else ""


def _phases(nodes: Sequence[Node]) -> list[Sequence[Node]]:
    """An expert's operators up to where its codes are made, that, and the rest: in each, the chosen experts follow each
    other, so that one's exchange or maximum passes while the weights of the next stream."""
    cut = next((i for i, node in enumerate(nodes) if node.op == "quantize"), len(nodes))
    return [nodes[:cut], nodes[cut : cut + 1], nodes[cut + 1 :]]


class _Chosen:
    """The j-th chosen expert of the mixture at ``at``, whose first expert's operators are ``nodes``."""

    def __init__(self, nodes: Sequence[Node], at: str, route: str, j: int, alike: dict[str, tuple[Node, ...]]) -> None:
        self.own, self.old, self.new, self.j = {n.output for n in nodes}, f"{at}.0", f"{at}.chosen{j}", j
        self.alike, self.route = alike, route

    def name(self, name: str) -> str:
        """A place or value of the first expert, as this one's."""
        assert name == self.old or name.startswith(f"{self.old}."), f"{name} belongs to the first expert"
        return self.new + name.removeprefix(self.old)

    def node(self, node: Node) -> Node:
        """An operator of the first expert, as this one's."""
        attrs = {word: value for word, value in node.attrs.items() if word != "expert"} | {"chosen": self.j}
        params = dict(node.params)
        for e, twin in enumerate(self.alike[node.output][1:], 1):
            assert twin.params.keys() == node.params.keys(), f"{node.where}: experts have the same parameters"
            params |= {f"{word}.{e}": key for word, key in twin.params.items()}
        inputs = tuple(self.name(i) if i in self.own else i for i in node.inputs)
        if params:
            attrs, inputs = attrs | {"experts": len(self.alike[node.output])}, (*inputs, self.route)
        return Node(node.op, self.name(node.where), inputs, self.name(node.output), params, attrs)
