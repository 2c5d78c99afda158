"""Vectors in; the vectors that the other chips of the group sent in the same cycles out.

The chips of a group run one program, so what a chip sends by a way is what it receives by it: the value of another
role, of the same name (arch/group.py).  What comes from a chip that no way leads to, one in between sends on.  A link
takes one byte vector every few cycles; each is received in the cycle in which it is certain to be there, so none waits.

A chip's clock drifts, so a program sets it right before it begins, and again where its links would otherwise be used
too long after that.  Then nothing is on a stream or a link.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from openlpu._base.errors import Unsupported
from openlpu.arch.alignment import Pace
from openlpu.arch.chip import Chip
from openlpu.arch.group import Group, Way
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.program import RESIDENT
from openlpu.schedule.values import Vec

PLANES = 4  # byte planes of an fp32 vector
Passed = tuple[int, int]  # of what goes from stage to stage: the token's place in the chunk, the vector's number
SPARE = 8  # that part of the time that clocks may drift is left to one use of the links


@dataclass(frozen=True)
class Cabling:
    """The links of a stage's chips: ``local`` to each other, and the queues ``next`` and ``previous`` to other stages,
    which take a vector every ``slot`` cycles.  ``pace``: how long the chips may go by their own clocks; ``head``:
    cycles in which a program sets its clock right before it begins.  None, 0 and "" where there is none."""

    local: Group | None = None
    slot: int = 0
    next: str = ""
    previous: str = ""
    pace: Pace | None = None
    head: int = 0


def group_ports(chip: Chip, tensor: int, cabling: Cabling) -> tuple[str, ...]:
    """The queues that send to other roles, a way each.

    Raises :class:`Unsupported` when the chip has too few links for them and for the other stages.
    """
    assert tensor == 1 or cabling.local, "chips of a group are wired"
    ways = cabling.local.ways if cabling.local and tensor > 1 else ()
    ports = tuple(way.out for way in ways)
    inside = dict.fromkeys((*ports, *(way.into for way in ways)))
    used = [name for name in (*inside, cabling.next, cabling.previous) if name]
    missing = [name for name in used if name not in chip.queues]
    if missing or len(set(used)) < len(used):
        what = f"{tensor} chips of a stage and its neighbour stages need {len(used)} links"
        raise Unsupported(what, where=f"chip {chip.name}, c2c_links", fix="use fewer chips in a stage (tensor)")
    return ports


class C2c:
    """The links of one chip."""

    def __init__(self, asm: Assembler, ports: Sequence[str], cabling: Cabling) -> None:
        self.asm, self.ports, self.cabling = asm, tuple(ports), cabling
        self.sent: dict[str, list[int]] = {port: [] for port in ports}  # cycles in which it sends, ascending
        self.turns: dict[tuple[str, int], int] = {}  # of what goes in order: by queue and hop, when the next may go
        if cabling.head:
            asm.hold(self._clock, cabling.head)

    # -- time --------------------------------------------------------------------------------------------------

    @property
    def _clock(self) -> str:
        """The queue that sets the clock right: of a link in use."""
        return (*self.ports, self.cabling.next, self.cabling.previous)[0] or self.cabling.previous

    def _in_time(self) -> None:
        """Before links are used: set the clock right if it has gone by itself for long."""
        asm, pace = self.asm, self.cabling.pace
        if pace and asm.last - asm.floor > pace.stretch - pace.stretch // SPARE:
            asm.hold(self._clock, pace.wait(asm.last + max(asm.chip.latency.values()) - asm.floor))

    # -- inside a group ----------------------------------------------------------------------------------------

    def exchange(self, vec: Vec) -> list[Vec]:
        """The vector of every other role, slot 1 first."""
        self._in_time()
        group = self.cabling.local
        assert group, "chips of a group are wired"
        held, left = {0: vec}, dict(enumerate(group.moves, 1))
        while left:  # a hop: what is there goes to all neighbours who wait for it
            ready = {slot: move for slot, move in left.items() if move[0] in held}
            landed = {slot: _Landing(self.asm, group.ways[number].link.cycles) for slot, (_, number) in ready.items()}
            batches: dict[tuple[int, int, str], dict[int, Way]] = {}
            for slot, (source, number) in ready.items():
                way = group.ways[number]
                batch = source, self.asm.chip.queue_position(way.out), way.link.name
                batches.setdefault(batch, {})[slot] = way
            for (source, x, _), ways in sorted(batches.items(), key=lambda item: item[0]):
                for i in range(len(vec.slices)):
                    self._plane(held[source].plane(i), i, x, {landed[slot]: way for slot, way in ways.items()})
            held |= {slot: landing.vec() for slot, landing in landed.items()}
            left = {slot: move for slot, move in left.items() if slot not in held}
        return [held[slot] for slot in range(1, len(held))]

    def reduce(self, slots: Sequence[Vec], add: Callable[[list[Vec]], Vec]) -> list[Vec]:
        """What :meth:`exchange` does, backwards: of 32-bit vectors, slot p for the role that slot p comes from, those
        that are for this one, its own last; ``add`` makes one of some, where a chip in between sends on."""
        self._in_time()
        group = self.cabling.local
        assert group, "chips of a group are wired"
        arrived: dict[int, list[Vec]] = {slot: [] for slot in range(len(slots))}
        for slot in reversed(group.order):
            parent, number = group.moves[slot - 1]
            vec = add([*arrived[slot], slots[slot]]) if arrived[slot] else slots[slot]
            way = group.back(number)
            landing, x = _Landing(self.asm, way.link.cycles), self.asm.chip.queue_position(way.out)
            for i in range(len(vec.slices)):
                self._plane(vec.plane(i), i, x, {landing: way})
            arrived[parent].append(landing.vec())
        return [*arrived[0], slots[0]]

    def swap(self, vecs: Sequence[Vec], ways: Sequence[Way]) -> list[Vec]:
        """Send a vector by each of some ways, behind what was swapped before; what comes by them."""
        self._in_time()
        return [self._behind(vec, way) for vec, way in zip(vecs, ways, strict=True)]

    def over(self, vec: Vec, routes: Sequence[Sequence[Way]]) -> Vec:
        """Send a vector by that of some routes of one way or two that has it there first, as far as is known, behind
        what went by them before; what comes by it.  A chip in between sends on what it received."""
        self._in_time()
        latency = self.asm.chip.latency
        between = latency["c2c"] + latency["write"] + latency["read"]

        def there(route: Sequence[Way]) -> int:
            ready = self.asm.earliest(vec.plane(0), self.asm.chip.queue_position(route[0].out))
            for hop, way in enumerate(route):
                ready = max(ready, self.turns.get((way.out, hop), 0)) + way.link.latency + between
            return ready

        for hop, way in enumerate(min(routes, key=there)):
            vec = self._behind(vec, way, hop)
        return vec

    def _behind(self, vec: Vec, way: Way, hop: int = 0) -> Vec:
        """Send a vector, the first or the second ``hop`` of its route, behind the last such; what comes."""
        landing, x = _Landing(self.asm), self.asm.chip.queue_position(way.out)
        for i in range(len(vec.slices)):
            after = self.turns.get((way.out, hop), 0)
            self.turns[way.out, hop] = 1 + self._plane(vec.plane(i), i, x, {landing: way}, after)
        return landing.vec()

    def _plane(self, plane: Vec, i: int, x: int, landings: Mapping[_Landing, Way], after: int = 0) -> int:
        """Send one byte plane by some ways of an edge at once, from cycle ``after`` on; land what comes by them.  The
        cycle in which it is sent."""
        timeline, asm = self.asm.timeline, self.asm

        def attempt(cycle: int) -> int | None:
            near = [wait for way in landings.values() if (wait := _wait(self.sent[way.out], cycle, way.link.cycles))]
            if near:
                timeline.later = lambda: max(near)
                return None
            if not all(timeline.queue(way.out, cycle) for way in landings.values()):
                return None
            got = asm.fetch(plane, x, cycle)
            if got is None:
                return None
            for landing, way in landings.items():
                number = asm.emit(way.out, cycle, "send", [(0, got[1][0], False, 0)], stream=got[0])
                edge, arrive = asm.chip.queue_position(way.into), cycle + way.link.latency
                if not landing.plane(way.into, i, edge, arrive, number, way.number, len(landings)):
                    return None
            for landing in landings:
                landing.take()
            return cycle

        sent = asm.search(max(asm.earliest(plane, x), after), attempt)
        for way in landings.values():
            insort(self.sent[way.out], sent)
        return sent

    # -- between stages ----------------------------------------------------------------------------------------

    def hand_over(self, vecs: Mapping[Passed, Vec]) -> int:
        """Send vectors to the next stage, a plane every slot of the link; the cycle of the last send."""
        self._in_time()
        asm, port, slot = self.asm, self.cabling.next, self.cabling.slot
        x = asm.chip.queue_position(port)
        planes = {(*name, i): vec.plane(i) for name, vec in vecs.items() for i in range(PLANES)}

        def attempt(cycle: int) -> tuple[int, list[int]] | None:
            sends = []
            for k, plane in enumerate(planes.values()):
                at = cycle + k * slot
                got = asm.fetch(plane, x, at) if asm.timeline.queue(port, at) else None
                if got is None:
                    return None
                sends.append(asm.emit(port, at, "send", [(0, got[1][0], False, 0)], stream=got[0]))
            return cycle + (len(planes) - 1) * slot, sends

        first = max(asm.earliest(plane, x) - k * slot for k, plane in enumerate(planes.values()))
        last, sends = asm.search(first, attempt)
        asm.passed += [(send, *name) for send, name in zip(sends, planes, strict=True)]
        return last

    def take_over(self, names: Sequence[Passed]) -> dict[Passed, Vec]:
        """Vectors from the stage before, a plane every slot from the first cycle on."""
        asm, port, vecs = self.asm, self.cabling.previous, {}
        x = asm.chip.queue_position(port)
        for k, name in enumerate(names):
            landing = _Landing(asm)
            for i in range(PLANES):
                at = asm.floor + (k * PLANES + i) * self.cabling.slot

                def attempt(cycle: int, landing: _Landing = landing, i: int = i) -> tuple[int, int] | None:
                    if not landing.plane(port, i, x, cycle, RESIDENT):
                        return None
                    return cycle, landing.take()

                taken, number = asm.search(at, attempt)
                assert taken == at, "nothing is in the way of what comes first"
                asm.passed.append((number, *name, i))
            vecs[name] = landing.vec()
        return vecs


def _wait(cycles: list[int], cycle: int, gap: int) -> int:
    """In how many cycles one is at least ``gap`` from each of those given, which ascend, as far as the nearest say."""
    at = bisect_left(cycles, cycle)
    return max((near + gap - cycle for near in cycles[max(at - 1, 0) : at + 1] if abs(near - cycle) < gap), default=0)


WAITS = 8  # cycles at most, the first and those a plane may wait in its link's buffer


class _Landing:
    """A vector that comes plane by plane: the group of slices it is written to, chosen with the first plane.

    ``slot``: cycles from one plane on its link to the next, which finds the link's buffer empty.
    """

    def __init__(self, asm: Assembler, slot: int = 1) -> None:
        self.asm, self.most = asm, min(WAITS, slot)
        self.slices: tuple[int, ...] = ()
        self.address, self.since = -1, 0  # of the row, and from when it may be written
        self.waits = 1  # cycles in which a plane may be received
        self.ready = 0
        self.writers: list[int] = []
        self.trial: tuple[tuple[int, ...], int, int, int, int, int] | None = None

    def plane(
        self, port: str, i: int, x: int, arrive: int, sender: int, peer: int = 0, beside: int = 1
    ) -> bool:
        """Receive plane i by a port at the edge ``x`` and write it, if there is a way; :meth:`take` makes it final.

        ``peer``: the way's number, which the claim names as its part; 0 from another stage.  ``beside``: planes that
        arrive in the same cycle; where fewer groups than that have room, some wait in their link's buffer.
        """
        groups = [self.slices]
        if not self.slices:
            groups = self._groups(x)
            self.waits = self.most if len(groups) < beside else 1
        return any(self._write(port, i, x, arrive + wait, sender, peer, groups) for wait in range(self.waits))

    def _write(
        self, port: str, i: int, x: int, cycle: int, sender: int, peer: int, groups: Sequence[tuple[int, ...]]
    ) -> bool:
        """:meth:`plane` in one cycle."""
        asm, before = self.asm, self.asm.timeline.mark()
        if not asm.timeline.queue(port, cycle):
            return False
        post = cycle + asm.chip.latency["c2c"]
        for slices in groups:
            at = asm.position[slices[i]]
            there, mark = post + abs(at - x), asm.timeline.mark()
            address = self._row(slices, there)
            if address is not None and asm.timeline.memory(slices[i], there, address, write=True):
                stream = asm.timeline.stream_group(1, x, post, at, prefer=asm.turn)
                if stream is not None:
                    number = asm.emit(port, cycle, "receive", [(0, sender, False, peer)], stream=stream)
                    write = asm.emit(f"mem{slices[i]}", there, "write", [(0, number, False, 0)], address=address,
                                     stream=stream)
                    since = self.since if self.slices else asm.temporaries.take(asm.group(slices), there)[1]
                    self.trial = slices, address, since, there, write, number
                    return True
            asm.timeline.undo(mark)
        asm.timeline.undo(before)
        return False

    def _row(self, slices: tuple[int, ...], cycle: int) -> int | None:
        """The address of a row that may be written in a cycle: the vector's own, once its first plane has one."""
        if not self.slices:
            return self.asm.temporaries.find(self.asm.group(slices), cycle)
        return self.address if cycle >= self.since else None

    def _groups(self, x: int) -> list[tuple[int, ...]]:
        """Groups of slices with room for a value inside the token, the nearest first."""
        groups = [self.asm.group_slices(g) for g in self.asm.near(x) if self.asm.temporaries.possible(g)]
        if not groups:
            raise self.asm.sram.does_not_fit("no row is left for a value inside the token")
        return groups

    def take(self) -> int:
        """The plane tried last has its place; the id of its receive."""
        assert self.trial, "a plane was tried"
        self.slices, self.address, self.since, cycle, write, number = self.trial
        self.asm.temporaries.use(self.slices[0], self.address, cycle)
        self.ready = max(self.ready, cycle + self.asm.chip.latency["write"])
        self.writers.append(write)
        return number

    def vec(self) -> Vec:
        """The whole vector."""
        return Vec(self.slices[: len(self.writers)], self.address, self.ready, tuple(self.writers))
