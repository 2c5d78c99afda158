"""Stages of which some are scheduled in; cycles that a token, and the time between two, take at least, out.

What is not scheduled yet takes at least as long as its weights take into the MXM.  So a split of which a part costs
more than the best one known is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openlpu.place.bound import weight_rate
from openlpu.schedule.kinds import Parts, Watch, Work
from openlpu.schedule.program import Hop, StageProgram
from openlpu.schedule.units.c2c import PLANES


class Dearer(Exception):
    """A split was given up: its token takes ``cycles`` or more, and so does the time between two ``interval``."""

    def __init__(self, cycles: int, interval: int) -> None:
        super().__init__(f"at least {cycles:,} cycles a token, {interval:,} between two")
        self.cycles, self.interval = cycles, interval


def unless(worth: Callable[[int, int], bool], hops: Sequence[Hop]) -> Watch:
    """What raises :class:`Dearer` as soon as a split that is not all scheduled yet is not ``worth`` the cycles, of a
    token and between two, that it takes at least."""

    def watch(stages: Parts) -> None:
        least = at_least(stages, hops)
        if any(isinstance(stage, Work) for stage in stages) and not worth(*least):
            raise Dearer(*least)

    return watch


def at_least(stages: Parts, hops: Sequence[Hop]) -> tuple[int, int]:
    """Cycles of a token in the first segment, and between two tokens; exact where every stage is scheduled."""
    own = [_own(stage, first=s == 0) for s, stage in enumerate(stages)]
    return sum(own) + sum(hop.link.latency for hop in hops), max(map(_busy, stages))


def _own(stage: StageProgram | Work, *, first: bool) -> int:
    """Cycles from when a stage is handed its first vector (the first stage begins) to when it hands over its own, or
    is done."""
    if isinstance(stage, Work):
        return max(_loads(stage) - _burst(stage), 0)
    segment = stage.program.segments[0]
    end = stage.handed_over(segment) if stage.next else segment.cycles
    return end - (0 if first else stage.taken(segment))


def _busy(stage: StageProgram | Work) -> int:
    return _loads(stage) if isinstance(stage, Work) else stage.busy(stage.program.segments[0])


def _loads(work: Work) -> int:
    return work.weights // weight_rate(work.layout.chip)


def _burst(work: Work) -> int:
    """Cycles from the first vector that it hands over to the last, which may wait for weights."""
    handed = [x for node in work.stage.graph.nodes if node.op == "pass" for x in node.inputs]
    return sum(work.layout.lanes[x].vectors for x in handed) * PLANES * work.cabling.slot
