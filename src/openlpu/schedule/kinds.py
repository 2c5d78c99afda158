"""The stages of a system and how each is wired in; a program per kind of stage, out.

Stages of equal shape whose neighbours lie beyond the same edges of the chip are of one kind and are scheduled once.
Kinds know nothing of each other, so processes can share them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from openlpu._base.cores import usable_cores
from openlpu._base.processes import Workers
from openlpu.arch.chip import Chip
from openlpu.partition.split import Stage
from openlpu.place.layout import Layout, place_stage
from openlpu.schedule.program import StageProgram
from openlpu.schedule.step import buckets, follows, schedule_stage, steps
from openlpu.schedule.units.c2c import Cabling

LARGE = 1 << 26  # weights from which on another process saves more than it takes to start


class Likeness(NamedTuple):
    """What makes stages take about as long, whatever their chips send each other: how many there are, with how many
    weights each, and the edges of their neighbours."""

    tensor: int
    weights: int
    next: int
    previous: int


class Kind(NamedTuple):
    """Equal kinds have one program: the stage's signature, how it is wired, and what others have too."""

    signature: str
    cabling: Cabling  # without the names of the neighbours' queues
    like: Likeness


def kind_of(chip: Chip, stage: Stage, cabling: Cabling) -> Kind:
    """The kind of a stage that is wired so."""
    edges = (chip.queue_position(name) if name else -1 for name in (cabling.next, cabling.previous))
    like = Likeness(stage.tensor, weights(stage), *edges)
    return Kind(stage.signature(), replace(cabling, next="", previous=""), like)


@dataclass(frozen=True)
class Work:
    """A stage to be scheduled, placed; the rest as :func:`~openlpu.schedule.step.schedule_stage` takes it."""

    stage: Stage
    layout: Layout
    contexts: tuple[int, ...]
    cabling: Cabling
    chunks: tuple[int, ...] = ()
    begun: int = 0

    @property
    def left(self) -> int:
        """Segments still to be made."""
        return len(steps(self.contexts, self.chunks)) - self.begun


class Part(NamedTuple):
    """A stage of a split: its program, if it is scheduled; ``alike``: programs of other kinds of its likeness."""

    stage: StageProgram | Stage
    alike: tuple[StageProgram, ...] = ()


Watch = Callable[[Sequence[Part]], None]


def weights(stage: Stage) -> int:
    """Weights on one of its chips."""
    graph = stage.graph
    sizes = (graph.params[node.params["codes"]].size for node in graph.nodes if node.op == "linear")
    return sum(sizes) // stage.tensor


def made(work: Work) -> tuple[Layout, StageProgram]:
    """The layout, with what the scheduler adds, and the program.  Raises what the scheduler raises."""
    program = schedule_stage(work.stage, work.layout, work.contexts, work.cabling, work.chunks, work.begun)
    return work.layout, program


def workers_for(weights: int) -> Workers:
    """Who schedules a model of so many weights: processes on all cores if it is large."""
    return Workers(usable_cores() if weights >= LARGE else 1)


@dataclass
class Programs:
    """Programs of kinds of stages of one chip, with homes for ``context`` positions (0: the model's own) of each of
    ``requests``.

    It remembers what was scheduled last; who asks again for more segments behind these gets the others added.
    ``workers`` share the work; the programs are the same.
    """

    chip: Chip
    context: int = 0
    requests: int = 1
    workers: Workers = field(default_factory=lambda: Workers(1))
    known: dict[Kind, tuple[Layout, StageProgram]] = field(default_factory=dict)

    def of(
        self, stages: Sequence[Stage], cablings: Sequence[Cabling], contexts: tuple[int, ...],
        chunks: tuple[int, ...] = (), watch: Watch | None = None,
    ) -> list[StageProgram]:
        """The program of each stage, equal ones the same, for some context buckets (none given: the usual ones).

        ``watch`` is told what there is whenever a program is added, the weightiest first, and may raise to end it.
        Raises what place and schedule raise.
        """
        kinds = [kind_of(self.chip, *each) for each in zip(stages, cablings, strict=True)]
        unlike = dict(zip(kinds, zip(stages, cablings, strict=True), strict=True))
        if watch:
            watch(self._parts(kinds, {kind: stage for kind, (stage, _) in unlike.items() if kind not in self.known}))
        works = {kind: self._work(kind, *each, contexts, chunks) for kind, each in unlike.items()}
        count, todo = Counter(kinds), {kind: work for kind, work in works.items() if work.left}
        order = sorted(todo, key=lambda kind: -count[kind] * kind.like.weights)
        before = {kind: self.known.pop(kind) for kind in order if kind in self.known}  # layouts grow, errors or not
        with closing(self.workers.in_order(made, [_bare(todo[kind]) for kind in order])) as results:
            for kind, (layout, program) in zip(order, results, strict=True):
                self.known[kind] = layout, _behind(before[kind][1], program) if todo[kind].begun else program
                del todo[kind]
                if watch:
                    watch(self._parts(kinds, {kind: work.stage for kind, work in todo.items()}))
        return [self.known[kind][1] for kind in kinds]

    def _parts(self, kinds: Sequence[Kind], todo: Mapping[Kind, Stage]) -> list[Part]:
        """Of each stage what there is; equal ones have the same part."""
        parts = {}
        for kind in dict.fromkeys(kinds):
            alike = (program for other, (_, program) in self.known.items() if other != kind and other.like == kind.like)
            parts[kind] = Part(todo[kind] if kind in todo else self.known[kind][1], tuple(alike))
        return [parts[kind] for kind in kinds]

    def _work(
        self, kind: Kind, stage: Stage, cabling: Cabling, contexts: tuple[int, ...], chunks: tuple[int, ...]
    ) -> Work:
        """What a kind needs, begun or not."""
        if kind in self.known:
            layout, program = self.known[kind]
            begun, contexts = program.program.segments, contexts or tuple(buckets(layout.context))
            if follows(begun, steps(contexts, chunks)):
                return Work(stage, layout, contexts, cabling, chunks, len(begun))
        sources = cabling.local.sources if cabling.local else ()
        layout = place_stage(stage, self.chip, self.context, sources, self.requests)
        return Work(stage, layout, contexts or tuple(buckets(layout.context)), cabling, chunks)


def _behind(first: StageProgram, more: StageProgram) -> StageProgram:
    """A program with the segments of another in front."""
    segments = first.program.segments + more.program.segments
    return replace(more, program=replace(more.program, segments=segments))


def _bare(work: Work) -> Work:
    """The same without parameters: a program does not depend on them."""
    return replace(work, stage=replace(work.stage, graph=replace(work.stage.graph, params={})))
