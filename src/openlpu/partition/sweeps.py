"""A stage of an encoder in; its sweeps over a sequence out.

Attention looks at all positions, so the keys and values of a layer are made of all of them before any is attended to.
A *sweep* takes a sequence, a chunk after the other, from behind one attention's keys and values to behind the next
one's: the first embeds, the last gives the hidden states.  Between sweeps a position's residual waits in a *state*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from openlpu.graph.ir import Graph, Node, Value
from openlpu.partition.split import Stage


def entering(graph: Graph) -> str:
    """The residual that a stage's layers begin with: what the embedding makes, or comes from the stage before."""
    arriving = next((node.output for node in graph.nodes if node.op == "arrive"), "embed.out")
    return arriving.removesuffix(".part")


def sweeps(stage: Stage) -> tuple[Stage, ...]:
    """One more than there are layers.  Each but the first begins with a ``recall`` of the residual of the sweep before
    and has an ``attend`` in place of its ``attention``; each but the last ends with a ``remember`` of keys and values
    and a ``keep`` of its own residual.  ``state`` says which of two states, taken in turns.  The last one keeps what
    the encoder gives, or passes it to the stage behind."""
    graph = stage.graph
    makers, looked = graph.producers(), [node for node in graph.nodes if node.op == "attention"]
    residuals = [entering(graph), *(f"layers.{i}.out" for i in range(graph.config.layers))]
    out = []
    for i, residual in enumerate(residuals):
        last = [node for node in graph.nodes if node.op == "pass"] if i == len(looked) else []
        ends = last or _ends(residual, i, looked[i] if i < len(looked) else None)
        begun = _begun(residuals[i - 1], i, looked[i - 1]) if i else {}
        inside = set(_closure([name for node in ends for name in node.inputs], makers | begun))
        middle = (begun.get(node.output, node) for node in graph.nodes if node.output in inside)
        values = dict(graph.values) | {node.output: Value(node.output, "kept", 0) for node in ends}
        output = graph.output if last else residual
        out.append(replace(stage, graph=replace(graph, nodes=(*middle, *ends), values=values, output=output)))
    return tuple(out)


def _ends(residual: str, i: int, attention: Node | None) -> list[Node]:
    keep = Node("keep", residual.rpartition(".")[0], (residual,), f"{residual}.keep", attrs={"state": i % 2})
    if attention is None:
        return [keep]
    name = f"{attention.where}.remember"
    return [Node("remember", attention.where, attention.inputs[1:3], name, attrs=attention.attrs), keep]


def _begun(residual: str, i: int, attention: Node) -> dict[str, Node]:
    """What a sweep has in place of the nodes that make these values."""
    recall = Node("recall", residual.rpartition(".")[0], (), residual, attrs={"state": (i - 1) % 2})
    inputs = attention.inputs[:1] + attention.inputs[3:]
    return {residual: recall, attention.output: replace(attention, op="attend", inputs=inputs)}


def _closure(names: list[str], makers: dict[str, Node]) -> Iterator[str]:
    """All values that these are made of, and they themselves."""
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in makers and name not in seen:
            seen.add(name)
            yield name
            waiting += makers[name].inputs
