"""An encoder's integer graph and its layout in; the program of a chip, a segment per context bucket and sweep, out.

A sequence runs sweep by sweep, in each of them chunk by chunk, in the smallest bucket that holds it.  So instructions
do not grow with the sequence, and a short one takes the cycles of its own chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openlpu._base.errors import BadRequest
from openlpu.arch.chip import Chip
from openlpu.graph.ir import Graph
from openlpu.partition.split import Stage, alone
from openlpu.partition.sweeps import sweeps
from openlpu.place.host import Step
from openlpu.place.layout import Layout
from openlpu.schedule.fetch import keep
from openlpu.schedule.program import Program, StageProgram, Sweep
from openlpu.schedule.relocate import Scheduled
from openlpu.schedule.step import buckets, sweep
from openlpu.schedule.units.c2c import Cabling, group_ports


def schedule(graph: Graph, layout: Layout, chunk: int = 0) -> Program:
    """The program of an encoder on one chip: :func:`schedule_stage` of the whole graph."""
    return schedule_stage(alone(graph), layout, Cabling(), chunk).program


def schedule_stage(stage: Stage, layout: Layout, cabling: Cabling, chunk: int = 0) -> StageProgram:
    """The program of a stage, ``chunk`` positions a step (0: as many as one load of the MXM takes).

    Raises :class:`BadRequest` for a chunk that the chip cannot have, :class:`~openlpu._base.errors.DoesNotFit` when
    what the scheduler adds finds no room.
    """
    width = layout.chip.weight_streams
    able = [n for n in range(1, width + 1) if width % n == 0]
    if chunk and chunk not in able:
        raise BadRequest(f"a chunk of {chunk} positions", where="chunk", fix=f"use {', '.join(map(str, able))}")
    segments = tuple(part for context in buckets(layout.context)
                     for part in _sweeps(sweeps(stage), layout, context, cabling, chunk or width))
    homes = layout.homes
    host = tuple(name.removeprefix("host.") for name in homes.resident if name.startswith("host."))
    program = Program(layout.chip, tuple(homes.resident.values()), host, layout.heads.channel_groups,
                      stage.graph.config.vocab, segments)
    return StageProgram(program, stage.tensor, group_ports(layout.chip, stage.tensor, cabling), cabling.next,
                        cabling.previous)


def _sweeps(parts: Sequence[Stage], layout: Layout, context: int, cabling: Cabling, chunk: int) -> list[Sweep]:
    """The sweeps of a context bucket, those that are alike scheduled once: the last of them first, whose weights lie
    highest, in the bank in which values inside a step are written; further down they meet fewer writes."""
    known: list[Scheduled] = []
    made: list[Sweep] = []
    for number, part in reversed([*enumerate(parts)]):
        moved = (one.moved(part.graph, number, layout) for one in known)
        new = next((one for one in moved if one), None)
        if new is None:
            own = cabling if linked(part) else Cabling()
            new = sweep(part, number, layout, context, own, chunk, number + 1)
            known.append(new)
        keep(layout.homes, new.sweep.name, new.sweep.queues, new.pages)
        made.append(new.sweep)
    return made[::-1]


def linked(part: Stage) -> bool:
    """Whether a sweep uses links: between the chips of its stage, or to the stages beside it."""
    return part.tensor > 1 or any(node.op in ("arrive", "pass") for node in part.graph.nodes)


def is_encoder(program: Program) -> bool:
    """Whether a program's segments are sweeps."""
    return isinstance(program.segments[0], Sweep)


def turns(program: Program, length: int) -> list[tuple[Sweep, int]]:
    """The sweeps of a sequence's bucket, in order, and how many steps each takes."""
    assert 0 < length <= program.context, "the sequence is longer than the program's context"
    context = next(s.context for s in program.segments if length <= s.context)
    sweeps = (s for s in program.segments if isinstance(s, Sweep) and s.context == context)
    return [(s, -(-length // s.chunk)) for s in sweeps]


def steps(program: Program, tokens: Sequence[int], types: Sequence[int] = ()) -> Iterator[tuple[Step, Sweep]]:
    """All steps of a sequence."""
    for part, times in turns(program, len(tokens)):
        for number in range(times):
            yield step(tokens, types, number, part.chunk), part


def step(tokens: Sequence[int], types: Sequence[int], number: int, chunk: int) -> Step:
    """What the host says before the step of a chunk."""
    start = number * chunk
    own = slice(start, start + chunk)
    return Step(start, tuple(tokens[own]), chunk, 0, len(tokens), tuple(types[own]))


def cycles(program: Program, length: int) -> int:
    """Cycles from the first dispatch of a sequence to its last hidden state."""
    return sum(times * part.cycles for part, times in turns(program, length))


def utilisation(graph: Graph, chip: Chip, length: int, cycles: int) -> float:
    """The share of a chip's int8 peak in so many cycles that a sequence's multiplications are, those of its own
    positions alone."""
    size = {name: value.size for name, value in graph.values.items()}
    linear = sum(size[node.inputs[0]] * size[node.output] for node in graph.nodes if node.op == "linear")
    attended = sum(2 * length * size[node.output] for node in graph.nodes if node.op == "attention")
    planes = 2 * chip.mxm_planes_per_hemisphere
    return length * (linear + attended) / (cycles * planes * chip.lanes**2)
