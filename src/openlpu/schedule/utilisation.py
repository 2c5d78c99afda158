"""A token over chips in; how busy each unit and each kind of link is out, alone and with the pipeline full.

Alone, a token's work is spread over all its cycles; with the pipeline full the same work is done every interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from openlpu.arch.isa import BY_NAME
from openlpu.arch.link import Link, port_queue
from openlpu.schedule.program import SystemProgram
from openlpu.schedule.report import dispatched, issue
from openlpu.schedule.tracks import ChipRun, duration, interval

SEND = BY_NAME["send"].opcode


@dataclass(frozen=True)
class Use:
    """``count`` dispatches, or vectors on links, of all chips in a token.

    ``alone``, ``full``: share of what all chips could do in the token's cycles and in the interval between two tokens;
    ``most``: that of the busiest chip or wire, with the pipeline full.
    """

    count: int
    alone: float
    full: float
    most: float


def units(chips: Sequence[ChipRun]) -> dict[str, Use]:
    """Use of each unit that does anything, by name."""
    slots, total, every = issue(chips[0].chip), duration(chips), interval(chips)
    done = _counted(chips, lambda run: dispatched(run.queues))
    return {unit: _use([counts[unit] for counts in done], slots[unit], total, every)
            for unit in sorted(slots) if any(counts[unit] for counts in done)}


def links(system: SystemProgram, segment: int) -> dict[str, Use]:
    """Use of the wires inside stages, one way each, and of those from stage to stage."""
    chips = system.split.tensor
    inside: list[tuple[int, Link]] = []
    between: list[tuple[int, Link]] = []
    for s in range(system.split.stages):
        queues = system.queues(s, segment)
        inside += chips * [(_sent(queues, way.out), way.link) for way in (system.local.ways if system.local else ())]
        between += chips * [(_sent(queues, port_queue(hop.leaves)), hop.link) for hop in system.hops[s : s + 1]]
    total, every = system.cycles(segment), system.interval(segment)
    both = {"inside stages": inside, "to the next stage": between}
    return {name: _wires(wires, total, every) for name, wires in both.items() if wires}


def _counted(chips: Sequence[ChipRun], count: Callable[[ChipRun], Counter[str]]) -> list[Counter[str]]:
    """The counts of each chip; chips with the same instructions are counted once."""
    known: dict[int, Counter[str]] = {}
    return [known[id(run.queues)] if id(run.queues) in known else known.setdefault(id(run.queues), count(run))
            for run in chips]


def _use(counts: Sequence[int], slots: int, total: int, every: int) -> Use:
    """``slots`` things can be done in a cycle by each of those that did ``counts``."""
    done = sum(counts)
    room = slots * len(counts)
    return Use(done, done / (room * total), done / (room * every), max(counts) / (slots * every))


def _sent(queues: Mapping[str, NDArray], queue: str) -> int:
    return int((queues[queue]["op"] == SEND).sum())


def _wires(sent: Sequence[tuple[int, Link]], total: int, every: int) -> Use:
    """Use of wires of which each carries so many vectors over a cable of this kind."""
    taken = [n * link.cycles for n, link in sent]
    return Use(sum(n for n, _ in sent), sum(taken) / (len(sent) * total), sum(taken) / (len(sent) * every),
               max(taken) / every)
