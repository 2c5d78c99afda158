"""A stage and its layout in; the program of its chips, a segment per context bucket and size of chunk, out.

Nodes are scheduled in the graph's order, which is the priority of the greedy scheduler.  Only ``linear`` and
``attention`` look at several tokens of a chunk at once: while a tile is installed, those of all pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from openlpu._base.errors import BadRequest, Unsupported
from openlpu.arch.chip import Chip
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph, Node
from openlpu.partition.split import Stage, alone
from openlpu.place.layout import Layout
from openlpu.schedule.fetch import Page, fetched, keep
from openlpu.schedule.program import Program, Rows, Segment, StageProgram, Sweep
from openlpu.schedule.relocate import Scheduled
from openlpu.schedule.select import attention, codes, elementwise, exchange, experts, headnorm, layernorm, linear, state
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.temporaries import vectors
from openlpu.schedule.units.c2c import Cabling, group_ports
from openlpu.schedule.values import Vec

RopeRow = tuple[Vec, Vec]  # cosines and signed sines
S = TypeVar("S", bound=Segment)
FETCH = "instructions"  # in a segment's origin: what is fetched, no operator's


def buckets(context: int) -> list[int]:
    """Context buckets: one attention block, then doubling, up to the context."""
    sizes = [BLOCK]
    while sizes[-1] < context:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], context]


def schedule(graph: Graph, layout: Layout, contexts: Sequence[int], chunks: Sequence[int] = ()) -> Program:
    """The program of a model on one chip: :func:`schedule_stage` of the whole graph."""
    return schedule_stage(alone(graph), layout, contexts, Cabling(), chunks).program


def schedule_stage(
    stage: Stage, layout: Layout, contexts: Sequence[int], cabling: Cabling, chunks: Sequence[int] = (),
    begun: int = 0,
) -> StageProgram:
    """The program with a segment per context bucket, ascending, of one token, then likewise of each of ``chunks``;
    without the first ``begun`` of these, which were made in this layout before.

    Raises :class:`BadRequest` for a chunk that the chip cannot have, :class:`Unsupported` when it has too few links,
    :class:`~openlpu._base.errors.DoesNotFit` when what the scheduler adds finds no room.
    """
    assert stage.graph.level == "int", "the scheduler takes integer graphs"
    _check(chunks, layout.chip, contexts[-1])
    left = (build(stage, layout, context, cabling, chunk) for context, chunk in steps(contexts, chunks)[begun:])
    segments = tuple(_finish(b, origin) for b, origin in left)
    homes = layout.homes
    homes.sram.require_fit()
    host = tuple(name.removeprefix("host.") for name in homes.resident if name.startswith("host."))
    program = Program(layout.chip, tuple(homes.resident.values()), host, layout.heads.channel_groups,
                      stage.graph.config.vocab, segments, layout.requests)
    ops = {node.op for node in stage.graph.nodes}
    return StageProgram(program, stage.tensor, group_ports(layout.chip, stage.tensor, cabling),
                        cabling.next if "pass" in ops else "", cabling.previous if "arrive" in ops else "")


def steps(contexts: Sequence[int], chunks: Sequence[int]) -> list[tuple[int, int]]:
    """The context and the chunk of each segment of a program, in order."""
    return [(context, chunk) for chunk in (1, *chunks) for context in contexts]


def follows(begun: Sequence[Segment], sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether segments that there are already are the first of these."""
    return [(s.context, s.chunk) for s in begun] == [*sizes[: len(begun)]]


def _check(chunks: Sequence[int], chip: Chip, context: int) -> None:
    """A chunk's K rows are one load of the MXM, or a part that divides it; and no longer than the context."""
    able = [n for n in range(2, chip.weight_streams + 1) if chip.weight_streams % n == 0]
    for chunk in chunks:
        if chunk not in able:
            raise BadRequest(f"a chunk of {chunk} tokens", where="chunk", fix=f"use {', '.join(map(str, able))}")
        if chunk > context:
            raise BadRequest(f"a chunk of {chunk} tokens is longer than the context of {context}", where="chunk",
                             fix="use a smaller one, or a longer context")
    if [*chunks] != sorted(set(chunks)):
        raise BadRequest("chunks do not ascend", where="chunk", fix="name each once, the smallest first")


