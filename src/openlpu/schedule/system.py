"""The stages of a split and the cables between their chips in; a program per kind of stage out.

Chips set their clocks right before a token, for as long as the programs need; a program that waits longer is the same,
later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import Unsupported
from openlpu.arch.alignment import Pace
from openlpu.arch.chip import Chip
from openlpu.arch.group import Group, joined
from openlpu.arch.link import port_queue, together
from openlpu.arch.system import System
from openlpu.partition.split import Shards, Split
from openlpu.schedule.kinds import Programs
from openlpu.schedule.limit import unless
from openlpu.schedule.program import Hop, StageProgram, SystemProgram
from openlpu.schedule.units.c2c import Cabling


def cables(system: System, split: Split) -> tuple[Group | None, tuple[Hop, ...]]:
    """How the chips of a stage are joined, and the way from each stage to the next, as :func:`schedule_system`
    takes them.

    Role r of stage s is chip ``s * tensor + r``.  Raises :class:`Unsupported` when there are too few chips, when those
    of a stage are not wired alike, or when no wires of one class lead from a stage to the next by one port.
    """
    where = f"system {system.name}"
    if split.chips > system.chips:
        raise Unsupported(f"it has {system.chips} chips and the split needs {split.chips}", where=where,
                          fix="use fewer stages, or a larger system")
    stages = np.arange(split.chips).reshape(split.stages, split.tensor)
    group = joined(system, stages) if split.tensor > 1 else None
    if split.tensor > 1 and not group:
        names = ", ".join(f"{link.name} links" for link in system.links) or "no links"
        what = f"its {names} do not join {split.tensor} chips that follow each other, all of them alike"
        why, fix = _apart(system, stages)
        raise Unsupported(f"{what}: {why}", where=where, fix=fix)
    hops = tuple(_hop(system, here, there) for here, there in pairwise(stages))
    if None in hops:
        s = hops.index(None)
        raise Unsupported(f"no port leads from every chip of stage {s} to stage {s + 1}", where=where,
                          fix="use a split whose stages follow each other inside nodes")
    return group, tuple(hop for hop in hops if hop)


def _apart(system: System, stages: NDArray[np.int64]) -> tuple[str, str]:
    """Why the chips of a stage are no group, and what to do."""
    peer, node = system.wires.peer, system.spec.shape.chips
    if stages.shape[1] <= node:  # a part of a line or a ring, or a whole line: of a node all chips are wired to all
        return ("the first and the last of them have one neighbour among them, at opposite edges of the chip",
                "use a whole ring (--tensor as many as --chips), a system of nodes, or one chip a stage")
    here, there = np.split(stages[0, : 2 * node], 2)
    reached = int(np.isin(peer[here], there).any(axis=1).sum())
    fix = f"use {node} chips a stage or fewer (tensor), or wires as of rack or of dragonfly --chips 16"
    if reached < node:
        return f"only {reached} of the {node} chips of a node are wired to the next node, and each needs to be", fix
    return "the wires from a node to the next leave some chips at one edge and others at the other", fix


def paced(system: System, split: Split) -> Pace | None:
    """How long the chips of a split may go by their own clocks; None for one chip, which has nobody to differ from."""
    if split.chips == 1:
        return None
    stages = np.arange(split.chips).reshape(split.stages, split.tensor)
    group, hops = cables(system, split)
    used = {hop.link for hop in hops} | {*(group.links if group else ())}
    names = [link.name for link in system.links]
    levels = {names.index(link.name) for link in used}
    return system.pace(stages.size, levels)


def _hop(system: System, here: NDArray[np.int64], there: NDArray[np.int64]) -> Hop | None:
    """The first port by which each chip of a stage reaches its counterpart, all alike; None if there is none."""
    wires = system.wires
    for port in np.flatnonzero((wires.peer[here] == there[:, None]).all(axis=0)).tolist():
        levels, arrival = np.unique(wires.level[here, port]).tolist(), wires.arrival[here, port]
        if (arrival == arrival[0]).all():
            return Hop(together(system.links[level] for level in levels), port, int(arrival[0]))
    return None


def schedule_system(
    shards: Shards, chip: Chip, local: Group | None = None, hops: Sequence[Hop] = (), *, context: int = 0,
    contexts: Sequence[int] = (), chunks: Sequence[int] = (), pace: Pace | None = None,
    requests: int = 1, programs: Programs | None = None, worth: Callable[[int, int], bool] | None = None,
) -> SystemProgram:
    """Place and schedule every kind of stage.

    ``local`` joins the chips of a stage, ``hops[s]`` stage s to stage s + 1; ``context`` as in
    :func:`~openlpu.place.layout.place`, as are ``requests``, ``contexts`` the buckets (none given: the usual ones),
    ``chunks`` as in :func:`~openlpu.schedule.step.schedule_stage`.  ``pace``: of the chips' clocks; without it no
    program sets its clock right, and one token can run.  ``programs``: those that are there already; others are added.
    ``worth``: whether a program is wanted whose token takes at least so many cycles, and the time between two so many.
    Raises :class:`~openlpu.schedule.limit.Dearer` where it is not, and what
    :func:`~openlpu.place.layout.place_stage` and :func:`~openlpu.schedule.step.schedule_stage` raise.
    """
    programs = programs or Programs(chip, context, requests)
    watch = unless(worth, chip, hops) if worth else None
    head, more = pace.wait(pace.stretch) if pace else 0, 0
    while True:
        wired = cablings(local, hops, pace, head)
        by_stage = programs.of(shards.stages, wired, tuple(contexts), tuple(chunks), watch)
        while made := listed(shards, by_stage, local, hops, more):
            needed = pace.wait(head + more + made.alone()) if pace else 0
            if needed <= head + more:
                return made
            more = needed - head
        head, more = head + more, 0


def cablings(local: Group | None, hops: Sequence[Hop], pace: Pace | None, head: int) -> list[Cabling]:
    """How each stage is wired, and how long its program sets its clock right before it begins."""
    slot = max((hop.link.cycles for hop in hops), default=0)
    out = [*(port_queue(hop.leaves) for hop in hops), ""]
    into = ["", *(port_queue(hop.arrives) for hop in hops)]
    return [Cabling(local, slot, *queues, pace.local if pace else None, head) for queues in zip(out, into, strict=True)]


def listed(
    shards: Shards, by_stage: Sequence[StageProgram], local: Group | None, hops: Sequence[Hop], more: int
) -> SystemProgram | None:
    """The programs of all stages, each listed once and held ``more`` cycles; None if one cannot be."""
    assert len(hops) == len(shards.stages) - 1, "a hop from each stage to the next"
    alike = {id(program): program for program in by_stage}
    numbers = {key: i for i, key in enumerate(alike)}
    programs = [program.held(more) if more else program for program in alike.values()]
    if None in programs:
        return None
    return SystemProgram(shards.split, tuple(p for p in programs if p), tuple(numbers[id(p)] for p in by_stage),
                         tuple(stage.first for stage in shards.stages), local, tuple(hops))
