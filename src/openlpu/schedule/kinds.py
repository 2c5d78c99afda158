"""The stages of a system and how each is wired in; a program per kind of stage, out.

Stages of equal shape whose neighbours lie beyond the same edges of the chip are of one kind and are scheduled once.
Kinds know nothing of each other, so processes can share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from openlpu._base.cores import usable_cores
from openlpu._base.processes import in_order
from openlpu.arch.chip import Chip
from openlpu.partition.split import Stage
from openlpu.place.layout import Layout, place_stage
from openlpu.schedule.program import Segment, StageProgram
from openlpu.schedule.step import buckets, follows, schedule_stage, steps
from openlpu.schedule.units.c2c import Cabling

LARGE = 1 << 26  # weights of a chip, of all kinds: from there on another process saves more than it takes to start


class Kind(NamedTuple):
    """Equal kinds have one program: the stage's signature, how it is wired, and the edges of its neighbours."""

    signature: str
    cabling: Cabling  # without the names of the neighbours' queues
    next: int
    previous: int


@dataclass(frozen=True)
class Work:
    """A stage to be scheduled, placed; the rest as :func:`~openlpu.schedule.step.schedule_stage` takes it."""

    stage: Stage
    layout: Layout
    contexts: tuple[int, ...]
    cabling: Cabling
    chunks: tuple[int, ...] = ()
    begun: tuple[Segment, ...] = ()

    @property
    def left(self) -> int:
        """Segments still to be made."""
        return len(steps(self.contexts, self.chunks)) - len(self.begun)

    @property
    def weights(self) -> int:
        """Weights on one chip."""
        graph = self.stage.graph
        sizes = (graph.params[node.params["codes"]].size for node in graph.nodes if node.op == "linear")
        return sum(sizes) // self.stage.tensor


def made(work: Work) -> tuple[Layout, StageProgram]:
    """The layout, with what the scheduler adds, and the program.  Raises what the scheduler raises."""
    program = schedule_stage(work.stage, work.layout, work.contexts, work.cabling, work.chunks, work.begun)
    return work.layout, program


@dataclass
class Programs:
    """Programs of kinds of stages of one chip, with homes for ``context`` positions (0: the model's own) of each of
    ``requests``.

    It remembers what was scheduled last; who asks again for more segments behind these gets the others added.
    ``processes`` share the work (0: as many as there are cores, if the model is large); the programs are the same.
    """

    chip: Chip
    context: int = 0
    requests: int = 1
    processes: int = 0
    known: dict[Kind, tuple[Layout, StageProgram]] = field(default_factory=dict)

    def of(
        self, stages: Sequence[Stage], cablings: Sequence[Cabling], contexts: tuple[int, ...],
        chunks: tuple[int, ...] = (),
    ) -> list[StageProgram]:
        """The program of each stage, equal ones the same, for some context buckets (none given: the usual ones).

        Raises what place and schedule raise.
        """
        kinds = [self._kind(*each) for each in zip(stages, cablings, strict=True)]
        todo: dict[Kind, Work] = {}
        for kind, stage, cabling in zip(kinds, stages, cablings, strict=True):
            if kind not in todo:
                todo[kind] = self._work(kind, stage, cabling, contexts, chunks)
        new = {kind: work for kind, work in todo.items() if work.left}
        for kind in new:
            self.known.pop(kind, None)  # its layout grows: an error leaves it half made
        self.known |= self._share(new)
        return [self.known[kind][1] for kind in kinds]

    def _work(
        self, kind: Kind, stage: Stage, cabling: Cabling, contexts: tuple[int, ...], chunks: tuple[int, ...]
    ) -> Work:
        """What a kind needs, begun or not."""
        if kind in self.known:
            layout, program = self.known[kind]
            begun, contexts = program.program.segments, contexts or tuple(buckets(layout.context))
            if follows(begun, steps(contexts, chunks)):
                return Work(stage, layout, contexts, cabling, chunks, begun)
        sources = cabling.local.sources if cabling.local else ()
        layout = place_stage(stage, self.chip, self.context, sources, self.requests)
        return Work(stage, layout, contexts or tuple(buckets(layout.context)), cabling, chunks)

    def _kind(self, stage: Stage, cabling: Cabling) -> Kind:
        edges = (self.chip.queue_position(name) if name else -1 for name in (cabling.next, cabling.previous))
        return Kind(stage.signature(), replace(cabling, next="", previous=""), *edges)

    def _share(self, todo: dict[Kind, Work]) -> dict[Kind, tuple[Layout, StageProgram]]:
        """What is to be done, the longest first."""
        kinds = sorted(todo, key=lambda kind: -todo[kind].weights)
        large = sum(work.weights for work in todo.values()) >= LARGE
        processes = self.processes or (usable_cores() if large else 1)
        return dict(zip(kinds, in_order(made, [_bare(todo[kind]) for kind in kinds], processes), strict=True))


def _bare(work: Work) -> Work:
    """The same without parameters: a program does not depend on them."""
    return replace(work, stage=replace(work.stage, graph=replace(work.stage.graph, params={})))
