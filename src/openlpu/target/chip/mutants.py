"""An accepted program in; how many of its one-instruction mutants the referee refuses, and why, out.

A mutant differs from the program in one instruction's cycle, stream, direction, address, kind of operand or flag, in
the order of two neighbours, or lacks one instruction.  None may run to the end with other bits when claims are
compared.  Opcodes and constants are left alone: such a mutant is another legal program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError, ProgramError
from openlpu.arch.isa import ALU, BYTE, IMM, QUAD, TABLE
from openlpu.schedule.program import Claims
from openlpu.target.chip.machine import Machine, Trace, resolve, with_claims
from openlpu.target.chip.run import ChipExecutable

Queues = dict[str, NDArray]
HARDWARE, CLAIMS, SAME, OTHER = "hardware", "claims", "same", "other"
OUTCOMES = (HARDWARE, CLAIMS, SAME, OTHER)


@dataclass(frozen=True)
class Mutant:
    """What was changed, in words, and the changed queues."""

    kind: str
    text: str
    queues: Queues


@dataclass
class MutantReport:
    """``counts[kind, outcome]``: refused by *hardware* rules alone, refused only with *claims*, ran with the *same*
    or with *other* bits.  ``silent``: refused with claims, and without them would have ended with other bits.
    ``escaped``: the mutants that ended with other bits although claims were compared.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    silent: int = 0
    escaped: list[str] = field(default_factory=list)

    def outcome(self, outcome: str) -> int:
        """Mutants with this outcome."""
        return sum(n for (_, o), n in self.counts.items() if o == outcome)

    def __str__(self) -> str:
        """A table: a row per kind of mutation, a column per outcome."""
        kinds = sorted({kind for kind, _ in self.counts})
        rows = [("mutation", *OUTCOMES)]
        rows += [(kind, *(str(self.counts[kind, o]) for o in OUTCOMES)) for kind in kinds]
        rows.append(("all", *(str(self.outcome(o)) for o in OUTCOMES)))
        lines = [" ".join(f"{cell:>10}" for cell in row) for row in rows]
        return "\n".join([*lines, f"refused with claims that would have ended with other bits: {self.silent}"])


def run_mutants(
    machine: Machine, queues: Mapping[str, NDArray], claims: Claims, outputs: tuple[NDArray, NDArray],
    count: int = 1000, seed: int = 0,
) -> MutantReport:
    """Break ``queues`` ``count`` times on ``machine``, whose SRAM is as before the run (and is so again afterwards).

    ``outputs``: slices and addresses of the words whose bits are compared with those of the program itself.
    Raises :class:`ProgramError` when the program itself is refused.
    """
    restore = _Restore(machine)
    trace = resolve(machine.chip, queues, claims)
    machine.execute(trace)
    reference = machine.peek(*outputs).copy()
    restore(trace)
    report = MutantReport()
    for mutant in mutants(dict(queues), count, seed):
        outcome, other = _classify(machine, mutant, claims, outputs, reference, restore)
        report.counts[mutant.kind, outcome] += 1
        report.silent += outcome == CLAIMS and other
        if outcome == OTHER:
            report.escaped.append(mutant.text)
    return report


def token_mutants(executable: ChipExecutable, token: int, position: int, count: int, seed: int = 0) -> MutantReport:
    """:func:`run_mutants` of a compiled decode step, at a token and position; its outputs are logits and KV cache."""
    segment = executable.program.segment(position)
    executable.write_host_rows(token, position)
    cache = [item for item in executable.program.resident if item.name.startswith("kv.")]
    places = [(segment.logits.slices, segment.logits.addresses), *((item.slices, item.addresses) for item in cache)]
    slices = np.concatenate([s.ravel() for s, _ in places])
    words = np.concatenate([np.repeat(a, s.shape[1]) for s, a in places])
    return run_mutants(executable.machine, segment.queues, segment.claims, (slices, words), count, seed)


class _Restore:
    """Puts SRAM back to what it was when this was made."""

    def __init__(self, machine: Machine) -> None:
        self.state = machine.state
        self.sram, self.written = machine.state.sram.copy(), machine.state.written.copy()

    def __call__(self, trace: Trace) -> None:
        """Undo what ``trace`` can have written."""
        code, slices = trace.code, trace.operands.memory.dynamic
        self.state.sram[slices], self.state.written[slices] = self.sram[slices], self.written[slices]
        rows = trace.plan.stored
        word = code.number[rows], code.field["address"][rows]
        self.state.sram[word], self.state.written[word] = self.sram[word], self.written[word]


