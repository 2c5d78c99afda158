"""A system in; out come all-reduce, all-gather and broadcast as rounds of sends that are fixed before a program runs.

All three are one plan.  In an all-reduce a chip adds what it receives, in an all-gather it keeps it side by side, and a
broadcast is either with one chip that has anything to give.  Inside a node everyone sends to everyone.  Between groups
every chip with a wire to another group sends its own group's sum there, and what arrives is shared out inside as a sum
of its own: node, global, node for a dragonfly; node, rack, node, global, node, rack, node for racks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import Unsupported
from openlpu.arch.system import System

OWN = -1  # among the rounds that make up a sum: what the chip had to begin with


@dataclass(frozen=True, eq=False)
class Round:
    """Sends of one kind that go at once; columns, one row for each port and part.

    A chip sends the sum of what it received in the rounds ``adds`` (:data:`OWN`: had to begin with).  ``pieces`` counts
    the chips whose contributions are in it.  Rounds of one ``step`` use different wires.  What arrives in a round that
    ``replaces`` is the whole result of that part.
    """

    step: int
    level: int
    adds: tuple[int, ...]
    chip: NDArray[np.int32]
    port: NDArray[np.int8]
    part: NDArray[np.int32]
    pieces: NDArray[np.int32]
    replaces: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """A collective over a tensor cut into ``parts``: a chip's result is the sum of its own and all it received."""

    system: System
    parts: int
    rounds: tuple[Round, ...]

    def cycles(self, vectors: int, *, gather: bool = False) -> int:
        """Closed form, one round after the other: each step a hop, and a slot for every vector but the first.

        ``vectors`` are what one chip contributes; ``gather`` keeps contributions apart instead of adding them,
        which is also the time of a broadcast.
        """
        steps: dict[int, int] = {}
        for r in self.rounds:
            load = self._loads([r], vectors, gather).max(initial=0)
            time = self._hop(r, gather) + (load - 1) * self.system.links[r.level].cycles if load else 0
            steps[r.step] = max(steps.get(r.step, 0), int(time))
        return sum(steps.values())

    def pipelined(self, vectors: int, *, gather: bool = False) -> int:
        """Closed form, vectors streaming through all rounds: every hop once, and the busiest wire's slots."""
        steps: dict[int, int] = {}
        for r in self.rounds:
            steps[r.step] = max(steps.get(r.step, 0), self._hop(r, gather))
        slots = 0
        for level in {r.level for r in self.rounds}:
            load = self._loads([r for r in self.rounds if r.level == level], vectors, gather).max(initial=0)
            slots = max(slots, (int(load) - 1) * self.system.links[level].cycles)
        return sum(steps.values()) + max(slots, 0)

    def _hop(self, r: Round, gather: bool) -> int:
        return self.system.hop(r.level) + (0 if gather else addition(self.system))

    def _loads(self, rounds: Sequence[Round], vectors: int, gather: bool) -> NDArray[np.int64]:
        """Vectors that each port sends in some rounds, [chips * ports]."""
        ports = self.system.wires.peer.shape[1]
        total = np.zeros(self.system.chips * ports, np.int64)
        for r in rounds:
            size = (np.arange(self.parts) + 1) * vectors // self.parts - np.arange(self.parts) * vectors // self.parts
            count = size[r.part] * (r.pieces if gather else 1)
            np.add.at(total, r.chip.astype(np.int64) * ports + r.port, count)
        return total


def addition(system: System) -> int:
    """Cycles from the SRAM next to the edge through the VXM, which adds what 8 chips sent as a tree, and back."""
    chip = system.chip
    way = chip.vxm_position - chip.slice_position(0)
    return chip.latency["read"] + way + 3 * chip.latency["vxm"] + way + chip.latency["write"]


def exchange(system: System, parts: int = 1, holders: Sequence[int] | None = None) -> Plan:
    """The plan in which every chip gets the sum of what ``holders`` have (default: all), in as few hops as there are.

    Part p of a tensor takes the p-th of the parallel wires between two groups, or its share of them.  Raises
    :class:`Unsupported` where some groups are joined by no wire.
    """
    made = _Rounds(system, parts, np.arange(system.chips) if holders is None else np.array(holders))
    if system.spec.shape.kind in ("line", "ring"):
        made.chain(closed=system.spec.shape.kind == "ring")
    elif system.links:
        level = sum(size < system.chips for size in system.sizes) - 1
        if level >= 0:
            made.reduce(level, (OWN,))
    return Plan(system, parts, tuple(made.rounds))


def broadcast(system: System, root: int, parts: int = 1) -> Plan:
    """The plan that brings what one chip has to all chips."""
    return exchange(system, parts, [root])


