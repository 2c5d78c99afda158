"""Stages of which some are scheduled in; what a token, and the time between two, will cost, out: so a split that would
be dearer than the best one known is given up.

What is not scheduled yet counts as the fastest stage of its likeness that other splits have, less a margin, and less as
much as this split's scheduled stages are faster than theirs; or as its weights take into the MXM, where that is more or
all that is known.  Nothing but giving up follows from it: the cycles of what is chosen are scheduled ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openlpu.arch.chip import Chip
from openlpu.partition.split import Stage
from openlpu.place.bound import weight_rate
from openlpu.schedule.kinds import Part, Watch, weights
from openlpu.schedule.program import Hop, StageProgram
from openlpu.schedule.units.c2c import PLANES

CERTAIN = 94  # percent of what is expected of a stage that is not scheduled yet

LOOSE = 2  # the most lanes that a value's channels are spread over, each


class Dearer(Exception):
    """A split was given up: its token, and the time between two, take at least so many cycles, or likely more."""

    def __init__(self, cycles: int, interval: int, how: str = "at least") -> None:
        super().__init__(f"{how} {cycles:,} cycles a token, {interval:,} between two")


def unless(worth: Callable[[int, int], bool], chip: Chip, hops: Sequence[Hop]) -> Watch:
    """What raises :class:`Dearer` as soon as a split that is not all scheduled yet is not ``worth`` the cycles, of a
    token and between two, that it costs."""

    def watch(parts: Sequence[Part]) -> None:
        found = cost(parts, chip, hops)
        if any(isinstance(part.stage, Stage) for part in parts) and not worth(*found):
            bound = cost([Part(part.stage) for part in parts], chip, hops)
            raise Dearer(*found, "at least" if found == bound else "likely over")

    return watch


def cost(parts: Sequence[Part], chip: Chip, hops: Sequence[Hop]) -> tuple[int, int]:
    """Cycles of a token in the first segment, and between two tokens; exact where every stage is scheduled."""
    slot = max((hop.link.cycles for hop in hops), default=0)
    own = _each(parts, _own, lambda stage: max(_loads(stage, chip) - _burst(stage, chip) * slot, 0))
    return sum(own) + sum(hop.link.latency for hop in hops), max(_each(parts, _busy, lambda s: _loads(s, chip)))


def _each(
    parts: Sequence[Part], exact: Callable[[StageProgram], int], least: Callable[[Stage], int]
) -> list[int]:
    """The cycles of each part: what is ``exact`` of a program, and the ``least`` of what has none, or more where others
    tell."""
    unlike = {id(part): part for part in parts}
    like = {key: min(map(exact, part.alike), default=0) for key, part in unlike.items()}
    own = {key: exact(part.stage) for key, part in unlike.items() if isinstance(part.stage, StageProgram)}
    compared = [key for key in map(id, parts) if key in own and like[key]]
    theirs = sum(like[key] for key in compared)
    ours = min(sum(own[key] for key in compared), theirs)
    for key, part in unlike.items():
        if isinstance(part.stage, Stage):
            own[key] = max(least(part.stage), like[key] * ours * CERTAIN // (theirs * 100) if theirs else 0)
    return [own[id(part)] for part in parts]


def _own(stage: StageProgram) -> int:
    """Cycles from when a stage is handed its first vector (the first stage begins) to when it hands over its own, or
    is done."""
    segment = stage.program.segments[0]
    end = stage.handed_over(segment) if stage.next else segment.cycles
    return end - (stage.taken(segment) if stage.previous else 0)


def _busy(stage: StageProgram) -> int:
    return stage.busy(stage.program.segments[0])


def _loads(stage: Stage, chip: Chip) -> int:
    return weights(stage) // weight_rate(chip)


def _burst(stage: Stage, chip: Chip) -> int:
    """The most byte planes from the first that it hands over to the last, which may wait for weights."""
    handed = [x for node in stage.graph.nodes if node.op == "pass" for x in node.inputs]
    return sum(-(-LOOSE * stage.graph.values[x].size // chip.lanes) for x in handed) * PLANES
