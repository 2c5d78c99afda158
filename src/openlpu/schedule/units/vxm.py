"""A tree of VXM operations in; one chain through the ALUs, timed so that operands and latches meet, out."""

from __future__ import annotations

from openlpu.arch.isa import ALU, BYTE, IMM, NONE, QUAD
from openlpu.schedule.assembler import Assembler, Claim
from openlpu.schedule.expression import Op, Step, immediate, latency, steps
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.values import Vec


class Vxm:
    """The vector unit: 16 ALUs per lane in the middle of the chip."""

    def __init__(self, asm: Assembler) -> None:
        self.asm, self.temporaries = asm, asm.temporaries

    @scoped
    def evaluate(self, root: Op, avoid: tuple[int, ...] = ()) -> Vec:
        """Run a tree of VXM operations as one chain through the ALUs; the result as a 32-bit vector."""
        plan = self._without_clashes(steps(root, self.asm.chip))
        x = self.asm.chip.vxm_position
        start = 0
        for step in plan:
            for leaf in (step.op.a, step.op.b):
                if isinstance(leaf, Vec):
                    start = max(start, self.asm.earliest(leaf, x) - step.offset)
        start = max(start, -min(step.offset for step in plan))
        return self.asm.search(start, lambda cycle: self._dispatch(plan, cycle, avoid))

    def _without_clashes(self, plan: list[Step]) -> list[Step]:
        """Copy one of two leaves that would need the same SRAM port in the same cycle."""
        seen: dict[tuple[int, int], Vec] = {}
        moved: dict[int, Vec] = {}
        for step in plan:
            for leaf in (step.op.a, step.op.b):
                if not isinstance(leaf, Vec):
                    continue
                for s in leaf.slices:
                    other = seen.setdefault((s, step.offset), leaf)
                    if (other.slices, other.address) != (leaf.slices, leaf.address) and id(leaf) not in moved:
                        moved[id(leaf)] = self.copy(leaf, avoid=tuple({*other.slices, *leaf.slices}))
        if not moved:
            return plan
        return self._without_clashes(steps(_moved(plan[-1].op, moved, {}), self.asm.chip))

    def copy(self, vec: Vec, avoid: tuple[int, ...] = ()) -> Vec:
        """The same value in another group."""
        return self.evaluate(Op("pass", vec), avoid)

    def _dispatch(self, plan: list[Step], cycle: int, avoid: tuple[int, ...]) -> Vec | None:
        ids: list[int] = []
        alus: list[int] = []
        fetched: dict[tuple[tuple[int, ...], int, int], tuple[int, list[int]]] = {}
        for step in plan:
            at = cycle + step.offset
            alu = self.asm.timeline.alu(at, latency(step.op, self.asm.chip))
            if alu is None:
                return None
            fields: dict[str, int] = {"dst_kind": ALU}
            reads: list[Claim] = []
            for side, operand, child in (("a", step.op.a, step.children[0]), ("b", step.op.b, step.children[1])):
                if not self._operand(side, operand, child, at, fields, reads, ids, alus, fetched):
                    return None
            if step is plan[-1]:
                return self._root(step, f"vxm{alu}", at, reads, fields, avoid)
            ids.append(self.asm.emit(f"vxm{alu}", at, step.op.name, reads, **fields))
            alus.append(alu)
        raise AssertionError("a plan ends with its root")

    def _root(self, step: Step, queue: str, at: int, reads: list[Claim], fields: dict[str, int],
              avoid: tuple[int, ...]) -> Vec | None:
        """The last instruction of a chain, whose result goes to SRAM."""
        number = self.asm.next_id  # taken first: the writes claim it
        self.asm.next_id += 1
        chip = self.asm.chip
        place = self.asm.store(chip.vxm_position, at + latency(step.op, chip), [number] * 4, avoid)
        if place is None:
            return None
        self.asm.emit_as(number, queue, at, step.op.name, reads, {**fields, "dst_kind": QUAD, "dst": place[0]})
        return place[1]

    def _operand(self, side: str, operand: object, child: int | None, at: int, fields: dict[str, int],
                 reads: list[Claim], ids: list[int], alus: list[int],
                 fetched: dict[tuple[tuple[int, ...], int, int], tuple[int, list[int]]]) -> bool:
        """Fill one operand's fields and claims; False if it cannot arrive in time."""
        first = 0 if side == "a" else 4
        if operand is None:
            fields[f"{side}_kind"] = NONE
        elif child is not None:
            fields |= {f"{side}_kind": ALU, side: alus[child]}
            reads.append((first, ids[child], False, 0))
        elif isinstance(operand, Vec):
            key = (operand.slices, operand.address, at)
            if key not in fetched:
                got = self.asm.fetch(operand, self.asm.chip.vxm_position, at)
                if got is None:
                    return False
                fetched[key] = got
            base, sources = fetched[key]
            fields |= {f"{side}_kind": QUAD if len(sources) == 4 else BYTE, side: base}
            reads.extend((first + i, source, False, 0) for i, source in enumerate(sources))
        else:
            assert isinstance(operand, float | int), "an operand is an op, a vector or a number"
            fields |= {f"{side}_kind": IMM, "imm": immediate(operand)}
        return True


def _moved(op: Op, moved: dict[int, Vec], done: dict[int, Op]) -> Op:
    """The same tree with some leaves exchanged; what was shared stays shared."""
    if id(op) not in done:
        swap = [_moved(x, moved, done) if isinstance(x, Op) else moved.get(id(x), x) for x in (op.a, op.b)]
        assert swap[0] is not None, "an op has a first operand"
        done[id(op)] = Op(op.name, swap[0], swap[1])
    return done[id(op)]