def scattered(system: System) -> Plan:
    """All-reduce of a node in two hops and a quarter of the volume: chip j adds up part j and sends it to all."""
    shape = system.spec.shape
    if shape.kind != "node" or system.chips < 2:
        raise Unsupported("is no node of several chips", where=system.spec.where, fix="use exchange")
    chip, port = system.wires.ends
    peer = system.wires.peer[chip, port]
    one = np.ones(len(chip), np.int32)
    first = Round(0, 0, (OWN,), chip.astype(np.int32), port.astype(np.int8), peer, one)
    total = Round(1, 0, (OWN, 0), first.chip, first.port, first.chip, one * system.chips, replaces=True)
    return Plan(system, system.chips, (first, total))


def all_reduce(system: System, vectors: int) -> Plan:
    """The faster all-reduce of so many vectors; few vectors take few hops, many take little volume."""
    parts = max(1, min(vectors, parallel(system)))
    plans = [exchange(system, parts)]
    if system.spec.shape.kind == "node" and system.chips > 1:
        plans.append(scattered(system))
    return min(plans, key=lambda plan: plan.cycles(vectors))


def parallel(system: System) -> int:
    """Most wires between two groups: the number of parts that uses them all."""
    made = _Rounds(system, 1, np.arange(0))
    return max((int(made.between(level)[3].max(initial=1)) for level in range(1, len(system.links))), default=1)


class _Rounds:
    """The rounds so far, and for each what arrived: the count of contributions, [chips, parts]."""

    def __init__(self, system: System, parts: int, holders: NDArray[np.int64]) -> None:
        self.system, self.parts, self.rounds = system, parts, list[Round]()
        own = np.zeros((system.chips, parts), np.int32)
        own[holders] = 1
        self.arrived = {OWN: own}

    def reduce(self, level: int, adds: tuple[int, ...]) -> tuple[int, ...]:
        """Sum over all chips of a group of the level above; the terms that then make up a chip's sum."""
        if level == 0:
            chip, port = self._ends(0)
            return (*adds, self._send(0, adds, np.repeat(chip, self.parts), np.repeat(port, self.parts),
                                      np.tile(np.arange(self.parts), len(chip))))
        inside = self.reduce(level - 1, adds)
        chip, port, rank, count = self.between(level)
        part = np.arange(self.parts)
        end, part = np.nonzero(part * count[:, None] // self.parts == rank[:, None])
        across = self._send(level, inside, chip[end], port[end], part)
        return (*inside, *self.reduce(level - 1, (across,)))

    def chain(self, closed: bool) -> None:
        """Along a line both ways to the ends; round a ring both ways half round."""
        count = self.system.chips
        far = (count // 2, (count - 1) // 2) if closed else (count - 1, count - 1)
        for direction, hops in zip((1, 2), far, strict=True):
            chip, port = self._ends(0)
            chip, port = chip[port == direction], port[port == direction]
            adds: tuple[int, ...] = (OWN,)
            for step in range(hops):
                ends = np.repeat(chip, self.parts), np.repeat(port, self.parts)
                adds = (self._send(0, adds, *ends, np.tile(np.arange(self.parts), len(chip)), step),)

    def between(self, level: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The ends of all wires of a level: chip, port, number among the wires between the two groups, their count."""
        chip, port = self._ends(level)
        size = self.system.sizes[level]
        groups = self.system.chips // size
        pair = chip // size * groups + self.system.wires.peer[chip, port] // size
        _, which, count = np.unique(pair, return_inverse=True, return_counts=True)
        outer = self.system.sizes[level + 1] // size if level + 1 < len(self.system.sizes) else groups
        if len(count) != groups * (min(outer, groups) - 1):
            raise Unsupported("not every node is joined to every other: no collective of one hop between nodes",
                              where=self.system.spec.where, fix="use one node, or a system with all nodes joined")
        order = np.argsort(pair, kind="stable")
        rank = np.empty(len(pair), np.int64)
        rank[order] = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
        return chip, port, rank, count[which]

    def _ends(self, level: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        chip, port = self.system.wires.ends
        here = self.system.wires.level[chip, port] == level
        return chip[here], port[here]

    def _send(
        self, level: int, adds: tuple[int, ...], chip: NDArray[np.int64], port: NDArray[np.int64],
        part: NDArray[np.int64], step: int | None = None,
    ) -> int:
        """A round in which those of some ends send that have something to send; its number."""
        held = sum(self.arrived[r] for r in adds)
        assert isinstance(held, np.ndarray), "a round sends something"
        pieces = held[chip, part]
        some = pieces > 0
        chip, port, part, pieces = chip[some], port[some], part[some], pieces[some]
        number = len(self.rounds)
        self.arrived[number] = np.zeros_like(held)
        np.add.at(self.arrived[number], (self.system.wires.peer[chip, port], part), pieces)
        self.rounds.append(Round(number if step is None else step, level, adds, chip.astype(np.int32),
                                 port.astype(np.int8), part.astype(np.int32), pieces))
        return number
