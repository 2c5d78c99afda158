"""A stage and its layout in; the program of its chips, a segment per context bucket, out.

Nodes are scheduled in the graph's order, which is the priority of the greedy scheduler.
"""

from __future__ import annotations

import numpy as np

from openlpu._base.errors import Unsupported
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph, Node
from openlpu.partition.split import Stage, alone
from openlpu.place.layout import Layout
from openlpu.schedule.fetch import Fetcher, keep
from openlpu.schedule.program import Program, Rows, Segment, StageProgram
from openlpu.schedule.select import attention, codes, elementwise, exchange, experts, headnorm, linear
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.temporaries import vectors
from openlpu.schedule.units.c2c import Cabling, group_ports
from openlpu.schedule.values import Vec

FETCH = "instructions"  # in a segment's origin: what is fetched, no operator's


def buckets(context: int) -> list[int]:
    """Context buckets: one attention block, then doubling, up to the context."""
    sizes = [BLOCK]
    while sizes[-1] < context:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], context]


def schedule(graph: Graph, layout: Layout, contexts: list[int]) -> Program:
    """The program of a model on one chip: :func:`schedule_stage` of the whole graph."""
    return schedule_stage(alone(graph), layout, contexts, Cabling()).program


def schedule_stage(stage: Stage, layout: Layout, contexts: list[int], cabling: Cabling) -> StageProgram:
    """The program with a segment per context bucket, ascending; a segment serves positions below its context.

    Raises :class:`Unsupported` when the chip has too few links, :class:`~openlpu._base.errors.DoesNotFit` when
    what the scheduler adds finds no room.
    """
    assert stage.graph.level == "int", "the scheduler takes integer graphs"
    built = [build(stage, layout, context, cabling) for context in contexts]
    segments = tuple(_finish(b, origin) for b, origin in built)  # what is fetched takes rows that all have left
    homes = layout.homes
    homes.sram.require_fit()
    host = tuple(name.removeprefix("host.") for name in homes.resident if name.startswith("host."))
    program = Program(layout.chip, tuple(homes.resident.values()), host, layout.heads.channel_groups,
                      stage.graph.config.vocab, segments)
    ops = {node.op for node in stage.graph.nodes}
    return StageProgram(program, stage.tensor, group_ports(layout.chip, stage.tensor, cabling),
                        cabling.next if "pass" in ops else "", cabling.previous if "arrive" in ops else "")


def build(
    stage: Stage, layout: Layout, context: int, cabling: Cabling
) -> tuple[Build, tuple[tuple[int, str], ...]]:
    """A decode step for contexts of at most ``context`` positions, all but its fetches; and the segment's origin."""
    layout.homes.sram.clear()
    b = Build(stage, layout, context, cabling)
    rope_row: tuple[Vec, Vec] | None = None
    origin = []
    for node in stage.graph.nodes:
        origin.append((b.asm.next_id, node.output))
        if node.op == "rope" and rope_row is None:
            rope_row = elementwise.rope_row(b)
        b.temporaries.enter()
        _node(b, node, rope_row)
        made = (values.get(node.output) for values in (b.floats, b.coded, b.routes))
        b.temporaries.leave(vectors(tuple(made)))
    layout.homes.sram.require_fit()
    return b, tuple(origin)


def _node(b: Build, node: Node, rope_row: tuple[Vec, Vec] | None) -> None:
    """Schedule one operator and file its output."""
    inputs = node.inputs
    if node.op == "quantize":
        size, known = b.graph.values[node.output].size, _known(b, inputs[1:])
        b.coded[node.output] = codes.quantize(b, b.floats[inputs[0]], size, node.attrs["wide"], known)
    elif node.op == "rms":
        b.coded[node.output] = codes.rms(b, node, b.coded[inputs[0]], b.coded[inputs[1]])
    elif node.op == "route":
        b.routes[node.output] = experts.route(b, node)
    elif node.op == "select":
        b.coded[node.output] = experts.select(b, node)
    elif node.op == "gather":
        exchange.gather(b, node)
    elif node.op == "pass":
        b.last_send = exchange.hand_over(b, node)
    elif node.op in EXCHANGES:
        b.floats[node.output] = EXCHANGES[node.op](b, node)
    else:
        b.floats[node.output] = _float_node(b, node, rope_row)


EXCHANGES = {"scale": exchange.scale, "max": exchange.largest, "arrive": exchange.take_over}


def _known(b: Build, inputs: tuple[str, ...]) -> Vec | None:
    """The scale of all chips' codes, if an operator is given one."""
    return b.floats[inputs[0]].vecs[0] if inputs else None


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
        return attention.attention(b, node, f[0], f[1], f[2], _known(b, node.inputs[3:]))
    if node.op in ("silu_mul", "add") and f[0] and f[1]:
        return (elementwise.silu_mul if node.op == "silu_mul" else elementwise.add)(b, f[0], f[1])
    if node.op == "mix":
        return experts.mix(b, node)
    if node.op == "mul" and f[0]:
        return elementwise.mul(b, node, f[0])
    raise Unsupported(f"the chip has no schedule for the operator {node.op}", where=node.where,
                      fix="run this model with --target cpu")


def _finish(b: Build, origin: tuple[tuple[int, str], ...]) -> Segment:
    """The segment: fetches inserted, cycles counted from its first instruction."""
    logits = b.floats.get(b.graph.output)
    for vec in logits.vecs if logits else ():
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
        cycles=(max(vec.ready for vec in logits.vecs) if logits else b.last_send + 1) - fetcher.first,
        claims=claims,
        origin=origin,
    )


def _rows(value: Floats) -> Rows:
    slices, addresses = [v.slices for v in value.vecs], [v.address for v in value.vecs]
    channel = value.lanes.channel
    return Rows(np.array(slices, np.int32), np.array(addresses, np.int32), channel[0] if len(channel) == 1 else channel)
