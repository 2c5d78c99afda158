"""A collective over all chips of a system in; the one program that all of them run, to the cycle, out.

Inside a node everybody sends to everybody.  Over a dragonfly three hops reach all: inside the node, by the wires to
other nodes, which every chip has some of, and inside the node again.  What lies in which place of a chip is in relative
order, as its wires lead.  A broadcast is an all-reduce in which one chip alone has anything to give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import Unsupported
from openlpu.arch.group import Group, Way, outlets, routes_by
from openlpu.arch.system import System
from openlpu.place.emplace import Source
from openlpu.place.homes import Home, Homes, Resident
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.expression import Op
from openlpu.schedule.fetch import fetched, keep
from openlpu.schedule.program import Claims
from openlpu.schedule.select.codes import chain
from openlpu.schedule.units.c2c import C2c, Cabling
from openlpu.schedule.units.vxm import Vxm
from openlpu.schedule.values import Vec

Ints = NDArray[np.int64]
WORD, BYTE = 4, 1  # planes of a vector of int32, and of bytes
SOME = 64  # vectors up to which the plan with fewest hops may be the faster one


@dataclass(frozen=True)
class Collective:
    """``given[i]``: where vector i of every chip lies before; ``made[i]``: where result i lies in the end, the slices
    of its planes and the address.  ``sources[i]``: of what is gathered, whose it is by role.  ``cycles``: from the
    first dispatch to the last result written."""

    system: System
    ways: tuple[Way, ...]
    queues: dict[str, NDArray]
    claims: Claims
    resident: tuple[Resident, ...]
    given: tuple[Home, ...]
    made: tuple[tuple[tuple[int, ...], int], ...]
    sources: tuple[Ints, ...]
    cycles: int

    @property
    def size(self) -> int:
        """Bytes that a chip gives."""
        return sum(len(home.slices) for home in self.given) * self.system.chip.lanes

    @property
    def words(self) -> tuple[Ints, Ints]:
        """Slices and addresses of all words that are made."""
        at = [(s, address) for slices, address in self.made for s in slices]
        slices, addresses = np.array(at, np.int64).T
        return slices, addresses

    @property
    def bandwidth(self) -> float:
        """Bytes that a chip gives, a second."""
        return self.size / self.system.seconds(self.cycles)


def all_reduce(system: System, vectors: int) -> Collective:
    """Exact int32 sums of so many vectors of every chip, on every chip.

    Few vectors take few hops.  Many, inside a node, take little volume: vector i of each group of ``chips`` is the one
    that the chip in slot i adds up and sends to all.  Raises :class:`Unsupported` where hops do not reach all alike.
    """
    plans: list[Callable[[_Maker], list[Vec]]] = [lambda make: [make.whole(vec) for vec in make.take(vectors, WORD)]]
    if not _Maker(system).across and vectors >= system.chips:
        blocks = -(-vectors // system.chips)
        plans.append(lambda make: make.in_parts(make.take(blocks * system.chips, WORD)))
    return min((_made(system, plan) for plan in (plans if vectors <= SOME else plans[-1:])), key=lambda c: c.cycles)


def all_gather(system: System, vectors: int) -> Collective:
    """So many byte vectors of every chip, on every chip: of each, one after the other, those of all ``sources``."""
    return _made(system, lambda make: [one for vec in make.take(vectors, BYTE) for one in make.gathered(vec)])


def swap(system: System, vectors: int, *, direct: bool = False) -> Collective:
    """So many byte vectors of every chip of a node to the chip that port 1 leads to, each by the route that has it
    there first: the link between the two (``direct``: by no other), or by another chip, which sends on what it got."""
    return _made(system, lambda make: make.swapped(make.take(vectors, BYTE), direct=direct))


def _made(system: System, plan: Callable[[_Maker], list[Vec]]) -> Collective:
    """The program of a plan, its instruction fetches included."""
    make = _Maker(system)
    vecs, asm, homes = plan(make), make.asm, make.homes
    for vec in vecs:
        asm.outputs.extend((s, vec.address, w, False) for s, w in zip(vec.slices, vec.writers, strict=True) if w)
    queues, claims, first, pages = fetched(asm, homes)
    given = tuple(homes.homes[f"given.{i}"] for i in range(make.taken))
    keep(homes, "0", queues, pages)
    homes.sram.require_fit()
    return Collective(system, (*make.local, *make.across), queues, claims, tuple(homes.resident.values()), given,
                      tuple((vec.slices, vec.address) for vec in vecs), make.sources,
                      max(vec.ready for vec in vecs) - first)


class _Maker:
    """A program under construction."""

    def __init__(self, system: System) -> None:
        ways = outlets(system)
        self.local = [way for way in ways if way.link == system.links[0]]
        self.across = [way for way in ways if way.link != system.links[0]]
        self.sources = self._sources(system)
        self.homes, self.taken = Homes(system.chip, ("fewer vectors",)), 0
        self.asm = Assembler(system.chip, self.homes.sram)
        self.vxm = Vxm(self.asm)
        self.c2c = C2c(self.asm, [way.out for way in ways], Cabling(Group(ways, (), ())))

    def _sources(self, system: System) -> tuple[Ints, ...]:
        """Whose vector :meth:`gathered` puts where; refuses wires that do not reach everybody once."""
        every = np.arange(system.chips)
        here = [every, *(every[list(way.source)] for way in self.local)]
        far = [own[list(way.source)] for own in here for way in self.across]
        slots = (*here, *far, *(own[list(way.source)] for own in far for way in self.local))
        if len(slots) != system.chips or (np.sort(slots, axis=0) != every[:, None]).any():
            what = f"its {system.chips} chips do not all reach each other once by a node, a wire and a node, all alike"
            raise Unsupported(what, where=f"system {system.name}",
                              fix="use a node, or a dragonfly in which one wire joins any two nodes (264 chips)")
        return slots

    def take(self, count: int, planes: int) -> list[Vec]:
        """Vectors that lie there before, after those already taken."""
        homes = [self.homes.keep(f"given.{self.taken + i}", Source("zeros"), self.homes.quad_slices()[:planes])
                 for i in range(count)]
        self.taken += count
        return [Vec(home.slices, home.address, 0, (0,) * planes) for home in homes]

    def add(self, vecs: Sequence[Vec]) -> Vec:
        """The sum of int32 vectors."""
        total = chain("add_mod", vecs)
        return self.vxm.evaluate(total) if isinstance(total, Op) else total

    def around(self, vec: Vec, ways: Sequence[Way]) -> list[Vec]:
        """A vector sent by all of some ways; what comes by them."""
        return self.c2c.swap([vec] * len(ways), ways)

    def whole(self, vec: Vec) -> Vec:
        """The sum over all chips, in as few hops as there are."""
        node = self.add([vec, *self.around(vec, self.local)])
        if not self.across:
            return node
        far = self.add(self.around(node, self.across))
        return self.add([node, *self.around(far, self.local), far])

    def in_parts(self, vecs: Sequence[Vec]) -> list[Vec]:
        """The sums over all chips of a node: of ``chips`` vectors each chip adds up the one that its slot 0 has."""
        out, chips = [], len(self.sources)
        for start in range(0, len(vecs), chips):
            own, *others = vecs[start : start + chips]
            total = self.add([*self.c2c.swap(others, self.local), own])
            out += [total, *self.around(total, self.local)]
        return out

    def gathered(self, vec: Vec) -> list[Vec]:
        """The vectors of all chips, in the order of ``sources``."""
        here = [vec, *self.around(vec, self.local)]
        far = [one for own in here for one in self.around(own, self.across)]
        return [*here, *far, *(one for own in far for one in self.around(own, self.local))]

    def swapped(self, vecs: Sequence[Vec], *, direct: bool) -> list[Vec]:
        """What the chip at the end of port 1 has."""
        routes = routes_by(self.local, 1)
        return [self.c2c.over(vec, routes[:1] if direct else routes) for vec in vecs]
