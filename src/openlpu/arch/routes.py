"""Wires in; distances, routes and bisections out, and how to spread a tensor over several routes.

Everything is decided at compile time and is the same every time: of several minimal routes, the one that leaves by the
lowest port.  There is no arbitration on the way, so routes that are used together share no wire in one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.system import System
from openlpu.arch.topology import Wires


def distances(wires: Wires, chip: int) -> NDArray[np.int32]:
    """Hops from every chip to one of them, [chips]; -1 where there is no way."""
    hops = np.full(len(wires.peer), -1, np.int32)
    hops[chip] = 0
    frontier = np.array([chip])
    while len(frontier):
        around = np.unique(wires.peer[frontier])
        around = around[around >= 0]
        new = around[hops[around] < 0]
        hops[new] = hops[frontier[0]] + 1
        frontier = new
    return hops


def contracted(wires: Wires, size: int) -> Wires:
    """The wires between groups of ``size`` chips, each group one router with all their ports."""
    group = np.arange(len(wires.peer) // size)
    peer = wires.peer.reshape(len(group), -1) // size  # -1 stays -1
    inside = peer == group[:, None]
    away = [np.where(inside, -1, part.reshape(peer.shape)) for part in (wires.arrival, wires.level)]
    return Wires(np.where(inside, -1, peer).astype(np.int32), away[0], away[1])


def bisection(system: System) -> tuple[int, ...]:
    """By level: wires between the first half of the outermost groups and the rest.

    Where every group is joined to every other all halves are alike; round a ring none is joined by fewer wires.
    """
    size = next((size for size in reversed(system.sizes) if system.chips > size), 1)
    half = system.chips // size // 2 * size
    across = system.wires.level[:half][system.wires.peer[:half] >= half]
    return tuple(int((across == level).sum()) for level in range(len(system.links)))


def worst_cycles(system: System) -> int:
    """Cycles for one vector between the SRAMs of the two chips that are farthest apart in time.

    Of whole racks wired alike the first speaks for all.
    """
    alike = system.spec.shape.kind == "racks" and not system.dead
    sources = np.arange(min(system.sizes[-1], system.chips) if alike else system.chips)
    hop = np.array([*(system.hop(level) for level in range(len(system.links))), 0])
    no_way = np.iinfo(np.int32).max // 2
    time = np.full((system.chips + 1, len(sources)), no_way, np.int32)  # to each chip; the last row answers for -1
    time[sources, sources] = 0
    while True:
        before = time.copy()
        for port in range(system.wires.peer.shape[1]):
            over = before[system.wires.peer[:, port]] + hop[system.wires.level[:, port], None].astype(np.int32)
            np.minimum(time[:-1], over, out=time[:-1])
        if np.array_equal(time, before):
            return int(time[:-1].max())


@dataclass(frozen=True)
class Route:
    """A way: the chips from first to last, the ports it leaves them by, the cycles of one vector, and of each more."""

    chips: tuple[int, ...]
    ports: tuple[int, ...]
    cycles: int
    slot: int

    def time(self, vectors: int) -> int:
        """Cycles until the last of some vectors has arrived; each is forwarded as it arrives."""
        return self.cycles + (vectors - 1) * self.slot if vectors else 0

    def delivered(self, cycles: int) -> int:
        """Vectors that arrive within some cycles."""
        return max(0, (cycles - self.cycles) // self.slot + 1)


def route(system: System, a: int, b: int) -> Route:
    """The minimal route from chip a to chip b."""
    found = _walk(system, [a], [], distances(system.wires, b), set())
    assert found, "a system is connected"
    return found


def routes(system: System, a: int, b: int) -> list[Route]:
    """Routes from a to b that share no wire: the minimal one, then one by each other neighbour of a.

    Each goes on minimally from its neighbour; shorter ones first, and one that meets a wire in use is left out.  In a
    full node: 1 of one hop and 6 of two.
    """
    hops = distances(system.wires, b)
    first = [int(port) for port in np.flatnonzero(system.wires.peer[a] >= 0)]
    first.sort(key=lambda port: (hops[system.wires.peer[a, port]], port))
    used: set[tuple[int, int]] = set()
    found = []
    for port in first if a != b else ():
        way = _walk(system, [a, int(system.wires.peer[a, port])], [port], hops, used)
        if way and a not in way.chips[1:]:
            used |= set(zip(way.chips, way.ports, strict=False))
            found.append(way)
    return found


def _walk(
    system: System, chips: list[int], ports: list[int], hops: NDArray[np.int32], used: set[tuple[int, int]]
) -> Route | None:
    """Go on from the last chip to where ``hops`` is 0, by the lowest free port each time; None when there is none."""
    wires = system.wires
    while hops[chips[-1]]:
        here = chips[-1]
        peer = wires.peer[here]
        closer = [int(port) for port in np.flatnonzero((peer >= 0) & (hops[peer] < hops[here]))
                  if (here, int(port)) not in used]
        if not closer:
            return None
        ports.append(closer[0])
        chips.append(int(peer[closer[0]]))
    levels = [int(wires.level[chip, port]) for chip, port in zip(chips, ports, strict=False)]
    cycles = sum(system.hop(level) for level in levels)
    return Route(tuple(chips), tuple(ports), cycles, max((system.links[k].cycles for k in levels), default=1))


@dataclass(frozen=True)
class Spread:
    """Some vectors over one or more routes: how many each takes, and the cycles until all have arrived."""

    routes: tuple[Route, ...]
    vectors: tuple[int, ...]
    cycles: int


def spread(ways: list[Route], size: int, vector_bytes: int) -> Spread:
    """The fastest way to send ``size`` bytes over some routes: which of them to use, and for how much.

    A time is enough if the vectors that arrive in it over all routes are enough; the least such time is found by
    bisection.  Small tensors take the first route alone, because their last vector is there before the first one of a
    longer route could be.
    """
    vectors = -(-size // vector_bytes)
    low, high = min(way.cycles for way in ways), ways[0].time(vectors)  # the least time is in low..high
    while low < high:
        middle = (low + high) // 2
        if sum(way.delivered(middle) for way in ways) >= vectors:
            high = middle
        else:
            low = middle + 1
    shares, left = [], vectors
    for way in ways:
        shares.append(min(left, way.delivered(high)))
        left -= shares[-1]
    used = [(way, share) for way, share in zip(ways, shares, strict=True) if share]
    return Spread(tuple(way for way, _ in used), tuple(share for _, share in used), high)
