"""An integer graph and its layout in; the program, a segment per context bucket, out.

Nodes are scheduled in the graph's order, which is the priority of the greedy scheduler.
"""

from __future__ import annotations

import numpy as np

from openlpu._base.errors import Unsupported
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph, Node
from openlpu.place.layout import Layout
from openlpu.schedule.fetch import Fetcher, keep
from openlpu.schedule.program import Program, Rows, Segment
from openlpu.schedule.select import attention, codes, elementwise, headnorm, linear
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.values import Vec

FETCH = "instructions"  # in a segment's origin: what is fetched, no operator's


def buckets(context: int) -> list[int]:
    """Context buckets: one attention block, then doubling, up to the context."""
    sizes = [BLOCK]
    while sizes[-1] < context:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], context]


def schedule(graph: Graph, layout: Layout, contexts: list[int]) -> Program:
    """The program with a segment per context bucket, ascending; a segment serves positions below its context."""
    assert graph.level == "int", "the scheduler takes integer graphs"
    built = [build(graph, layout, context) for context in contexts]
    segments = tuple(_finish(b, origin) for b, origin in built)  # what is fetched takes rows that all have left
    homes = layout.homes
    homes.sram.require_fit()
    host = tuple(name.removeprefix("host.") for name in homes.resident if name.startswith("host."))
    return Program(
        layout.chip, tuple(homes.resident.values()), host, layout.heads.channel_groups, graph.config.vocab, segments
    )


def build(graph: Graph, layout: Layout, context: int) -> tuple[Build, tuple[tuple[int, str], ...]]:
    """A decode step for contexts of at most ``context`` positions, all but its fetches; and the segment's origin."""
    layout.homes.sram.clear()
    b = Build(graph, layout, context)
    rope_row: tuple[Vec, Vec] | None = None
    origin = []
    for node in graph.nodes:
        origin.append((b.asm.next_id, node.output))
        if node.op == "rope" and rope_row is None:
            rope_row = elementwise.rope_row(b)
        _node(b, node, rope_row)
    layout.homes.sram.require_fit()
    return b, tuple(origin)


def _node(b: Build, node: Node, rope_row: tuple[Vec, Vec] | None) -> None:
    """Schedule one operator and file its output."""
    inputs = node.inputs
    if node.op == "quantize":
        b.coded[node.output] = codes.quantize(b, b.floats[inputs[0]], node.attrs["wide"])
        return
    if node.op == "rms":
        b.coded[node.output] = codes.rms(b, node, b.coded[inputs[0]], b.coded[inputs[1]])
        return
    b.floats[node.output] = _float_node(b, node, rope_row)


def _float_node(b: Build, node: Node, rope_row: tuple[Vec, Vec] | None) -> Floats:
    f = [b.floats.get(name) for name in node.inputs]
    if node.op == "embed":
        return elementwise.embed(b, node, b.lanes(node.output))
    if node.op == "linear":
        return linear.linear(b, node, b.coded[node.inputs[0]], b.lanes(node.output))
    if node.op == "headnorm" and f[0]:
        return headnorm.headnorm(b, node, f[0])
    if node.op == "rope" and rope_row and f[0]:
        return elementwise.rope(b, f[0], rope_row)
    if node.op == "attention" and f[0] and f[1] and f[2]:
        return attention.attention(b, node, f[0], f[1], f[2])
    if node.op in ("silu_mul", "add") and f[0] and f[1]:
        return (elementwise.silu_mul if node.op == "silu_mul" else elementwise.add)(b, f[0], f[1])
    if node.op == "mul" and f[0]:
        return elementwise.mul(b, node, f[0])
    raise Unsupported(f"the chip has no schedule for the operator {node.op}", where=node.where,
                      fix="run this model with --target cpu")


def _finish(b: Build, origin: tuple[tuple[int, str], ...]) -> Segment:
    """The segment: fetches inserted, cycles counted from its first instruction."""
    logits = b.floats[b.graph.output]
    for vec in logits.vecs:
        b.asm.outputs.extend((s, vec.address, w, False) for s, w in zip(vec.slices, vec.writers, strict=True))
    origin = (*origin, (b.asm.next_id, FETCH))
    fetcher = Fetcher(b.asm, b.layout.homes)
    fetcher.all()
    queues, claims = b.asm.finish()
    for q in queues.values():
        q["cycle"] -= fetcher.first
    keep(b.layout.homes, b.context, queues, fetcher.pages)
    return Segment(
        context=b.context,
        queues=queues,
        tensors={name: _rows(value) for name, value in b.floats.items()},
        cycles=max(vec.ready for vec in logits.vecs) - fetcher.first,
        claims=claims,
        origin=origin,
    )


def _rows(value: Floats) -> Rows:
    slices, addresses = [v.slices for v in value.vecs], [v.address for v in value.vecs]
    return Rows(np.array(slices, np.int32), np.array(addresses, np.int32), value.lanes.channel)
