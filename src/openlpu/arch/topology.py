"""A kind of topology and its sizes in, every wire out, as columns by chip and port.

Chips are numbered node by node, nodes rack by rack.  Inside a node, port p of chip i leads to chip i XOR p and arrives
there at port p, so all chips of a node run one program.  Between groups (nodes, or racks) wiring is circulant: where a
port leads depends on how far round the ring of groups it goes, never on the group it starts in.  So a system looks
the same from each of its groups, and turning the ring puts the spare where the dead node is.  In a pipeline each chip
is wired to its counterparts in the next two nodes, so that a dead one can be passed over.  All these wires end at one
edge of the chip, and those to the next and the previous node change places from node to node, so that both ends of one
are the same port: two nodes can work as one of 16 chips, with the wires past a node to the next two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NODE = 8  # chips of a full node
LOCAL_PORTS = NODE - 1  # ports 1 to 7; port 0 is not wired, since i XOR 0 is i
REACH = 4  # rotational: neighbour nodes forward, and backward
RACK_PORTS = 2  # racks: external ports of a chip that stay in its rack

ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)  # bits set in a byte

# The classes of cable of each kind, innermost first: a wire's level is its place here.
LEVELS = {
    "single": (), "line": ("local",), "ring": ("local",), "node": ("local",), "dragonfly": ("local", "global"),
    "rotational": ("local", "rack"), "racks": ("local", "rack", "global"), "pipeline": ("local", "rack", "global"),
}


@dataclass(frozen=True)
class Shape:
    """Kind and sizes: ``chips`` of a node (a line or ring is one node), ``nodes`` of a rack, ``racks``.

    ``ports`` counts the external ports of a chip, ``spares`` the nodes of each rack that stand by.
    """

    kind: str
    chips: int = NODE
    nodes: int = 1
    racks: int = 1
    ports: int = 0
    spares: int = 0

    @property
    def rack(self) -> int:
        """Chips of a rack, spares included."""
        return self.chips * self.nodes

    @property
    def built(self) -> int:
        """Chips in all, spares included."""
        return self.rack * self.racks

    @property
    def usable(self) -> int:
        """Chips that a program may count on."""
        return self.chips * (self.nodes - self.spares) * self.racks

    @property
    def joins(self) -> tuple[Join, ...]:
        """How nodes are joined to nodes and racks to racks, innermost first."""
        first = 1 + LOCAL_PORTS
        nodes = self.nodes * self.racks
        if self.kind == "dragonfly":
            return (Join(self.chips, nodes, first, self.ports, _others(nodes)),)
        if self.kind == "rotational":
            return (Join(self.chips, nodes, first, self.ports, (*range(1, REACH + 1), *range(-REACH, 0))),)
        if self.kind == "pipeline":
            return (Join(self.chips, nodes, first, self.ports, (1, -1, 2, -2), straight=True),)
        if self.kind == "racks":
            outer = self.ports - RACK_PORTS
            return (Join(self.chips, self.nodes, first, RACK_PORTS, _others(self.nodes)),
                    Join(self.rack, self.racks, first + RACK_PORTS, outer, _others(self.racks)))
        return ()

    def resized(self, chips: int) -> Shape | None:
        """The same kind with so many usable chips; None if it is not built so.

        Below a node: part of one.  Else whole nodes, and above a rack whole racks.
        """
        if self.kind == "single" or chips < (2 if self.kind == "ring" else 1):
            return self if self.kind == "single" and chips == 1 else None
        if self.kind in ("line", "ring"):
            return replace(self, chips=chips)
        if chips in (1, 2, 4, NODE):
            return replace(self, chips=chips, nodes=1, racks=1, spares=0)
        rack = NODE * (self.nodes - self.spares)
        if self.kind == "node" or chips % NODE:
            return None
        if len(LEVELS[self.kind]) > 2 and chips > rack:
            return None if chips % rack else replace(self, racks=chips // rack)
        return replace(self, nodes=chips // NODE + self.spares, racks=1)


@dataclass(frozen=True)
class Join:
    """``groups`` of ``size`` chips, each wired to the groups ``steps`` further on; the opposite of a step is one too.

    Of each chip, ``ports`` ports take part, from port ``first`` on.  The groups form a ring, and there are as many
    parallel wires as the ports allow.  ``straight``: they form a line, and each chip is wired to its counterparts.
    """

    size: int
    groups: int
    first: int
    ports: int
    steps: tuple[int, ...]
    straight: bool = False

    @property
    def parallel(self) -> int:
        """Wires from a group along each step."""
        if self.straight:
            return self.size * (self.ports // len(self.steps))
        return self.size * self.ports // len(self.steps) if self.steps else 0

    def opposite(self, k: int) -> int:
        """The number of the step that leads back."""
        back = -self.steps[k]
        return self.steps.index(back if back in self.steps else back % self.groups)


@dataclass(frozen=True, eq=False)
class Wires:
    """Where each port leads: chip and port at the far end and level of the cable, all [chips, ports], -1 for none."""

    peer: NDArray[np.int32]
    arrival: NDArray[np.int8]
    level: NDArray[np.int8]

    @cached_property
    def ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Chip and port of every end of a wire, in order."""
        chip, port = np.nonzero(self.peer >= 0)
        return chip, port

    @cached_property
    def hop_counts(self) -> list[int]:
        """How many ordered pairs of chips are 0, 1, 2 ... hops apart; the last place is the diameter.

        All sources at once: a bit for every pair of chips, so 10,440 chips take 14 MB and about a second.
        """
        chips = np.arange(len(self.peer))
        reach = np.zeros((len(chips) + 1, -(-len(chips) // 64)), np.uint64)  # the last row answers for -1: nothing
        reach[chips, chips // 64] = np.uint64(1) << (chips % 64).astype(np.uint64)
        totals = [0, len(chips)]
        while totals[-1] > totals[-2]:
            grown = reach.copy()
            for port in np.flatnonzero((self.peer >= 0).any(axis=0)):
                grown[:-1] |= reach[self.peer[:, port]]
            reach = grown
            totals.append(int(ONES[reach.view(np.uint8)].sum(dtype=np.int64)))
        return np.diff(totals)[:-1].tolist()

    def among(self, order: NDArray[np.int64]) -> Wires:
        """The wires among some of the chips, renumbered in the order given."""
        place = np.full(len(self.peer) + 1, -1, np.int32)  # the last entry answers for -1
        place[order] = np.arange(len(order))
        peer = place[self.peer[order]]
        arrival, level = self.arrival[order], self.level[order]
        arrival[peer < 0] = level[peer < 0] = -1
        return Wires(peer, arrival, level)

    def same(self, other: Wires) -> bool:
        """Whether every port of every chip leads to the same place: whether one program runs on both."""
        return np.array_equal(self.peer, other.peer) and np.array_equal(self.arrival, other.arrival)


def wires(shape: Shape) -> Wires:
    """All wires of a topology, [built chips, ports]."""
    inner = {"single": 0, "line": 2, "ring": 2}.get(shape.kind, LOCAL_PORTS)
    outer = shape.ports * (1 + any(join.straight for join in shape.joins))  # every second one
    peer = np.full((shape.built, 1 + inner + outer), -1, np.int32)
    made = Wires(peer, np.full(peer.shape, -1, np.int8), np.full(peer.shape, -1, np.int8))
    chip = np.arange(shape.built)
    if shape.kind in ("line", "ring"):
        here = chip if shape.kind == "ring" else chip[:-1]
        there = (here + 1) % shape.built
        _connect(made, shape, here, 1, there, 2)
        _connect(made, shape, there, 2, here, 1)
        return made
    for port in range(1, shape.chips):
        _connect(made, shape, chip, port, chip ^ port, port)
    for join in shape.joins:
        (_wire_straight if join.straight else _wire_ring)(made, shape, join)
    return made


def _others(groups: int) -> tuple[int, ...]:
    """The steps that lead to every other group of a ring."""
    return tuple(range(1, groups))


def _wire_ring(made: Wires, shape: Shape, join: Join) -> None:
    """Wire every group to the groups its steps lead to round the ring.

    A group's ports are counted chip by chip.  Parallel wire t of step number k leaves by port ``t * len(steps) + k`` of
    them, and arrives by the port from which the opposite step leaves.
    """
    group = np.arange(shape.built // join.size)
    place = group % join.groups
    for t in range(join.parallel):
        for k, step in enumerate(join.steps):
            if step % join.groups == 0:
                continue  # in a ring this small the step leads back to where it began
            out, back = t * len(join.steps) + k, t * len(join.steps) + join.opposite(k)
            here = group * join.size + out // join.ports
            there = (group - place + (place + step) % join.groups) * join.size + back // join.ports
            _connect(made, shape, here, join.first + out % join.ports, there, join.first + back % join.ports)


def _wire_straight(made: Wires, shape: Shape, join: Join) -> None:
    """Wire every chip to its counterparts along the line, by every second port: those of an edge.  Of the first two,
    which lead to the next and the previous node, every second node exchanges the parts."""
    chip = np.arange(shape.built)
    odd = chip // join.size % 2
    for first in range(join.first, join.first + join.ports // len(join.steps)):
        leaves = first + 2 * odd, first + 2 - 2 * odd, np.full_like(chip, first + 4), np.full_like(chip, first + 6)
        for k, step in enumerate(join.steps):
            there = chip + step * join.size
            on = (there >= 0) & (there < shape.built)
            _connect(made, shape, chip[on], leaves[k][on], there[on], leaves[join.opposite(k)][there[on]])


def _connect(
    made: Wires, shape: Shape, here: NDArray[np.int64], port: int | NDArray[np.int64], there: NDArray[np.int64],
    arrival: int | NDArray[np.int64],
) -> None:
    """One end of a wire for each chip given; the other end is connected when its turn comes."""
    assert (made.peer[here, port] < 0).all(), "a port takes one wire"
    made.peer[here, port], made.arrival[here, port] = there, arrival
    out_of_rack = here // shape.rack != there // shape.rack
    made.level[here, port] = (here // shape.chips != there // shape.chips) + out_of_rack.astype(np.int8)
