"""A program without values in; what the referee found in order out, stage by stage, or its error.

Control never depends on values, so every rule about time and every claim but those of address maps can be checked
before there is a weight.  A stage is checked with the links to its neighbours, of which nothing but the instructions on
those links is looked at: memory is that of one stage.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from openlpu.arch.isa import unit_of_queue
from openlpu.arch.system import System
from openlpu.schedule.program import Program, Segment, SystemProgram
from openlpu.target.chip import pipeline
from openlpu.target.chip.code import flatten
from openlpu.target.chip.links import Ports
from openlpu.target.chip.links import resolve as pair_links
from openlpu.target.chip.machine import Trace, resolve, resolve_segment
from openlpu.target.chip.pipeline import Ends


@dataclass(frozen=True)
class Checked:
    """Stages ``stages``, which are equal and equally wired, in the segment of a context and a chunk.

    Of each chip: ``instructions``; ``operands`` that carry what is claimed; ``exchanged``, ``arriving`` and ``handed``
    vectors between the chips of a stage, from the stage before and to the next; ``cycles`` to the last result.
    ``wall_s``: seconds that the referee took.
    """

    stages: tuple[int, ...]
    context: int
    chunk: int
    chips: int
    instructions: int
    operands: int
    exchanged: int
    arriving: int
    handed: int
    cycles: int
    wall_s: float


def check_chip(program: Program, contexts: Collection[int]) -> Iterator[Checked]:
    """The segments of one chip's program for these contexts.  Raises :class:`~openlpu._base.errors.ProgramError`."""
    for segment in (s for s in program.segments if s.context in contexts):
        start = time.perf_counter()
        trace = resolve_segment(program.chip, segment)
        yield checked((0,), segment, 1, trace, time.perf_counter() - start)


def check_system(
    system: System, program: SystemProgram, stages: Collection[int], segment: int, starts: Sequence[int], interval: int
) -> Iterator[Checked]:
    """The segment of that number of these stages, equal ones once, and the links to the stages beside them.

    ``starts``: the cycle in which each stage begins a token; ``interval``: cycles between two tokens with the pipeline
    full.  Raises :class:`~openlpu._base.errors.ProgramError` naming stage, cycle, queue and instruction.
    """
    hops = pipeline.hops(system, program)
    groups = [pipeline.ports(system, program, s, hops) for s in range(program.split.stages)]
    alike: dict[tuple[object, ...], list[int]] = {}
    for s in sorted(stages):
        alike.setdefault((program.stages[s], *groups[s].items()), []).append(s)
    for same in alike.values():
        start = time.perf_counter()
        trace = _stage(program, same[0], segment, groups[same[0]], interval)
        part = program.stage(same[0]).program.segments[segment]
        yield checked(tuple(same), part, program.split.tensor, trace, time.perf_counter() - start)
    ends = {s: ends_of(program, s, segment, groups[s]) for s in range(len(groups)) if {s - 1, s, s + 1} & {*stages}}
    pipeline.closed(ends.get(0), ends.get(len(hops)))
    for s, port in enumerate(hops):
        if {s, s + 1} & {*stages}:
            shift = starts[s + 1] - starts[s]
            pipeline.hop(s, ends[s], ends[s + 1], port, shift)
            pipeline.hop_full(s, ends[s], ends[s + 1], port, shift, interval)


def _stage(program: SystemProgram, s: int, segment: int, ports: Ports, interval: int) -> Trace:
    stage = program.stage(s).program
    with pipeline.named(f"stage {s}"):
        trace = resolve(stage.chip, program.queues(s, segment), stage.segments[segment].claims, ports)
    pipeline.stage_full(s, Ends.of(trace), ports, interval)
    return trace


def ends_of(program: SystemProgram, s: int, segment: int, ports: Ports) -> Ends:
    """A stage as its neighbours see it, from the queues and claims of its links alone."""
    queues = {name: rows for name, rows in program.queues(s, segment).items() if unit_of_queue(name) == "c2c"}
    stage = program.stage(s).program
    code = flatten(stage.chip, queues)
    return Ends(code, pair_links(code, ports), stage.segments[segment].claims.passed)


def checked(stages: tuple[int, ...], segment: Segment, chips: int, trace: Trace, wall_s: float) -> Checked:
    """What was found of a resolved program."""
    passing = trace.operands.passing
    return Checked(stages, segment.context, segment.chunk, chips, len(trace.code), len(trace.operands.row),
                   len(passing.receives), len(passing.arriving), len(passing.handed), trace.cycles, wall_s)
