"""Wires in; out come the tree along which clocks are aligned to chip 0, and how far apart two clocks can be then.

A chip aligns its clock to its parent's over one wire and is at most the link's ``align`` off.  Errors add up along the
tree, so the tree stays inside a node as long as it can, then inside a rack: chips that talk most are aligned best.  Of
equal wires it takes one from where it is shallowest, however chips are numbered.

Between two alignments a chip's program runs on its own clock, which drifts.  :class:`Pace` says how long that may last
and how long setting the clock right takes; everything in whole cycles, because programs depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.topology import Wires

PPM = 100  # millionths, a clock's largest deviation from nominal: what Ethernet-class serial links allow (IEEE 802.3)
STEP = 1  # chosen: cycles by which an epoch's alignment changes a counter at most; the paper makes it configurable
FAR = 2**31  # a path that decides nothing

def drift(cycles: int) -> int:
    """Cycles by which two clocks part in so many, at most."""
    return -(-2 * PPM * cycles // 10**6)


@dataclass(frozen=True)
class Pace:
    """How long the chips of a program may run on their own clocks.

    ``stretch``: cycles after an alignment in which every link's vectors are there in time.  ``path``: cycles that an
    aligned counter is off chip 0's at most, ``epoch`` how often it is aligned.
    """

    stretch: int
    path: int
    epoch: int

    def wait(self, cycles: int) -> int:
        """How long a RUNTIME_DESKEW waits so that it mends what ``cycles`` on the own clock can have put out.

        The program's clock and the counter it is set to run on one oscillator: they part by the steps that alignment
        took meanwhile, and by no more than the drift and what the counter may be off before and after.
        """
        return 1 + min(self._stepped(cycles), drift(cycles) + 2 * self.path)

    def _stepped(self, cycles: int) -> int:
        return STEP * (cycles // self.epoch + 1) + drift(self.epoch)

    @property
    def local(self) -> Pace:
        """What a program needs of it: where the steps decide, chip 0 may be anywhere, and programs of systems of
        different size are the same."""
        return replace(self, path=FAR) if 2 * self.path >= self._stepped(self.stretch) else self


@dataclass(frozen=True, eq=False)
class Tree:
    """By chip: ``parent``, ``port`` of the parent it hangs from, ``level`` of that wire (-1: root), ``depth``."""

    parent: NDArray[np.int32]
    port: NDArray[np.int8]
    level: NDArray[np.int8]
    depth: NDArray[np.int32]

    def path_sums(self, a: NDArray[np.int64], b: NDArray[np.int64], costs: Sequence[int]) -> NDArray[np.int64]:
        """For each pair of chips, the costs of the wires between them in the tree; ``costs`` are by level."""
        cost = np.array([*costs, 0], np.int64)[self.level]  # level -1, the root's, costs nothing
        total = np.zeros(len(a), np.int64)
        a, b = a.copy(), b.copy()
        while (apart := a != b).any():
            up = apart & (self.depth[a] >= self.depth[b])
            total += np.where(up, cost[a], 0)
            a = np.where(up, self.parent[a], a)
            up = apart & ~up
            total += np.where(up, cost[b], 0)
            b = np.where(up, self.parent[b], b)
        return total


def tree(wires: Wires, sizes: Sequence[int], chain: bool = False) -> Tree:
    """The spanning tree from chip 0; ``sizes`` are the chips of the group that a wire of each level leads out of.

    One chip of a group is reached from outside; all others hang from it by wires inside.  ``chain``: nodes form a line,
    and each is reached from its neighbour.  Chips not connected to chip 0 have parent -1 and level -1 as well.
    """
    count = len(wires.peer)
    parent, depth = np.full(count, -1, np.int32), np.zeros(count, np.int32)
    port, level = np.full(count, -1, np.int8), np.full(count, -1, np.int8)
    reached = np.arange(count) == 0
    chip, out = wires.ends
    if chain:
        near = abs(chip // sizes[-1] - wires.peer[chip, out] // sizes[-1]) <= 1
        chip, out = chip[near], out[near]
    peer, kind = wires.peer[chip, out], wires.level[chip, out]
    while True:
        crossing = np.flatnonzero(reached[chip] & ~reached[peer])
        if not len(crossing):
            return Tree(parent, port, level, depth)
        lowest = kind[crossing].min()
        crossing = crossing[kind[crossing] == lowest]
        crossing = crossing[np.argsort(depth[chip[crossing]], kind="stable")]
        _, first = np.unique(peer[crossing] // sizes[lowest], return_index=True)
        take = crossing[first]
        to = peer[take]
        parent[to], port[to], level[to], depth[to] = chip[take], out[take], lowest, depth[chip[take]] + 1
        reached[to] = True


def misaligned(wires: Wires, grown: Tree, align: Sequence[int]) -> tuple[int, ...]:
    """By level: cycles by which the clocks at the two ends of any of its wires can differ."""
    chip, port = wires.ends
    errors = grown.path_sums(chip, wires.peer[chip, port].astype(np.int64), align)
    level = wires.level[chip, port]
    return tuple(int(errors[level == k].max(initial=0)) for k in range(len(align)))


def startup_epochs(grown: Tree, latency: Sequence[float], epoch: int) -> int:
    """Row N2 (ISCA 2022, 3.2): epochs until a start signal from chip 0 has reached every chip.

    A chip forwards it (floor(latency / epoch) + 1) epochs after its parent; ``latency`` is by level.
    """
    wait = [int(cycles // epoch) + 1 for cycles in latency]
    every = np.arange(len(grown.parent))
    return int(grown.path_sums(every, np.zeros_like(every), wait).max())
