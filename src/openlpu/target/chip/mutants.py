"""An accepted program in; how many of its one-instruction mutants the referee refuses, and why, out.

None may run to the end with other bits when claims are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError, ProgramError
from openlpu.arch.link import port_queue
from openlpu.arch.system import System
from openlpu.place.host import Step
from openlpu.schedule.program import Claims, SystemProgram
from openlpu.target.chip import pipeline
from openlpu.target.chip.machine import Machine, Trace, resolve, with_claims
from openlpu.target.chip.mutations import Mutant, mutants, trades
from openlpu.target.chip.run import ChipExecutable

HARDWARE, CLAIMS, SAME, OTHER = "hardware", "claims", "same", "other"
OUTCOMES = (HARDWARE, CLAIMS, SAME, OTHER)


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
    count: int = 1000, seed: int = 0, among: str = "",
) -> MutantReport:
    """Break ``queues`` ``count`` times on ``machine``, whose SRAM is as before the run (and is so again afterwards).

    ``outputs``: slices and addresses of the words whose bits are compared with those of the program itself, on every
    chip.  ``among``: how the names of the queues that are broken begin.
    Raises :class:`ProgramError` when the program itself is refused.
    """
    restore = _Restore(machine)
    trace = machine.resolve(queues, claims)
    machine.execute(trace)
    reference = _bits(machine, outputs)
    restore(trace)
    report = MutantReport()
    for mutant in mutants(dict(queues), count, seed, among):
        outcome, other = _classify(machine, mutant, claims, outputs, reference, restore)
        report.counts[mutant.kind, outcome] += 1
        report.silent += outcome == CLAIMS and other
        if outcome == OTHER:
            report.escaped.append(mutant.text)
    return report


def step_mutants(executable: ChipExecutable, step: Step, count: int, seed: int = 0) -> MutantReport:
    """:func:`run_mutants` of a compiled step; its outputs are logits and KV cache."""
    segment = executable.program.segment(step.end - 1, step.chunk)
    executable.write_host_rows(step)
    cache = [item for item in executable.program.resident if item.name.startswith("kv.")]
    places = [(segment.logits.slices, segment.logits.addresses), *((item.slices, item.addresses) for item in cache)]
    slices = np.concatenate([s.ravel() for s, _ in places])
    words = np.concatenate([np.repeat(a, s.shape[1]) for s, a in places])
    return run_mutants(executable.machine, segment.queues, segment.claims, (slices, words), count, seed)


def hop_mutants(system: System, program: SystemProgram, s: int, count: int, seed: int = 0) -> MutantReport:
    """Vectors that trade places on their way from stage ``s`` to the next, ``count`` times at either end, judged
    without values; ``silent`` are those that break no rule and no claim of a stage alone."""
    hops, starts, report = pipeline.hops(system, program), program.starts(0), MutantReport()
    wires = [pipeline.ports(system, program, n, hops) for n in (s, s + 1)]
    claims = [program.stage(n).program.segments[0].claims for n in (s, s + 1)]
    queues = [program.queues(n, 0) for n in (s, s + 1)]
    whole = [resolve(system.chip, *parts) for parts in zip(queues, claims, wires, strict=True)]

    def accepted(end: int, trace: Trace) -> bool:
        here, there = (pipeline.Ends.of(trace if n == end else whole[n]) for n in (0, 1))
        try:
            pipeline.hop(s, here, there, hops[s], starts[s + 1] - starts[s])
        except ProgramError:
            return False
        return True

    assert accepted(0, whole[0]), "the program itself is accepted"
    for end, port in enumerate((program.hops[s].leaves, program.hops[s].arrives)):
        for mutant in trades(queues[end], claims[end], port_queue(port), count, seed):
            outcome = HARDWARE
            try:
                trace = resolve(system.chip, mutant.queues, links=wires[end])
                if accepted(end, trace):
                    outcome = CLAIMS
                    escaped = accepted(end, with_claims(trace, claims[end]))
                    report.silent += not escaped
                    outcome = OTHER if escaped else CLAIMS
            except ProgramError:
                pass
            report.counts[mutant.kind, outcome] += 1
            report.escaped += [mutant.text] * (outcome == OTHER)
    return report


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
        trace = machine.resolve(mutant.queues)
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
        return _bits(machine, outputs)
    except (ProgramError, NumericsError):
        return None
    finally:
        restore(trace)


def _bits(machine: Machine, outputs: tuple[NDArray, NDArray]) -> NDArray[np.uint8]:
    """The words of every chip of the group."""
    return np.stack([machine.peek(*outputs, role=role) for role in range(machine.roles)])