def build(
    stage: Stage, layout: Layout, context: int, cabling: Cabling, chunk: int = 1
) -> tuple[Build, tuple[tuple[int, str], ...]]:
    """A step of ``chunk`` tokens for contexts of at most ``context`` positions, all but its fetches; and the segment's
    origin."""
    layout.homes.sram.clear()
    b = Build(stage, layout, context, cabling, chunk)
    places = _places(stage.graph, chunk)
    rope_rows: list[RopeRow] = []
    origin = []
    for node in stage.graph.nodes:
        origin.append((b.asm.next_id, node.output))
        if node.op == "rope" and not rope_rows:
            rope_rows = [elementwise.rope_row(b, place) for place in range(chunk)]
        b.temporaries.enter()
        _node(b, node, places[node.output], rope_rows)
        filed = b.floats, b.coded, b.routes, b.sums, b.partners
        made = [values.get((node.output, i)) for i in places[node.output] for values in filed]
        b.temporaries.leave(vectors(made))
    for value in b.floats.values():
        assert len(value.vecs) == value.lanes.vectors, "every vector is made in the end"
    layout.homes.sram.require_fit()
    return b, tuple(origin)


def sweep(
    part: Stage, number: int, layout: Layout, context: int, cabling: Cabling, chunk: int, alike: int
) -> Scheduled:
    """A sweep of an encoder (:mod:`openlpu.partition.sweeps`) over the chunks of a sequence, whose schedule may serve
    as many as are ``alike``."""
    b, origin = build(part, layout, context, cabling, chunk)
    segment, pages = _fetched(b, origin, partial(Sweep, number=number), alike)
    return Scheduled(part.graph, segment, pages)


ENDS = ("pass", "keep", "remember")  # what a step leaves for others


def _places(graph: Graph, chunk: int) -> dict[str, range]:
    """For which places of a chunk each value is wanted: K and V of all tokens, and the logits of the last."""
    every, last = range(chunk), range(chunk - 1, chunk)
    wanted: dict[str, range] = {}
    for node in reversed(graph.nodes):
        own = wanted.setdefault(node.output, every if node.op in ENDS else last)
        for i, name in enumerate(node.inputs):
            all_of_it = node.op == "attention" and i in (1, 2)
            wanted[name] = max(wanted.get(name, last), every if all_of_it else own, key=len)
    return wanted


def _node(b: Build, node: Node, places: range, rope_rows: Sequence[RopeRow]) -> None:
    """Schedule one operator for the tokens of some places and file its outputs."""
    if b.graph.values[node.output].kind == "sums":
        made = linear.partial(b, node, places)
        b.sums |= {(node.output, i): value for i, value in zip(places, made, strict=True)}
    elif node.op == "linear":
        made = linear.linear(b, node, places, b.lanes(node.output))
        b.floats |= {(node.output, i): value for i, value in zip(places, made, strict=True)}
    elif node.op == "attention":
        q = {i: b.floats[node.inputs[0], i] for i in places}
        k, v = ([b.floats[name, i] for i in range(b.chunk)] for name in node.inputs[1:3])
        scales = {i: scale for i in places if (scale := _known(b, node.inputs[3:], i))}
        out = attention.attention(b, node, q, k, v, scales)
        b.floats |= {(node.output, i): value for i, value in out.items()}
    elif node.op == "attend":
        scales = {i: scale for i in places if (scale := _known(b, node.inputs[1:], i))}
        out = attention.attend(b, node, {i: b.floats[node.inputs[0], i] for i in places}, scales)
        b.floats |= {(node.output, i): value for i, value in out.items()}
    elif node.op == "remember":
        k, v = ([b.floats[name, i] for i in range(b.chunk)] for name in node.inputs)
        attention.remember(b, node, k, v)
    elif node.op == "pass":
        b.last_send = exchange.hand_over(b, node)
    elif node.op == "arrive":
        exchange.take_over(b, node)
    else:
        for place in places:
            _token_node(b, node, place, rope_rows)