def _classify(
    machine: Machine, mutant: Mutant, claims: Claims, outputs: tuple[NDArray, NDArray], reference: NDArray,
    restore: _Restore,
) -> tuple[str, bool]:
    """The outcome, and whether the bits without claims were others."""
    try:
        trace = resolve(machine.chip, mutant.queues)
    except ProgramError:
        return HARDWARE, False
    bits = _run(machine, trace, outputs, restore)
    if bits is None:
        return HARDWARE, False
    other = not np.array_equal(bits, reference)
    try:
        claimed = with_claims(trace, claims)
    except ProgramError:
        return CLAIMS, other
    if _run(machine, claimed, outputs, restore) is None:
        return CLAIMS, other
    return OTHER if other else SAME, other


def _run(
    machine: Machine, trace: Trace, outputs: tuple[NDArray, NDArray], restore: _Restore
) -> NDArray[np.uint8] | None:
    """Output bits of a run, None when it was refused."""
    try:
        machine.execute(trace)
        return machine.peek(*outputs).copy()
    except (ProgramError, NumericsError):
        return None
    finally:
        restore(trace)


def mutants(queues: Queues, count: int, seed: int) -> Iterator[Mutant]:
    """``count`` mutants, the same for the same seed; every queue is hit as often as any other."""
    rng = np.random.default_rng(seed)
    names = sorted(name for name in queues if len(queues[name]))
    while count:
        name, kind = names[rng.integers(len(names))], KINDS[rng.integers(len(KINDS))]
        i = int(rng.integers(len(queues[name])))
        changed = _MUTATIONS[kind](queues[name].copy(), i, rng)
        if changed is not None:
            text = f"{kind} of instruction {queues[name]['id'][i]} in {name}"
            yield Mutant(kind, text, queues | {name: changed})
            count -= 1


Mutation = Callable[[NDArray, int, np.random.Generator], NDArray | None]


def _cycle(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray:
    delta = int(rng.integers(1, 5))
    earlier = rng.random() < 0.5 and columns["cycle"][i] >= delta
    columns["cycle"][i] = int(columns["cycle"][i]) + (-delta if earlier else delta)
    return columns


def _stream_fields(row: NDArray) -> list[str]:
    """Fields of an instruction that name a stream."""
    i = TABLE[row["op"]]
    if i.unit == "vxm":
        kinds = (("a", "a_kind"), ("b", "b_kind"), ("dst", "dst_kind"))
        return [name for name, kind in kinds if row[kind] in (QUAD, BYTE)]
    return [f.name for f in i.fields if f.name in ("stream", "dst", "map")]


def _pick(names: list[str], rng: np.random.Generator) -> str | None:
    return names[rng.integers(len(names))] if names else None


def _stream(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """Another stream of the same direction: a neighbour, the next quad or any."""
    name = _pick(_stream_fields(columns[i]), rng)
    if name is None:
        return None
    value = int(columns[name][i])
    step = (1, -1, 4, -4, int(rng.integers(1, 32)))[rng.integers(5)]
    columns[name][i] = value // 32 * 32 + (value + step) % 32
    return columns


def _direction(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    name = _pick(_stream_fields(columns[i]), rng)
    if name is None:
        return None
    columns[name][i] ^= 32
    return columns


def _address(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """Another SRAM word, weight buffer group, accumulator or ALU latch."""
    row = columns[i]
    instruction = TABLE[row["op"]]
    names = [f.name for f in instruction.fields if f.name in ("address", "group", "slot")]
    if instruction.unit == "vxm":
        names = [side for side in ("a", "b") if row[f"{side}_kind"] == ALU]
    name = _pick(names, rng)
    if name is None:
        return None
    width = next(f.bits for f in instruction.fields if f.name == name)
    step = (1, -1, int(rng.integers(1, 1 << width)))[rng.integers(3)]
    columns[name][i] = (row[name] + step) % (1 << width)
    return columns


def _kind(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """Another kind of VXM operand or destination."""
    if TABLE[columns[i]["op"]].unit != "vxm":
        return None
    name = ("a_kind", "b_kind", "dst_kind")[rng.integers(3)]
    kinds = IMM if name == "dst_kind" else IMM + 1
    columns[name][i] = (columns[name][i] + rng.integers(1, kinds)) % kinds
    return columns


def _flag(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """The other value of a bit: clear or emit of accumulate, step of load_weights."""
    fields = TABLE[columns[i]["op"]].fields
    name = _pick([f.name for f in fields if f.name in ("clear", "emit", "step")], rng)
    if name is None:
        return None
    columns[name][i] ^= 1
    return columns


def _swap(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """Two neighbours trade places; the cycles stay."""
    if i + 1 == len(columns):
        return None
    cycles = columns["cycle"].copy()
    columns[[i, i + 1]] = columns[[i + 1, i]]
    columns["cycle"] = cycles
    return columns


def _drop(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray:
    return np.delete(columns, i)


_MUTATIONS: Mapping[str, Mutation] = {
    "cycle": _cycle, "stream": _stream, "direction": _direction, "address": _address, "kind": _kind, "flag": _flag,
    "order": _swap, "drop": _drop,
}
KINDS = tuple(_MUTATIONS)
