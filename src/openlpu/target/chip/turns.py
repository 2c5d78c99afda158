"""Steps that enter a pipeline one behind the other in; an error out where one comes too early for a stage or a link.

Steps of one segment, a token every interval, are checked before anything runs (``pipeline.check_full``).  Those of
several requests mix segments; here each is looked at as it enters, on the clock of all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from openlpu._base import units
from openlpu.target.chip.code import Code, Ints
from openlpu.target.chip.links import Port, crowded
from openlpu.target.chip.machine import Trace
from openlpu.target.chip.pipeline import named


@dataclass(frozen=True)
class Crossing:
    """What passes from a stage to the next in a step: the sends, and when all is sent and taken, from its start."""

    code: Code
    out: Ints
    sent: Ints
    taken: Ints


@dataclass(frozen=True)
class Course:
    """How the steps of a segment go: when each stage begins and is done, from the step's start."""

    traces: Sequence[Trace]
    starts: Ints
    until: Ints
    crossings: Sequence[Crossing]

    @classmethod
    def of(cls, traces: Sequence[Trace], starts: Sequence[int]) -> Course:
        """Of resolved stages that begin in these cycles."""
        until = [start + int(trace.code.done.max(initial=0)) for start, trace in zip(starts, traces, strict=True)]
        crossings = []
        for (here, begun), (there, begins) in pairwise(zip(traces, starts, strict=True)):
            out, into = here.operands.passing.handed, there.operands.passing.arriving
            crossings.append(Crossing(here.code, out, here.code.cycle[out] + begun, there.code.cycle[into] + begins))
        return cls(traces, np.array(starts), np.array(until), crossings)


class Turns:
    """What is known of the steps that entered, over these ``hops``; ``course`` gives that of a segment by number."""

    def __init__(self, hops: Sequence[Port], course: Callable[[int], Course]) -> None:
        self._hops, self._course = hops, cache(course)
        self._until = np.zeros(len(hops) + 1, np.int64)
        self._last = [(np.zeros(0, np.int64),) * 2 for _ in hops]  # cycles of the last vectors sent and taken

    def enter(self, start: int, segment: int) -> None:
        """A step of a segment enters in cycle ``start``.

        Raises :class:`~openlpu._base.errors.ProgramError` naming the stage that is not done with the step before it, or
        the instruction whose vector a link cannot take.
        """
        course = self._course(segment)
        late = (self._until - start - course.starts).tolist()
        for s in (s for s, cycles in enumerate(late) if cycles > 0):
            with named(f"stage {s}, a step that enters in cycle {start}"):
                code, more = course.traces[s].code, units.count(late[s], "cycle")
                code.refuse(np.arange(len(code)), f"the stage is at work on the step before for {more} more")
        self._until = start + course.until
        for s, (port, new) in enumerate(zip(self._hops, course.crossings, strict=True)):
            pairs = zip(self._last[s], (new.sent, new.taken), strict=True)
            sent, taken = (np.concatenate([last[-port.depth :], start + cycles]) for last, cycles in pairs)
            with named(f"from stage {s} to {s + 1}, a step that enters in cycle {start}"):
                crowded(new.code, new.out, sent, taken, port)
            self._last[s] = sent, taken
