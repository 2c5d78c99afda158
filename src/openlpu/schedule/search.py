"""A graph, a system and an aim in; the split that serves the aim best, and what the others would have cost, out.

Every split is scheduled, none is guessed: the smallest context bucket of each decides.  Of a large model what mostly is
best is scheduled first, and a split is given up when a part of it is there and it would be dearer than the best one
known (limit.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from openlpu._base.errors import DoesNotFit, OpenLpuError, ProgramError, Unsupported
from openlpu._base.progress import Progress, silent
from openlpu._base.units import count, duration, size
from openlpu.arch.system import System
from openlpu.arch.topology import NODE
from openlpu.graph.ir import Graph
from openlpu.partition.shard import TENSOR, shard
from openlpu.partition.split import CODES, EXCHANGES, SUMS, VALUES, Split
from openlpu.place.fewest import ascending, codes, reported, sram
from openlpu.schedule.kinds import LARGE, Programs, workers_for
from openlpu.schedule.limit import Dearer
from openlpu.schedule.program import SystemProgram
from openlpu.schedule.step import buckets
from openlpu.schedule.system import cables, paced, schedule_system

LATENCY, THROUGHPUT, CHIPS = AIMS = ("latency", "throughput", "chips")


@dataclass(frozen=True)
class Wanted:
    """What to search: an ``aim`` (the shortest token, the shortest interval between tokens of a full pipeline, or the
    fewest chips), at most how many cycles a token of any context may take, and the fields of the split that are fixed;
    0 and "" leave them open."""

    aim: str = LATENCY
    limit: int = 0
    tensor: int = 0
    stages: int = 0
    exchange: str = ""


@dataclass(frozen=True)
class Choice:
    """A split, the cycles of its token and between two tokens, and the bytes that chips send each other for one; or why
    it is none to choose, in ``why``."""

    split: Split
    cycles: int = 0
    interval: int = 0
    why: str = ""
    moved: int = 0

    def rank(self, aim: str) -> tuple[int, ...]:
        """The smaller the better: the aim first, ties by the others."""
        s = self.split
        first = {LATENCY: (self.cycles, s.chips), THROUGHPUT: (self.interval, s.chips, self.cycles),
                 CHIPS: (s.chips, self.cycles)}[aim]
        return (*first, s.tensor, EXCHANGES.index(s.exchange), s.halves)


@dataclass(frozen=True)
class Found:
    """The program of the best split, the system with its chips in that order, and every split that was considered."""

    program: SystemProgram
    system: System
    choices: tuple[Choice, ...]


def least(graph: Graph, system: System, wanted: Wanted) -> list[Split]:
    """All splits that may have the fewest chips, fewest first: those that could hold the weights."""
    able = (s for s in ascending(graph, system.chip) if s.chips <= system.chips)
    fixed = (s for s in able if wanted.tensor in (0, s.tensor) and wanted.stages in (0, s.stages))
    return [split for s in fixed for split in splits(graph.config.layers, s.chips, replace(
        wanted, tensor=s.tensor, stages=s.stages))]


def splits(layers: int, chips: int, wanted: Wanted) -> Iterator[Split]:
    """The splits worth a look: for each tensor width, up to a node's, one stage, twice as many, and so on, and as many
    as there are chips or layers for.  Layers are cut in halves where whole ones do not divide among the stages."""
    tensors = [tensor for tensor in TENSOR if tensor == 1 or (tensor <= NODE and tensor * wanted.stages <= chips)]
    for tensor in (wanted.tensor,) if wanted.tensor else tensors:
        most = min(chips // max(tensor, 1), layers)
        doubled = {1 << k for k in range(most.bit_length())} | {most}
        for stages in (wanted.stages,) if wanted.stages else sorted(doubled - {0}):
            halves = (False, True) if layers % stages else (False,)
            yield from (Split(tensor, stages, *how) for how in product(_exchanges(tensor, wanted), halves))


def finer(layers: int, chips: int, wanted: Wanted) -> Iterator[Split]:
    """Splits for what those of :func:`splits` do not hold: stages of up to two nodes, and more stages than layers, down
    to halves of layers with the head alone."""
    least = max(wanted.stages, 1)
    for tensor in (t for t in TENSOR if wanted.tensor in (0, t) and t * least <= chips):
        most = min(chips // tensor, 2 * layers + 1)
        for stages in (wanted.stages,) if wanted.stages else sorted({min(most, layers), most} - {0}):
            yield from (Split(tensor, stages, exchange, stages > layers) for exchange in _exchanges(tensor, wanted))


def _exchanges(tensor: int, wanted: Wanted) -> tuple[str, ...]:
    """What the chips of a stage may send each other; a chip alone sends nothing."""
    return (VALUES,) if tensor == 1 else (wanted.exchange,) if wanted.exchange else EXCHANGES


def search(
    graph: Graph, system: System, wanted: Wanted, context: int = 0, chunks: Sequence[int] = (),
    progress: Progress = silent, requests: int = 1,
) -> Found:
    """Schedule each split for its smallest context bucket, and the best one for all buckets, and for ``chunks`` of a
    prompt; ``requests`` as in :func:`~openlpu.place.layout.place_stage`.

    A split that has no room for all of that gives way to the next best.
    Raises :class:`Unsupported` if all that have a program exceed the limit, and :class:`DoesNotFit`,
    :class:`ProgramError` or :class:`Unsupported` with the last split's reason if none has a program.
    """
    context = context or graph.config.context
    asked = least(graph, system, wanted) if wanted.aim == CHIPS else []
    asked = asked or list(splits(graph.config.layers, system.chips, wanted))  # if none holds it, they say by how much
    if not asked:
        raise Unsupported(f"{wanted.tensor} chips a stage are more than the {system.chips} there are", where="tensor",
                          fix="use a larger system, or fewer chips a stage")
    more = [split for split in finer(graph.config.layers, system.chips, wanted) if split not in asked]
    with workers_for(codes(graph)) as workers:
        looked = _Search(graph, system, wanted, Programs(system.chip, context, requests, workers), buckets(context),
                         chunks, progress)
        made = looked.best_of(asked, more)
    choices = [looked.choices[split] for split in [*asked, *more] if split in looked.choices]
    return Found(made, lined_up(system, made.split), tuple(choices))


@dataclass
class _Search:
    """A search under way: the ``choices`` so far, which of them were given up before all of them was scheduled, and
    what kept others from having a program."""

    graph: Graph
    system: System
    wanted: Wanted
    programs: Programs
    contexts: Sequence[int]
    chunks: Sequence[int]
    progress: Progress
    choices: dict[Split, Choice] = field(default_factory=dict)
    dearer: set[Split] = field(default_factory=set)
    errors: dict[Split, OpenLpuError] = field(default_factory=dict)

    @property
    def best(self) -> Choice | None:
        """The best by now that has a program, within the limit."""
        able = (choice for choice in self.choices.values() if not choice.why)
        return min(able, key=lambda choice: choice.rank(self.wanted.aim), default=None)

    @property
    def nearest(self) -> Choice | None:
        """The shortest token by now of those that exceed the limit."""
        slow = (choice for choice in self.choices.values() if choice.why and choice.cycles)
        return min(slow, key=lambda choice: choice.rank(LATENCY), default=None)

    def best_of(self, asked: Sequence[Split], more: Sequence[Split]) -> SystemProgram:
        """The program, with all segments, of the best of some splits, or of ``more`` if none of those has one; of the
        next best, where all its segments have no room."""
        order = asked if self.wanted.aim == CHIPS else sorted(asked, key=_promise)
        while True:
            self._look([*order, *self.choices])
            if not self.best:
                self._look(more)
            if not (best := self.best):
                break
            self.progress(f"split {best.split}", len(asked), len(asked))
            if made := self._scheduled(best.split, self.contexts, self.chunks):
                if not (slow := self._exceeded(made, len(self.contexts))):
                    return made
                self.choices[best.split] = replace(best, why=slow)
        if near := self.nearest:
            raise Unsupported(f"the shortest token found takes {near.why}", where="latency-limit",
                              fix="allow more, ask for a shorter --context, or use a system with more chips")
        last = self.errors[[*asked, *more][-1]]
        homes = self.programs.context, self.programs.requests
        raise reported(last, self.graph, self.system.chip, *homes) if isinstance(last, DoesNotFit) else last

    def _look(self, splits: Sequence[Split]) -> None:
        """Schedule the smallest bucket of splits that were not looked at, or given up: there may be no better one now.

        For the fewest chips, those of more than one that has a program cannot be the best."""
        for done, split in enumerate(splits):
            best = self.best
            if best and self.wanted.aim == CHIPS and best.split.chips < split.chips:
                continue
            if split not in self.choices or split in self.dearer:
                self.progress(f"split {split}", done, len(splits))
                if made := self._scheduled(split, self.contexts[:1], (), best):
                    self.choices[split] = Choice(split, made.cycles(0), made.interval(0), self._exceeded(made, 1),
                                                 made.moved(0))

    def _exceeded(self, made: SystemProgram, contexts: int) -> str:
        """By which of its first segments a program exceeds the limit, if it does."""
        cycles, limit = max(made.cycles(i) for i in range(contexts)), self.wanted.limit
        clock = self.system.chip.clock_hz
        if not 0 < limit < cycles:
            return ""
        return f"{cycles:,} cycles, {duration(cycles / clock)}, where {duration(limit / clock)} are allowed"

    def _scheduled(
        self, split: Split, contexts: Sequence[int], chunks: Sequence[int], best: Choice | None = None
    ) -> SystemProgram | None:
        """The program of a split; None, and the reason filed, if there is none, or if it is large and worse than the
        best one."""

        def worth(cycles: int, interval: int) -> bool:
            aim, limit, least = self.wanted.aim, self.wanted.limit, Choice(split, cycles, interval)
            return not best or (least.rank(aim) <= best.rank(aim) and not 0 < limit < cycles)

        self.dearer.discard(split)
        large = codes(self.graph) >= LARGE
        try:
            return _schedule(self.graph, self.system, split, contexts, chunks, self.programs, worth if large else None)
        except Dearer as error:
            self.dearer.add(split)
            self.choices[split] = Choice(split, why=str(error))
        except (DoesNotFit, ProgramError, Unsupported) as error:
            self.errors[split] = error
            self.choices[split] = Choice(split, why=f"{error.where}: {error.what}")
        return None


def _promise(split: Split) -> tuple[int, ...]:
    """What is mostly best, first: then others are given up sooner."""
    return -split.chips, -split.tensor, (SUMS, VALUES, CODES).index(split.exchange), split.halves


def lined_up(system: System, split: Split) -> System:
    """The system with its chips in the order in which a split counts them; refuses stages that are no whole part of a
    node, nor whole nodes."""
    node = system.spec.shape.chips
    if node % split.tensor and split.tensor % node:
        raise Unsupported(f"{system.chips} chips in nodes of {node} do not make whole stages of {split.tensor}",
                          where=f"system {system.name}, tensor", fix=f"use a divisor of {node}")
    return system.lined_up(split.tensor)


def _schedule(
    graph: Graph, system: System, split: Split, contexts: Sequence[int], chunks: Sequence[int], programs: Programs,
    worth: Callable[[int, int], bool] | None,
) -> SystemProgram:
    _require_room(codes(graph), split.chips, system)
    wired = lined_up(system, split)
    local, hops = cables(wired, split)
    shards = shard(graph, split)
    for s, stage in enumerate(shards.stages):
        _require_room(codes(stage.graph), split.tensor, system, f", stage {s}")
    return schedule_system(shards, system.chip, local, hops, contexts=contexts, chunks=chunks,
                           pace=paced(wired, split), programs=programs, worth=worth)


def _require_room(asked: int, chips: int, system: System, stage: str = "") -> None:
    """Refuse at once what cannot fit: more weights than the chips of a system, or a stage, hold."""
    if asked > (there := chips * sram(system.chip)):
        raise DoesNotFit(f"weights take {size(asked)}, and there are {size(there)} on {count(chips, 'chip')}",
                         where=f"system {system.name}{stage}", fix="use a larger system (--chips), or a smaller model")