def _token_node(b: Build, node: Node, place: int, rope_rows: Sequence[RopeRow]) -> None:
    """An operator that looks at one token alone."""
    inputs, out = node.inputs, (node.output, place)
    if node.op == "quantize":
        size, known = b.graph.values[node.output].size, _known(b, inputs[1:], place)
        squared = any(reader.op == "rms" and reader.inputs[1] == node.output for reader in b.graph.nodes)
        b.coded[out] = codes.quantize(b, b.floats[inputs[0], place], size, node.attrs["wide"], known, squared=squared)
    elif node.op == "rms":
        b.coded[out] = codes.rms(b, node, b.coded[inputs[0], place], b.coded[inputs[1], place])
    elif node.op == "route":
        b.routes[out] = experts.route(b, node, place)
    elif node.op == "select":
        b.coded[out] = experts.select(b, node, place)
    elif node.op == "gather":
        exchange.gather(b, node, place)
    elif node.op == "sum":
        b.floats[out] = linear.total(b, node, place)
    elif node.op == "keep":
        state.keep(b, node, b.floats[inputs[0], place], place)
    elif node.op in EXCHANGES:
        b.floats[out] = EXCHANGES[node.op](b, node, place)
    else:
        b.floats[out] = _float_node(b, node, place, rope_rows)


EXCHANGES = {"scale": exchange.scale, "max": exchange.largest}


def _known(b: Build, inputs: tuple[str, ...], place: int) -> Vec | None:
    """The scale of all chips' codes, if an operator is given one."""
    return b.floats[inputs[0], place].vecs[0] if inputs else None


def _float_node(b: Build, node: Node, place: int, rope_rows: Sequence[RopeRow]) -> Floats:
    f = [b.floats.get((name, place)) for name in node.inputs]
    if node.op in ("embed", "recall"):
        return (elementwise.embed if node.op == "embed" else state.recall)(b, node, b.lanes(node.output), place)
    if node.op in ("layernorm", "gelu") and f[0]:
        return (elementwise.gelu if node.op == "gelu" else layernorm.layernorm)(b, node, f[0])
    if node.op == "headnorm" and f[0]:
        return headnorm.headnorm(b, node, f[0])
    if node.op == "rope" and f[0]:
        return elementwise.rope(b, f[0], b.partners.get((node.inputs[0], place), ()), rope_rows[place])
    if node.op in ("silu_mul", "add") and f[0] and f[1]:
        return (elementwise.silu_mul if node.op == "silu_mul" else elementwise.add)(b, f[0], f[1])
    if node.op == "swiglu" and f[0] and f[1]:
        return elementwise.swiglu(b, node, f[0], f[1])
    if node.op == "mix":
        return experts.mix(b, node, place)
    if node.op == "mul" and f[0]:
        return elementwise.mul(b, node, f[0])
    raise Unsupported(f"the chip has no schedule for the operator {node.op}", where=node.where,
                      fix="run this model with --target cpu")


def _finish(b: Build, origin: tuple[tuple[int, str], ...]) -> Segment:
    """The segment, whose instructions lie in SRAM."""
    segment, pages = _fetched(b, origin)
    keep(b.layout.homes, segment.name, segment.queues, pages)
    return segment


def _fetched(b: Build, origin: tuple[tuple[int, str], ...], kind: Callable[..., S] = Segment,
             alike: int = 1) -> tuple[S, list[Page]]:
    """The segment: fetches inserted, cycles counted from its first instruction; and its pages of instructions."""
    last = {name: value for (name, place), value in b.floats.items() if place == b.chunk - 1}
    logits = last.get(b.graph.output)
    for vec in logits.vecs if logits else ():
        b.asm.outputs.extend((s, vec.address, w, False) for s, w in zip(vec.slices, vec.writers, strict=True))
    origin = (*origin, (b.asm.next_id, FETCH))
    queues, claims, first, pages = fetched(b.asm, b.layout.homes, alike)
    end = max(vec.ready for vec in logits.vecs) if logits else b.last_send + 1
    segment = kind(
        context=b.context,
        queues=queues,
        tensors={name: _rows(value) for name, value in last.items()},
        cycles=max(end, b.last_write) - first,
        claims=claims,
        origin=origin,
        chunk=b.chunk,
    )
    return segment, pages


def _rows(value: Floats) -> Rows:
    slices, addresses = [v.slices for v in value.vecs], [v.address for v in value.vecs]
    channel = value.lanes.channel
    return Rows(np.array(slices, np.int32), np.array(addresses, np.int32), channel[0] if len(channel) == 1 else channel)
