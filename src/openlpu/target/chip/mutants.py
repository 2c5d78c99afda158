"""An accepted program in; how many of its one-instruction mutants the referee refuses, and why, out.

None may run to the end with other bits when claims are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError, ProgramError
from openlpu.arch.link import port_queue
from openlpu.arch.system import System
from openlpu.place.host import Step
from openlpu.schedule.program import Claims, Program, Segment, SystemProgram
from openlpu.target.chip import host, pipeline
from openlpu.target.chip.machine import Machine, Trace, resolve, with_claims
from openlpu.target.chip.mutations import Mutant, mutants, trades
from openlpu.target.chip.run import ChipExecutable
from openlpu.target.chip.system import SystemExecutable

Words = tuple[NDArray, NDArray]  # slices and addresses
KEPT = ("kv.", "state.")  # what a step leaves for later ones

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


@dataclass(frozen=True)
class Subject:
    """A program that is broken on ``machine``, whose SRAM is as before the run (and is so again afterwards).

    ``outputs``: the words whose bits are compared with those of the program itself, on every chip; so is what it hands
    over to the next stage.  ``arriving``: what the stage before handed over.  ``beside`` raises
    :class:`ProgramError` where the program does not fit those of the stages beside it.
    """

    machine: Machine
    queues: Mapping[str, NDArray]
    claims: Claims
    outputs: Words
    arriving: NDArray[np.uint8] | None = None
    beside: Callable[[Trace], None] = lambda trace: None

    def run(self, trace: Trace) -> list[NDArray[np.uint8]]:
        """What is compared, of a run."""
        handed = self.machine.execute(trace, self.arriving)
        return [handed, *(self.machine.peek(*self.outputs, role=role) for role in range(self.machine.roles))]


def run_mutants(subject: Subject, count: int = 1000, seed: int = 0, among: str = "") -> MutantReport:
    """Break a program ``count`` times; ``among``: how the names of the queues that are broken begin.

    Raises :class:`ProgramError` when the program itself is refused.
    """
    trace = subject.machine.resolve(subject.queues, subject.claims)
    subject.beside(trace)
    restore = _Restore(subject.machine)
    reference = subject.run(trace)
    restore(trace)
    report = MutantReport()
    for mutant in mutants(dict(subject.queues), count, seed, among):
        outcome, other = _classify(subject, mutant, reference, restore)
        report.counts[mutant.kind, outcome] += 1
        report.silent += outcome == CLAIMS and other
        if outcome == OTHER:
            report.escaped.append(mutant.text)
    return report


def step_of(executable: ChipExecutable, step: Step, segment: Segment | None = None) -> Subject:
    """A step of one chip: a decoder's in the smallest segment that has room, or the sweep of an encoder that is given.

    What is compared is all that it leaves: logits, and the KV cache of every request or an encoder's states."""
    segment = segment or executable.program.segment(step.end - 1, step.chunk)
    executable.write_host_rows(step)
    return Subject(executable.machine, segment.queues, segment.claims, _left(executable.program, segment))


def stage_of(executable: SystemExecutable, s: int, step: Step, segment: int = 0) -> Subject:
    """Stage ``s`` of a step, behind the stages before it, which run here; it must fit those beside it."""
    arriving, traces = None, executable.traces(segment)
    for machine, stage in zip(executable.machines[: s + 1], executable.stages, strict=False):
        host.write_rows(machine, stage.program, step)
    for machine, trace in zip(executable.machines[:s], traces, strict=False):
        arriving = machine.execute(trace, arriving)
    program = executable.stages[s].program
    made = program.segments[segment]

    def beside(trace: Trace) -> None:
        executable.fit([*traces[:s], trace, *traces[s + 1 :]], segment)

    queues = executable.program.queues(s, segment)
    return Subject(executable.machines[s], queues, made.claims, _left(program, made), arriving, beside)


def _left(program: Program, segment: Segment) -> Words:
    """The words that a step leaves: the segment's last value, and what lasts."""
    lasting = [item for item in program.resident if item.name.startswith(KEPT)]
    places = [(segment.logits.slices, segment.logits.addresses), *((item.slices, item.addresses) for item in lasting)]
    return np.concatenate([s.ravel() for s, _ in places]), np.concatenate([np.repeat(a, s.shape[1]) for s, a in places])


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
    subject: Subject, mutant: Mutant, reference: list[NDArray[np.uint8]], restore: _Restore
) -> tuple[str, bool]:
    """The outcome, and whether the bits without claims were others."""
    try:
        trace = subject.machine.resolve(mutant.queues)
        subject.beside(trace)
    except ProgramError:
        return HARDWARE, False
    bits = _run(subject, trace, restore)
    if bits is None:
        return HARDWARE, False
    other = not all(map(np.array_equal, bits, reference))
    try:
        claimed = with_claims(trace, subject.claims)
        subject.beside(claimed)
    except ProgramError:
        return CLAIMS, other
    if _run(subject, claimed, restore) is None:
        return CLAIMS, other
    return OTHER if other else SAME, other


def _run(subject: Subject, trace: Trace, restore: _Restore) -> list[NDArray[np.uint8]] | None:
    """Output bits of a run, None when it was refused."""
    try:
        return subject.run(trace)
    except (ProgramError, NumericsError):
        return None
    finally:
        restore(trace)
