"""The chips of a stage and their wires in; by which ways each gets what every other has, all running one program, out.

One program for all means that a way leads out of every chip alike: by way g role r takes what role ``r XOR g`` sent,
as the ports of a node lead, or role ``r + g`` round a ring.  Cables of several classes may lead a way in different
stages: all wait for the slowest.  Where no wire leads between two roles, a chip in between sends on what it received;
routes are minimal, and of equal ones the way with the least to carry is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.link import Link, port_queue, together
from openlpu.arch.system import System

Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Way:
    """A wire into every chip of a group: at port ``arrives[r]`` role r takes what role ``source[r]`` sent by its port
    ``leaves[source[r]]``.

    Ports of different roles are at the same edge of the chip, so a program names the queue of role 0's; ``number``
    tells ways apart.
    """

    number: int
    link: Link
    source: tuple[int, ...]
    leaves: tuple[int, ...]
    arrives: tuple[int, ...]

    @property
    def out(self) -> str:
        """The queue that sends."""
        return port_queue(self.leaves[0])

    @property
    def into(self) -> str:
        """The queue that receives."""
        return port_queue(self.arrives[0])


@dataclass(frozen=True)
class Group:
    """How the chips of a stage exchange a vector each.

    After that slot p of role r holds what role ``sources[p][r]`` had; slot 0 is its own.  ``moves[p - 1]`` fills slot
    p: the slot whose vector is sent, and the index in ``ways`` of the way that it takes.
    """

    ways: tuple[Way, ...]
    sources: Table
    moves: tuple[tuple[int, int], ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The slots from 1 on, none before the one whose vector fills it."""
        out = [0]
        for slot in out:
            out += [to for to, (source, _) in enumerate(self.moves, 1) if source == slot]
        return tuple(out[1:])

    def back(self, number: int) -> Way:
        """The way by which a vector goes back to who sent it by way ``number``."""
        there = self.ways[number].source
        found = [way for way in self.ways if all(way.source[there[r]] == r for r in range(len(there)))]
        assert found, "wires lead both ways"
        return found[0]

    @property
    def links(self) -> tuple[Link, ...]:
        """The cables it uses."""
        return tuple(dict.fromkeys(way.link for way in self.ways))


def relative(chips: int, ring: bool = False) -> Table:
    """Whose vector lies in slot p of role r, [p][r]: of role r XOR p, or round a ring of role r + p."""
    return tuple(tuple((r + p) % chips if ring else r ^ p for r in range(chips)) for p in range(chips))


def joined(system: System, stages: NDArray[np.int64]) -> Group | None:
    """The group that the chips of every stage [stages, tensor] form alike; None where their wires allow none."""
    chips = stages.shape[1]
    for sources in (relative(chips), relative(chips, ring=True)):
        found = (_way(system, stages, number, source) for number, source in enumerate(sources) if number)
        ways = [way for way in found if way]
        moves = _moves(ways, sources)
        if moves is not None:
            used = sorted({way for _, way in moves})
            again = tuple((slot, used.index(way)) for slot, way in moves)
            return Group(tuple(ways[i] for i in used), sources, again)
    return None


def outlets(system: System) -> tuple[Way, ...]:
    """Every port by which all chips of a system are wired alike, as a way; its number is the port's."""
    wires, found = system.wires, []
    for port in range(1, wires.peer.shape[1]):
        peer, arrival, level = (column[:, port].tolist() for column in (wires.peer, wires.arrival, wires.level))
        if min(peer) >= 0 and len({*arrival}) == len({*level}) == 1:
            source = np.argsort(peer).tolist()
            found.append(Way(port, system.links[level[0]], tuple(source), (port,) * len(peer), tuple(arrival)))
    return tuple(found)


def routes_by(ways: Sequence[Way], port: int) -> list[tuple[Way, ...]]:
    """Of the ways of a node, by port: that of a port; then those of two ways to the same chip, each by another one."""
    by = {way.number: way for way in ways}
    return [(by[port],), *((by[q], by[q ^ port]) for q in by if q != port and q ^ port in by)]


def _way(system: System, stages: NDArray[np.int64], number: int, source: tuple[int, ...]) -> Way | None:
    """Wires from role ``source[r]`` to role r, all leaving at one edge and arriving at one."""
    wires, options = system.wires, []
    for role, sender in enumerate(source):
        here, there = stages[:, sender], stages[:, role]
        own: dict[tuple[tuple[int, ...], str, str], tuple[int, int]] = {}
        for port in np.flatnonzero((wires.peer[here] == there[:, None]).all(axis=0)).tolist():
            level, arrival = wires.level[here, port], wires.arrival[here, port]
            if (arrival == arrival[0]).all():
                edges = tuple(np.unique(level).tolist()), port_queue(port)[3], port_queue(int(arrival[0]))[3]
                own.setdefault(edges, (port, int(arrival[0])))
        options.append(own)
    alike = next((edges for edges in options[0] if all(edges in own for own in options)), None)
    if alike is None:
        return None
    leaves, arrives = [0] * len(source), [0] * len(source)
    for role, sender in enumerate(source):
        leaves[sender], arrives[role] = options[role][alike]
    return Way(number, together(system.links[level] for level in alike[0]), source, tuple(leaves), tuple(arrives))


def _moves(ways: Sequence[Way], sources: Table) -> tuple[tuple[int, int], ...] | None:
    """How each slot from 1 on is filled, in as few hops as there are; None if one cannot be."""
    slots = {source: slot for slot, source in enumerate(sources)}
    hops, reached, load = {0: 0}, [0], [0] * len(ways)
    moves: dict[int, tuple[int, int]] = {}
    while reached:
        found: dict[int, list[tuple[int, int]]] = {}
        for slot in reached:
            for way, step in enumerate(ways):
                to = slots[tuple(sources[slot][sender] for sender in step.source)]
                if to not in hops:
                    found.setdefault(to, []).append((slot, way))
        reached = sorted(found)
        for slot in reached:
            hops[slot] = 1 + hops[found[slot][0][0]]
            moves[slot] = min(found[slot], key=lambda move: (load[move[1]], move[1]))
            load[moves[slot][1]] += 1
    return tuple(moves[slot] for slot in range(1, len(sources))) if len(moves) == len(sources) - 1 else None
