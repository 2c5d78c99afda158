"""Trees of VXM operations in; one chain through the ALUs, timed so that operands and latches meet, out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from openlpu.arch.isa import ALU, BYTE, IMM, NONE, QUAD
from openlpu.schedule.assembler import Assembler, Claim
from openlpu.schedule.expression import (
    Again,
    Arrival,
    Later,
    Op,
    Operand,
    Part,
    Relay,
    Step,
    Taken,
    comes,
    immediate,
    latency,
    leaves,
    relay,
    steps,
)
from openlpu.schedule.opened import Opened, exchanged, on_the_way
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.values import Vec


@dataclass(frozen=True)
class Want:
    """A result that goes to SRAM: not to some slices, and to a hemisphere if ``side`` says which; ``close``: as near to
    the VXM as can be, because it goes on to the other hemisphere.  ``keep`` False: it is only computed, for the error
    that it may be; ``later``: what it is the tree of."""

    op: Op
    avoid: tuple[int, ...] = ()
    side: int | None = None
    keep: bool = True
    close: bool = False
    later: Later | None = None


@dataclass
class Trial:
    """What an attempt to dispatch a plan has so far: per step the id and the ALU, or the stream on which the result
    goes to another unit; operands that were fetched; results that were stored, by their want, and what they are of."""

    ids: list[int] = field(default_factory=list)
    alus: list[int] = field(default_factory=list)
    sent: dict[int, Taken] = field(default_factory=dict)
    taken: dict[tuple[object, int], list[Taken]] = field(default_factory=dict)
    made: dict[int, Vec] = field(default_factory=dict)
    stored: dict[int, Vec] = field(default_factory=dict)


Coming = Arrival | Relay | Part  # from another unit
Made = list[Vec] | dict[Coming, Vec]  # results, or what has come by way of SRAM before they could be made


class Vxm:
    """The vector unit: 16 ALUs per lane in the middle of the chip."""

    def __init__(self, asm: Assembler) -> None:
        self.asm, self.temporaries = asm, asm.temporaries
        self.came: dict[Coming, Vec] = {}  # by way of SRAM, for what did not go straight then

    def evaluate(self, root: Op, avoid: tuple[int, ...] = (), side: int | None = None) -> Vec:
        """Run a tree of VXM operations as one chain through the ALUs; the result as a 32-bit vector."""
        return self.results([Want(root, avoid, side)])[0]

    def sides(self, spread: Sequence[Op], single: Sequence[Op] = (), checks: Sequence[Op] = ()) -> list[Vec]:
        """Results of some trees at once: the first have a twin in the other hemisphere, ``checks`` are not kept."""
        wants = [Want(op, side=side) for op in spread for side in (0, 1)]
        made = self.results([*wants, *map(Want, single), *(Want(op, keep=False) for op in checks)])
        count = 2 * len(spread)
        return [*(replace(made[i], twin=made[i + 1]) for i in range(0, count, 2)), *made[count:]]

    def later(self, root: Op) -> Later:
        """The result of a tree, made when it is read first."""
        made = Later(root, self._finish)
        for leaf in leaves(root):
            if isinstance(leaf, Later) and leaf.vec is None:
                leaf.reader = made
        return made

    def results(self, wants: Sequence[Want]) -> list[Vec]:
        """Run some trees at once, each part that they share once; the results that are kept, as 32-bit vectors.  What
        they read that is not made yet is made, too.

        Where two operands would want the same port in every cycle, those from other units come by way of SRAM, and
        where two results would, each is made by itself.  Raises :class:`~openlpu._base.errors.DoesNotFit`."""
        return self._all(wants)

    def after(self, x: Vec | Later, cycles: int) -> Operand:
        """What is read a second time, so many cycles after the first: handed from ALU to ALU if it is made in the same
        chain."""
        step = self.asm.chip.latency["vxm"]
        if isinstance(x, Vec) or x.vec or cycles % step:
            return x.made() if isinstance(x, Later) else x
        same: Operand = x
        for _ in range(cycles // step):
            same = Op("pass", same)
        return same

    def passing(self, root: Op, checks: Sequence[Op] = ()) -> Later:
        """Likewise, of what goes straight to other units if it can; else it lies in both hemispheres.  ``checks`` are
        computed beside."""
        return Later(root, self._spread, passing=True, checks=checks)

    def _finish(self, later: Later) -> None:
        self._all([], later)

    def _spread(self, later: Later) -> None:
        later.vec = self.sides([later.op], checks=later.checks)[0]

    def _all(self, wants: Sequence[Want], own: Later | None = None) -> list[Vec]:
        """:meth:`results`, and one that is made later."""
        trees: list[Operand] = [*(want.op for want in wants), *([own] if own else [])]
        ahead = on_the_way(trees)
        made = self._opened(wants, own, straight=True) if ahead else {}
        if isinstance(made, dict):
            before, self.came = self.came, self.came | made
            for later in ahead:
                later.made()
            made = self._opened(wants, own)
            self.came = before
        assert isinstance(made, list), "what comes by way of SRAM comes"
        return made

    def _opened(self, wants: Sequence[Want], own: Later | None, *, straight: bool = False) -> Made:
        """Likewise; ``straight``: with what goes to other units on its way, if it can."""
        opened = Opened([*(want.op for want in wants), *([own] if own else [])], straight=straight)
        whole = [replace(want, op=opened.tree(want.op)) for want in wants]
        opened.operand(own)
        laters = [Want(tree, later=later) for later, tree in reversed(opened.fresh.values())]  # the outermost first
        checks = [Want(check, keep=False) for check in opened.checks]
        every = _exchanged([*whole, *laters, *checks], {id(x): vec for x, vec in self.came.items()})
        made = (self._straight if straight else self._made)(every)
        if isinstance(made, dict):
            return made
        count = len(made) - len(laters)
        for want, vec in zip(laters, made[count:], strict=True):
            assert want.later, "it is the tree of something"
            want.later.vec = vec
            self.temporaries.stay(vec)
        return made[:count]

    @scoped
    def _straight(self, wants: Sequence[Want]) -> Made:
        """The results of trees of which something goes to other units on its way, unless that has to wait; then what
        has come by way of SRAM meanwhile, for it comes once."""
        came: dict[Coming, Vec] = {}
        found = self._sought(wants, PATIENCE)
        if found is None and any(self._alone(wants)) and not self._possible(wants):
            eased = self._eased(wants)
            came = {} if eased else {x: x.kept() for x in self._alone(wants)}
            found = self._sought(eased or _exchanged(wants, {id(x): vec for x, vec in came.items()}), PATIENCE)
        return came if found is None else found

    @scoped
    def _made(self, wants: Sequence[Want]) -> list[Vec]:
        """The results of trees of which nothing is made later."""
        found = self._sought(wants)
        if found is None and (eased := self._eased(wants)):
            found = self._sought(eased)
        if found is None:
            wants = self._kept(wants)
            found = self._sought(wants)
        if found is None and len(wants) > 1:
            return [vec for want in wants for vec in self._made([want])]
        if found is None and (parts := [x for x in (wants[0].op.a, wants[0].op.b) if isinstance(x, Op)]):
            # A tree of more ALUs than there are in a cycle: what its last op reads is made before.
            below = {id(x): self._made([Want(x)])[0] for x in parts}
            return self._made(_exchanged(wants, below))
        if found is None:
            raise self.asm.sram.does_not_fit("no row is left where a value inside the token could be written")
        return found

    def _eased(self, wants: Sequence[Want]) -> list[Want] | None:
        """The same with a vector read two cycles earlier, so that what comes from other units can have its port; None
        where that does not help."""
        for leaf in dict.fromkeys(_operands(steps([want.op for want in wants], self.asm.chip))):
            if isinstance(leaf, Vec):
                eased = _exchanged(wants, {id(leaf): Op("pass", leaf)})
                if self._possible(eased):
                    return eased
        return None

    def _kept(self, wants: Sequence[Want]) -> list[Want]:
        """The same with what comes from other units by way of SRAM."""
        return _exchanged(wants, {id(x): x.kept() for x in self._alone(wants)})

    def _alone(self, wants: Sequence[Want]) -> Iterator[Coming]:
        """What comes from other units but for what they make of what comes to them straight."""
        read = dict.fromkeys(_operands(steps([want.op for want in wants], self.asm.chip)))
        return (x for x in read if comes(x) and not _sent(x))

    def _sought(self, wants: Sequence[Want], trials: int | None = None) -> list[Vec] | None:
        plan = self._without_clashes(wants)
        start, reads = self._start(plan), self._first_reads(plan, wants)
        if start is None:
            return None
        return self.asm.sought(start, lambda cycle: self._dispatch(plan, wants, cycle), reads, trials)

    def _possible(self, wants: Sequence[Want]) -> bool:
        """Whether some cycle would do, where everything is free."""
        plan = self._without_clashes(wants)
        return self.asm.possible(lambda cycle: self._dispatch(plan, wants, cycle))

    def _start(self, plan: Sequence[Step]) -> int | None:
        """The first cycle in which all that a plan reads can be there; None where something would have to come
        twice."""
        x = self.asm.chip.vxm_position
        start, came = -min(step.offset for step in plan), dict[int, int]()
        for step in plan:
            for leaf in (step.op.a, step.op.b):
                if isinstance(leaf, Vec):
                    start = max(start, self.asm.earliest(leaf, x) - step.offset)
                elif comes(leaf):
                    if came.setdefault(id(leaf), step.offset) != step.offset:
                        return None  # what comes from a unit comes once
                    start = max(start, leaf.earliest() - step.offset)
        return start

    def _first_reads(self, plan: Sequence[Step], wants: Sequence[Want]) -> list[tuple[int, int, int]]:
        """The reads that are tried before anything else has a place."""
        x, out = self.asm.chip.vxm_position, []
        for step in plan:
            for leaf in (step.op.a, step.op.b):
                if isinstance(leaf, Vec):
                    out += self.asm.ports(leaf, x, step.offset)
            if step.root is not None and wants[step.root].keep:
                break
        return list(dict.fromkeys(out))

    def _without_clashes(self, wants: Sequence[Want]) -> list[Step]:
        """A plan in which of two leaves that would need the same SRAM port in the same cycle the one that can be had
        first passes ALUs before, so that it is read earlier.  Of two it is always the same one, or they would give
        way to each other for ever."""
        x = self.asm.chip.vxm_position
        while True:
            plan = steps([want.op for want in wants], self.asm.chip)
            clash = self._clash(plan)
            if clash is None:
                return plan
            first = min(clash, key=lambda vec: (self.asm.earliest(vec, x), vec.slices, vec.address))
            wants = _exchanged(wants, {id(first): Op("pass", first)})

    def _clash(self, plan: Sequence[Step]) -> tuple[Vec, Vec] | None:
        """Two leaves that want the same port in the same cycle."""
        x, seen = self.asm.chip.vxm_position, dict[tuple[int, int], Vec]()
        for step in plan:
            for operand in (step.op.a, step.op.b):
                if isinstance(operand, Vec):
                    leaf = self.asm.closest(operand, x)
                    for s in leaf.slices:
                        other = seen.setdefault((s, step.offset), operand)
                        there = self.asm.closest(other, x)
                        if (there.slices, there.address) != (leaf.slices, leaf.address):
                            return operand, other
        return None

    def copy(self, vec: Vec, avoid: tuple[int, ...] = ()) -> Vec:
        """The same value in another group; of a byte plane the byte plane."""
        same = self.evaluate(Op("pass", vec), avoid)
        return same if len(vec.slices) > 1 else same.plane(0)

    def _dispatch(self, plan: list[Step], wants: Sequence[Want], cycle: int) -> list[Vec] | None:
        trial, chip = Trial(), self.asm.chip
        for number, step in enumerate(plan):
            at = cycle + step.offset
            alu = self.asm.timeline.alu(at, latency(step.op, chip))
            if alu is None:
                return None
            fields: dict[str, int] = {"dst_kind": ALU}
            reads: list[Claim] = []
            for side, operand, child in (("a", step.op.a, step.children[0]), ("b", step.op.b, step.children[1])):
                if not self._operand(side, operand, child, at, fields, reads, trial):
                    return None
            want, made = wants[step.root] if step.root is not None else None, self.asm.next_id
            if want and want.keep:
                vec = self._root(step, f"vxm{alu}", at, reads, fields, want)
                if vec is None:
                    return None
                trial.made[step.root or 0] = vec
                if want.later:
                    trial.stored[id(want.later)] = vec
            elif step.to is not None:
                post, edge = at + latency(step.op, chip), chip.sxm_position(step.to)
                base = self.asm.timeline.stream_group(4, chip.vxm_position, post, edge)
                if base is None:
                    return None
                trial.sent[number] = base, [(made, part) for part in range(4)]
                self.asm.emit(f"vxm{alu}", at, step.op.name, reads, **{**fields, "dst_kind": QUAD, "dst": base})
            else:
                self.asm.emit(f"vxm{alu}", at, step.op.name, reads, **fields)
            trial.ids.append(made)
            trial.alus.append(alu)
        return [trial.made[i] for i, want in enumerate(wants) if want.keep]

    def _root(self, step: Step, queue: str, at: int, reads: list[Claim], fields: dict[str, int],
              want: Want) -> Vec | None:
        """The last instruction of a chain, whose result goes to SRAM."""
        number = self.asm.next_id  # taken first: the writes claim it
        self.asm.next_id += 1
        chip = self.asm.chip
        post = at + latency(step.op, chip)
        place = self.asm.store(chip.vxm_position, post, [number] * 4, want.avoid, want.side, close=want.close)
        if place is None:
            return None
        self.asm.emit_as(number, queue, at, step.op.name, reads, {**fields, "dst_kind": QUAD, "dst": place[0]})
        return place[1]

    def _operand(self, side: str, operand: Operand | None, child: int | None, at: int, fields: dict[str, int],
                 reads: list[Claim], trial: Trial) -> bool:
        """Fill one operand's fields and claims; False if it cannot arrive in time."""
        first = 0 if side == "a" else 4
        if operand is None:
            fields[f"{side}_kind"] = NONE
        elif child is not None and isinstance(operand, Op):
            fields |= {f"{side}_kind": ALU, side: trial.alus[child]}
            reads.append((first, trial.ids[child], False, 0))
        elif isinstance(operand, float | int):
            fields |= {f"{side}_kind": IMM, "imm": immediate(operand)}
        else:
            assert not isinstance(operand, Op | Later), "an op that is read was dispatched before, what is later opened"
            whole, number = (operand.whole, operand.number) if isinstance(operand, Part) else (operand, 0)
            if isinstance(whole, Again):
                whole = trial.stored[id(whole.later)]
            key = ((whole.slices, whole.address) if isinstance(whole, Vec) else id(whole), at)
            taken = trial.taken.get(key) or self._arrival(whole, at, None if child is None else trial.sent[child])
            if taken is None:
                return False
            trial.taken[key] = taken
            base, sources = taken[number]
            fields |= {f"{side}_kind": QUAD if len(sources) == 4 else BYTE, side: base}
            reads.extend((first + i, writer, False, part) for i, (writer, part) in enumerate(sources))
        return True

    def _arrival(self, operand: Vec | Arrival | Relay, at: int, data: Taken | None) -> list[Taken] | None:
        """What passes the VXM in a cycle: from SRAM, or straight from another unit, which may make it of data that the
        VXM sent."""
        if isinstance(operand, Relay):
            return operand.arrive(at, data)
        if not isinstance(operand, Vec):
            found = operand.arrive(at)
            return found and [found]
        got = self.asm.fetch(operand, self.asm.chip.vxm_position, at)
        return [(got[0], [(number, 0) for number in got[1]])] if got else None


def _operands(plan: Sequence[Step]) -> Iterator[Operand]:
    """What the ops of a plan read, each as often as it is read."""
    return (x for step in plan for x in (step.op.a, step.op.b) if x is not None)


def _sent(x: Operand) -> bool:
    """Whether another unit makes it of what comes to it straight."""
    unit = relay(x)
    return unit is not None and not isinstance(unit.source, Vec)


def _exchanged(wants: Sequence[Want], leaves: Mapping[int, Operand]) -> list[Want]:
    """The same with some leaves exchanged; what was shared stays shared."""
    done: dict[int, Operand] = {}
    return [replace(want, op=exchanged(want.op, leaves, done)) for want in wants]


PATIENCE = 12  # cycles for which what goes straight to another unit is tried; by way of SRAM it takes less then
