"""An encoder's programs in; a sequence as pictures see it out: of each chip the instructions of all its steps, and the
critical path through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openlpu.partition.names import shift
from openlpu.schedule.encoders import Turn, interval, passage
from openlpu.schedule.joules import Energy, in_turn
from openlpu.schedule.program import Program, Segment, SystemProgram
from openlpu.schedule.report import LINKS, WAITING, Piece, Report, busy, critical_path, dispatched
from openlpu.schedule.sweeps import turns
from openlpu.schedule.tracks import ChipRun, Token, first_send, identity, pieces_from, single

WHAT = "sequence"
Step = tuple[int, Segment, Mapping[str, NDArray]]  # the cycle in which it begins, and its instructions


def of_sequence(program: Program, length: int) -> Token:
    """A sequence of so many positions through an encoder on one chip."""
    paths = {part.name: critical_path(program.chip, part) for part, _ in turns(program, length)}
    pieces = [replace(piece, start=start + piece.start) for start, part, _ in _alone(program, length)
              for piece in paths[part.name]]
    return Token((sequence(program, length),), tuple(pieces), WHAT)


def sequence(program: Program, length: int) -> ChipRun:
    """The only chip of a sequence: the instructions of all steps, each behind those of the step before."""
    steps = [*_alone(program, length)]
    queues, origin = _joined(steps)
    cycles = steps[-1][0] + steps[-1][1].cycles
    return ChipRun("chip 0", program.chip, 0, cycles, queues, origin, program.resident)


def _alone(program: Program, length: int) -> Iterator[Step]:
    start = 0
    for part, times in turns(program, length):
        for _ in range(times):
            yield start, part, part.queues
            start += part.cycles


def _joined(steps: Iterable[Step]) -> tuple[dict[str, NDArray], tuple[tuple[int, str], ...]]:
    """The queues of all steps and their origin, cycles counted from the first step's."""
    rows: dict[str, list[NDArray]] = {}
    origin: list[tuple[int, str]] = []
    number, first = 0, -1
    for start, part, queues in steps:
        first = start if first < 0 else first
        for queue, own in queues.items():
            rows.setdefault(queue, []).append(own.copy())
            rows[queue][-1]["cycle"] += start - first
            rows[queue][-1]["id"] += number
        origin += [(number + begin, name) for begin, name in part.origin]
        number += max(int(own["id"].max(initial=0)) for own in queues.values())
    return {queue: np.concatenate(parts) for queue, parts in rows.items()}, tuple(origin)


def of_system(system: SystemProgram, length: int) -> Token:
    """A sequence on all chips of a system.

    Its path goes through every step of the first stage, from the last one's first send over the link into the last step
    that takes over, and on from there.
    """
    chips = [run for s in range(system.split.stages) for run in stage(system, s, length)]
    return Token(tuple(chips), tuple(path(system, length)), WHAT)


def stage(system: SystemProgram, s: int, length: int) -> Iterator[ChipRun]:
    """The chips of a stage in a sequence."""
    made, own = system.stage(s), passage(system, length).of(s)
    steps = [(turn.start, made.program.segments[turn.segment], system.queues(s, turn.segment)) for turn in own]
    queues, origin = _joined(steps)
    cycles = own[-1].start - own[0].start + made.busy(steps[-1][1])
    packet = max((link.packet_bytes for link in system.links), default=0)
    for role in range(system.split.tensor):
        yield ChipRun(chip=made.program.chip, start=own[0].start, cycles=cycles, queues=queues, origin=origin,
                      link_slot=system.slot, packet_bytes=packet, first=system.first[s], **identity(system, s, role))


def account(system: SystemProgram, length: int) -> tuple[Report, Energy]:
    """Where the cycles of a sequence on all chips go, and what it costs; shares are those of all chips."""
    taken = Counter((system.stages[turn.stage], turn.segment) for turn in passage(system, length).turns)
    packet = max((link.packet_bytes for link in system.links), default=0)
    counts, steps = Counter[str](), list[tuple[ChipRun, int]]()
    for (which, segment), times in taken.items():
        program, times = system.programs[which].program, times * system.split.tensor
        part = program.segments[segment]
        counts.update({unit: times * count for unit, count in dispatched(part.queues).items()})
        steps.append((replace(single(program, part), packet_bytes=packet), times))
    pieces, chip, chips = tuple(path(system, length)), system.programs[0].program.chip, system.split.chips
    cycles = pieces[-1].start + pieces[-1].cycles
    use = Report(cycles, counts.total(), busy(chip, counts, cycles * chips), pieces)
    return use, in_turn(steps, chips, cycles, interval(system, length))


def path(system: SystemProgram, length: int) -> Iterator[Piece]:
    """The critical path of :func:`of_system`."""
    way, taken = passage(system, length), 0
    for s in range(system.split.stages):
        made, own = system.stage(s), way.of(s)
        own = [turn for turn in own if not s or turn.segment != own[0].segment or turn.number == own[-1].number]
        for turn, behind in zip(own, [*own[1:], None], strict=True):
            part = made.program.segments[turn.segment]
            sent = first_send(made, part)
            found = critical_path(made.program.chip, part, sent)
            for piece in pieces_from(found, taken):
                yield replace(piece, start=turn.start + piece.start, operator=shift(piece.operator, system.first[s]))
            end, taken = turn.start + found[-1].start + found[-1].cycles, 0
            last, kind = shift(found[-1].operator, system.first[s]), WAITING if sent is None else LINKS
            if behind:
                yield from _rest(end, behind.start, kind, last)
            elif s + 1 < system.split.stages:
                there, first = system.stage(s + 1), _last_taken(way.of(s + 1))
                taken = there.taken(there.program.segments[first.segment])
                yield from _rest(end, first.start + taken, LINKS, last)


def _last_taken(own: list[Turn]) -> Turn:
    """The last of the steps that take over."""
    return [turn for turn in own if turn.segment == own[0].segment][-1]


def _rest(start: int, end: int, kind: str, operator: str) -> Iterator[Piece]:
    if end > start:
        yield Piece(start, end - start, kind, operator)
