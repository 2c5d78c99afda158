"""A graph, a system and an aim in; the split that serves the aim best, and what the others would have cost, out.

Every split is scheduled, none is guessed: the smallest context bucket of each decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from openlpu._base.errors import DoesNotFit, OpenLpuError, ProgramError, Unsupported
from openlpu._base.progress import Progress, silent
from openlpu._base.units import size
from openlpu.arch.system import System
from openlpu.arch.topology import NODE
from openlpu.graph.ir import Graph
from openlpu.partition.shard import TENSOR, shard
from openlpu.partition.split import CODES, EXCHANGES, SUMS, VALUES, Split
from openlpu.place.fewest import ascending, codes, reported, sram
from openlpu.schedule.kinds import Programs
from openlpu.schedule.program import SystemProgram
from openlpu.schedule.step import buckets
from openlpu.schedule.system import cables, paced, schedule_system

LATENCY, THROUGHPUT, CHIPS = AIMS = ("latency", "throughput", "chips")


@dataclass(frozen=True)
class Wanted:
    """What to search: an ``aim`` (the shortest token, the shortest interval between tokens of a full pipeline, or the
    fewest chips), and the fields of the split that are fixed; 0 and "" leave them open."""

    aim: str = LATENCY
    tensor: int = 0
    stages: int = 0
    exchange: str = ""


@dataclass(frozen=True)
class Choice:
    """A split, the cycles of its token and between two tokens, and the bytes that chips send each other for one; or why
    there is no program, in ``why``."""

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
    as there are chips or layers for.  Codes are exchanged only where there is an exchange (sums only if asked for: see
    :func:`search`), and layers are cut in halves where whole ones do not divide among the stages."""
    tensors = [tensor for tensor in TENSOR if tensor == 1 or (tensor <= NODE and tensor * wanted.stages <= chips)]
    for tensor in (wanted.tensor,) if wanted.tensor else tensors:
        most = min(chips // max(tensor, 1), layers)
        doubled = {1 << k for k in range(most.bit_length())} | {most}
        for stages in (wanted.stages,) if wanted.stages else sorted(doubled - {0}):
            exchanges = (VALUES,) if tensor == 1 else (wanted.exchange,) if wanted.exchange else (VALUES, CODES)
            halves = (False, True) if layers % stages else (False,)
            yield from (Split(tensor, stages, *how) for how in product(exchanges, halves))


def finer(layers: int, chips: int, wanted: Wanted) -> Iterator[Split]:
    """Splits for what those of :func:`splits` do not hold: stages of up to two nodes, and more stages than layers, down
    to halves of layers with the head alone."""
    least = max(wanted.stages, 1)
    for tensor in (t for t in TENSOR if wanted.tensor in (0, t) and t * least <= chips):
        most = min(chips // tensor, 2 * layers + 1)
        for stages in (wanted.stages,) if wanted.stages else sorted({min(most, layers), most} - {0}):
            exchanges = (VALUES,) if tensor == 1 else (wanted.exchange,) if wanted.exchange else (VALUES, CODES)
            yield from (Split(tensor, stages, exchange, stages > layers) for exchange in exchanges)


def search(
    graph: Graph, system: System, wanted: Wanted, context: int = 0, chunks: Sequence[int] = (),
    progress: Progress = silent, requests: int = 1,
) -> Found:
    """Schedule each split for its smallest context bucket, then the best one with sums exchanged, and the best of all
    for all buckets, and for ``chunks`` of a prompt; ``requests`` as in :func:`~openlpu.place.layout.place_stage`.

    Raises :class:`DoesNotFit`, :class:`ProgramError` or :class:`Unsupported` with the last split's reason if none has
    a program.
    """
    context = context or graph.config.context
    few = wanted.aim == CHIPS
    asked = least(graph, system, wanted) if few else list(splits(graph.config.layers, system.chips, wanted))
    if few and not asked:
        asked = list(splits(graph.config.layers, system.chips, wanted))  # none holds it; these say by how much
    if not asked:
        raise Unsupported(f"{wanted.tensor} chips a stage are more than the {system.chips} there are", where="tensor",
                          fix="use a larger system, or fewer chips a stage")
    choices: list[Choice] = []
    errors: list[OpenLpuError] = []
    made: SystemProgram | None = None
    contexts, programs = buckets(context), Programs(system.chip, context, requests)
    more = (s for s in finer(graph.config.layers, system.chips, wanted) if s not in asked)
    for done, split in enumerate(_attempts(asked, more, choices, wanted)):
        if few and any(not c.why and c.split.chips < split.chips for c in choices):
            break
        progress(f"split {split}", min(done, len(asked)), len(asked))
        try:
            first = (contexts[:1], ()) if len(asked) > 1 else (contexts, chunks)
            made = _schedule(graph, system, split, *first, programs)
        except (DoesNotFit, ProgramError, Unsupported) as error:
            errors.append(error)
            choices.append(Choice(split, why=f"{error.where}: {error.what}"))
            continue
        choices.append(Choice(split, made.cycles(0), made.interval(0), moved=made.moved(0)))
    able = [c for c in choices if not c.why]
    if not able:
        last = errors[-1]
        raise reported(last, graph, system.chip, context, requests) if isinstance(last, DoesNotFit) else last
    best = min(able, key=lambda c: c.rank(wanted.aim)).split
    progress(f"split {best}", len(asked), len(asked))
    if len(choices) > 1:
        made = _schedule(graph, system, best, contexts, chunks, programs)
    assert made, "a choice without a reason has a program"
    return Found(made, lined_up(system, best), tuple(choices))


def _attempts(
    asked: Iterable[Split], more: Iterable[Split], choices: Sequence[Choice], wanted: Wanted
) -> Iterator[Split]:
    """The splits asked for; more of them if none of those is in ``choices`` by then; then the best one with sums
    exchanged, if the exchange is open."""
    yield from asked
    if all(c.why for c in choices):
        yield from more
    able = [c for c in choices if not c.why]
    if able and not wanted.exchange:
        best = min(able, key=lambda c: c.rank(wanted.aim)).split
        if best.tensor > 1:
            yield replace(best, exchange=SUMS)


def lined_up(system: System, split: Split) -> System:
    """The system with its chips in the order in which a split counts them; refuses stages that are no whole part of a
    node, nor whole nodes."""
    node = system.spec.shape.chips
    if node % split.tensor and split.tensor % node:
        raise Unsupported(f"{system.chips} chips in nodes of {node} do not make whole stages of {split.tensor}",
                          where=f"system {system.name}, tensor", fix=f"use a divisor of {node}")
    return system.lined_up(split.tensor)


def _schedule(
    graph: Graph, system: System, split: Split, contexts: Sequence[int], chunks: Sequence[int], programs: Programs
) -> SystemProgram:
    _require_room(graph, system, split)
    wired = lined_up(system, split)
    local, hops = cables(wired, split)
    return schedule_system(shard(graph, split), system.chip, local, hops, contexts=contexts, chunks=chunks,
                           pace=paced(wired, split), programs=programs)


def _require_room(graph: Graph, system: System, split: Split) -> None:
    """Refuse at once what cannot fit: more weights than all chips hold."""
    asked, there = codes(graph), split.chips * sram(system.chip)
    if asked > there:
        raise DoesNotFit(f"weights take {size(asked)}, and {split.chips} chips hold {size(there)}",
                         where=f"system {system.name}", fix="use a larger system (--chips), or a smaller model")
