"""The stages of an encoder and the cables between their chips in; their programs, and when each step begins, out.

A stage has whole layers.  It takes a sequence sweep by sweep, like a chip alone; its last sweep hands each chunk to the
first one of the stage behind, which is at work on one while the other makes the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from openlpu._base.errors import BadRequest
from openlpu.arch.alignment import Pace
from openlpu.arch.chip import Chip
from openlpu.arch.group import Group
from openlpu.arch.system import System
from openlpu.graph.ir import Graph
from openlpu.partition.shard import shard
from openlpu.partition.split import VALUES, Shards, Split
from openlpu.place.layout import place_stage
from openlpu.schedule.kinds import Kind, kind_of
from openlpu.schedule.program import Hop, Segment, StageProgram, SystemProgram
from openlpu.schedule.search import Choice, Found, Wanted, lined_up
from openlpu.schedule.sweeps import schedule_stage, turns
from openlpu.schedule.system import cables, cablings, listed, paced
from openlpu.schedule.units.c2c import Cabling


@dataclass(frozen=True)
class Turn:
    """A step of a sequence on the chips of a stage: chunk ``number`` in the segment of that index, from cycle
    ``start`` of the sequence on."""

    stage: int
    segment: int
    number: int
    start: int


@dataclass(frozen=True)
class Passage:
    """How a sequence goes through the stages: every step, each behind those of its stage before it, a step that hands
    over right in front of the one that takes over; and the cycle in which the hidden states are there."""

    turns: tuple[Turn, ...]
    cycles: int

    def of(self, stage: int) -> list[Turn]:
        """The steps of a stage."""
        return [turn for turn in self.turns if turn.stage == stage]


def asked(graph: Graph, system: System, wanted: Wanted) -> Split:
    """The split that fields of it name: one chip a stage and as many stages as chips or layers, if nothing is said."""
    tensor = wanted.tensor or 1
    stages = wanted.stages or max(min(system.chips // tensor, graph.config.layers), 1)
    if tensor == 1 and wanted.exchange:
        raise BadRequest("one chip a stage exchanges nothing", where="exchange", fix="leave it out, or add --tensor N")
    return Split(tensor, stages, wanted.exchange or VALUES)


def spread(graph: Graph, system: System, split: Split, context: int = 0, chunk: int = 0) -> Found:
    """An encoder over the chips of a system, with what the longest sequence takes; arguments as of
    :func:`schedule_system`, which says what is raised."""
    wired = lined_up(system, split)
    local, hops = cables(wired, split)
    made = schedule_system(shard(graph, split), wired.chip, local, hops, context=context, chunk=chunk,
                           pace=paced(wired, split))
    length = made.stage(0).program.context
    choice = Choice(split, passage(made, length).cycles, interval(made, length), moved=moved(made, length))
    return Found(made, wired, (choice,))


def schedule_system(
    shards: Shards, chip: Chip, local: Group | None = None, hops: Sequence[Hop] = (), *, context: int = 0,
    chunk: int = 0, pace: Pace | None = None,
) -> SystemProgram:
    """Place and schedule every kind of stage; arguments as of :func:`openlpu.schedule.system.schedule_system` and of
    :func:`openlpu.schedule.sweeps.schedule_stage`.

    Chips set their clocks right before each step that uses links, for as long as what lies between two needs.
    Raises what :func:`~openlpu.place.layout.place_stage` and :func:`~openlpu.schedule.sweeps.schedule_stage` raise.
    """
    head, more = pace.wait(pace.stretch) if pace else 0, 0
    while True:
        programs = list(_programs(shards, chip, local, cablings(local, hops, pace, head), context, chunk))
        while held := _held(programs, more):
            system = listed(shards, held, local, hops, 0)
            assert system, "a program that waits no longer is as it was"
            needed = pace.wait(alone(system)) if pace else 0
            if needed <= head + more:
                return system
            more = needed - head
        head, more = head + more, 0


def _programs(
    shards: Shards, chip: Chip, local: Group | None, wired: Sequence[Cabling], context: int, chunk: int
) -> Iterator[StageProgram]:
    """The program of each stage, equal ones the same."""
    made: dict[Kind, StageProgram] = {}
    for stage, cabling in zip(shards.stages, wired, strict=True):
        if (kind := kind_of(chip, stage, cabling)) not in made:
            layout = place_stage(stage, chip, context, local.sources if local else ())
            made[kind] = schedule_stage(stage, layout, cabling, chunk)
        yield made[kind]


def _held(programs: Sequence[StageProgram], more: int) -> list[StageProgram] | None:
    """The programs, whose chips set their clocks right for longer; None if delays would take other bytes."""
    made: dict[int, StageProgram] = {}
    for stage in programs:
        parts = stage.program.segments
        segments = [part.held(more) if more and _linked(part) else part for part in parts]
        if None in segments:
            return None
        new = replace(stage.program, segments=tuple(part for part in segments if part))
        made.setdefault(id(stage), replace(stage, program=new) if more else stage)
    return [made[id(stage)] for stage in programs]


def _linked(part: Segment) -> bool:
    return any(len(rows) for name, rows in part.queues.items() if name.startswith("c2c"))


def alone(system: SystemProgram) -> int:
    """The most cycles from when a chip sets its clock right for the last time to when it does again, in sequences of
    any length that follow each other."""
    most, first, last = 0, dict[int, int](), dict[int, int]()
    for context in sorted({part.context for part in system.stage(0).program.segments}):
        way = passage(system, context)
        for s in range(system.split.stages):
            stage, since = system.stage(s), -1
            for turn in way.of(s):
                part = part_of(system, turn)
                if _linked(part):
                    first[s] = max(first.get(s, 0), turn.start) if since < 0 else first[s]
                    most = max(most, turn.start - since) if since >= 0 else most
                    since = turn.start + stage.busy(part) - stage.drifting(part)
            last[s] = max(last.get(s, 0), way.cycles - since)
    return max([most, *(first[s] + last[s] for s in first)])


def passage(program: SystemProgram, length: int) -> Passage:
    """A sequence of so many positions, alone."""
    free, out = [0] * program.split.stages, list[Turn]()

    def take(s: int, segment: int, number: int, start: int) -> None:
        out.append(Turn(s, segment, number, start))
        free[s] = start + busy(program, out[-1])

    for s in range(program.split.stages):
        own = _numbered(program, s, length)[s > 0 :]  # what the stage before hands over is taken with it
        for segment, times in own[: len(own) - (s + 1 < program.split.stages)]:
            for number in range(times):
                take(s, segment, number, free[s])
        if s + 1 < program.split.stages:
            (segment, times), (there, _) = own[-1], _numbered(program, s + 1, length)[0]
            shift = _shift(program, s, segment, there)
            for number in range(times):
                start = max(free[s], free[s + 1] - shift)
                take(s, segment, number, start)
                take(s + 1, there, number, start + shift)
    return Passage(tuple(out), out[-1].start + part_of(program, out[-1]).cycles)


def part_of(program: SystemProgram, turn: Turn) -> Segment:
    """The sweep of a step."""
    return program.stage(turn.stage).program.segments[turn.segment]


def busy(program: SystemProgram, turn: Turn) -> int:
    """Cycles after which the chips of a step can begin another."""
    return program.stage(turn.stage).busy(part_of(program, turn))


def _numbered(program: SystemProgram, s: int, length: int) -> list[tuple[int, int]]:
    """The segments of a stage that a sequence takes, in order, and how many steps each takes."""
    segments = [part.name for part in program.stage(s).program.segments]
    return [(segments.index(part.name), times) for part, times in turns(program.stage(s).program, length)]


def _shift(program: SystemProgram, s: int, segment: int, there: int) -> int:
    """How much later than a step of stage s that hands over the one begins that takes over."""
    here, behind = program.stage(s), program.stage(s + 1)
    sent = here.handed_over(here.program.segments[segment]) + program.hops[s].link.latency
    return sent - behind.taken(behind.program.segments[there])


def moved(program: SystemProgram, length: int) -> int:
    """Bytes that all chips send for a sequence."""
    sent = sum(program.stage(turn.stage).sends(part_of(program, turn)) for turn in passage(program, length).turns)
    return sent * program.split.tensor * program.programs[0].program.chip.lanes


def interval(program: SystemProgram, length: int) -> int:
    """Cycles between sequences when every stage takes the next as soon as it is done with one."""
    way = passage(program, length)
    spans = [way.of(s) for s in range(program.split.stages)]
    return max(own[-1].start - own[0].start + busy(program, own[-1]) for own in spans)
