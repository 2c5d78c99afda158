"""A chip, or a group of chips that run one program, in; a machine out: SRAM that lasts, programs run token by token.

``machine.load`` is the host writing SRAM, ``machine.run`` one token, ``machine.peek`` the host reading.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.chip import Chip
from openlpu.schedule.program import Claims, Segment
from openlpu.target.chip import claims as claiming
from openlpu.target.chip import fetch as fetching
from openlpu.target.chip import operands as operanding
from openlpu.target.chip import rules
from openlpu.target.chip.code import Code, flatten
from openlpu.target.chip.execute import Run
from openlpu.target.chip.links import Packet, Ports
from openlpu.target.chip.plan import Plan, plan
from openlpu.target.chip.state import State
from openlpu.target.chip.values import Values


@dataclass(frozen=True)
class Trace:
    """A program whose static rules hold: what every operand of every instruction is, what every fetch must bring."""

    code: Code
    operands: operanding.Operands
    pages: fetching.Pages
    expected: claiming.Expected | None = None

    @property
    def cycles(self) -> int:
        """First dispatch to the last result: exact, whatever the values."""
        code = self.code
        return int((code.cycle + code.latency).max() - code.cycle.min()) if len(code) else 0

    @cached_property
    def plan(self) -> Plan:
        """How to run it; made when it first runs."""
        return plan(self.code, self.operands)


def resolve(
    chip: Chip, queues: Mapping[str, NDArray], claims: Claims | None = None, links: Ports | None = None
) -> Trace:
    """Check every rule that does not depend on values; no data is needed.  Raises :class:`ProgramError`.

    ``links``: where the C2C queues of every chip lead; none for a chip alone.
    """
    code = flatten(chip, queues)
    rules.check(code)
    pages = fetching.resolve(code, queues)
    trace = Trace(code, operanding.resolve(code, links or {}), pages)
    return with_claims(trace, claims) if claims is not None else trace


def resolve_segment(chip: Chip, segment: Segment, check: bool = True) -> Trace:
    """:func:`resolve` a segment of one chip, with ``check`` against its claims; it must be done in its cycles, when the
    next step begins."""
    trace = resolve(chip, segment.queues, segment.claims if check else None)
    late = np.flatnonzero(trace.code.done > segment.cycles)
    trace.code.refuse(late, f"is not done in cycle {segment.cycles}, when the next step begins")
    return trace


def with_claims(trace: Trace, claims: Claims) -> Trace:
    """The same program, compared with what was meant."""
    return replace(trace, expected=claiming.check(trace.code, trace.operands, claims))


class Machine:
    """``roles`` chips that run one program: SRAM stays from run to run, all else starts empty in each."""

    def __init__(
        self, chip: Chip, roles: int = 1, links: Ports | None = None, values: Values | None = None
    ) -> None:
        """``values``: tables shared with machines that never run at the same time."""
        self.chip, self.roles, self.links = chip, roles, links or {}
        away = [name for name, port in self.links.items() if not {*port.sources(roles)} <= {*range(roles)}]
        assert not away, f"links {away} lead out of a group of {roles}"
        self.state = State(chip, roles)
        self._values = values or Values()

    def load(self, slices: NDArray, addresses: NDArray, data: NDArray, role: int = 0) -> None:
        """The host writes vectors ``data`` [n, lanes] (uint8 or int8) to words (slices[i], addresses[i]) of a chip."""
        data = np.ascontiguousarray(data).view(np.uint8)
        self._inside(slices, addresses)
        lanes, superlanes = self._part(role)
        self.state.sram[..., lanes][slices, addresses] = data
        self.state.written[..., superlanes][slices, addresses] = True

    def peek(self, slices: NDArray, addresses: NDArray, role: int = 0) -> NDArray[np.uint8]:
        """Vectors uint8 [n, lanes] at words (slices[i], addresses[i]) of a chip; slices and addresses broadcast."""
        self._inside(slices, addresses)
        lanes, superlanes = self._part(role)
        if not self.state.written[..., superlanes][slices, addresses].all():
            raise ProgramError("the host reads a word that was never written", where="peek")
        return self.state.sram[..., lanes][slices, addresses]

    def _part(self, role: int) -> tuple[slice, slice]:
        """Lanes and superlanes of one chip of the group."""
        assert 0 <= role < self.roles, f"a group of {self.roles} has no role {role}"
        lanes, superlanes = (slice(role * n, (role + 1) * n) for n in (self.chip.lanes, self.chip.superlanes))
        return lanes, superlanes

    def resolve(self, queues: Mapping[str, NDArray], claims: Claims | None = None) -> Trace:
        """Check a program for this machine, see :func:`resolve`."""
        return resolve(self.chip, queues, claims, self.links)

    def run(self, queues: Mapping[str, NDArray], claims: Claims | None = None) -> Trace:
        """Run queues once, from cycle 0 to the last result.

        Raises :class:`ProgramError` naming cycle, queue, instruction and (of a group) role when a rule or a claim is
        broken (SRAM is then undefined), :class:`~openlpu._base.errors.NumericsError` when a value stops the step.
        """
        trace = self.resolve(queues, claims)
        self.execute(trace)
        return trace

    def execute(
        self, trace: Trace, arriving: NDArray[np.uint8] | None = None, damaged: Collection[Packet] | None = None
    ) -> NDArray[np.uint8]:
        """Run a resolved program; cheaper than :meth:`run` when the same one runs for many tokens.

        ``arriving``: what the stage before handed over.  Returns what this one hands over: uint8 [n, roles * lanes],
        in order.  ``damaged``: packets in which the link finds an error that it cannot correct, none if the error
        is in an earlier stage; values then stop nothing.
        """
        plan = trace.plan
        self._values.hold(plan.words, plan.bytes, self.roles * self.chip.lanes)
        run = Run(trace.code, trace.operands, plan, trace.pages, self.state, self._values, trace.expected, damaged,
                  self.links)
        return run.all(arriving)

    def _inside(self, slices: NDArray, addresses: NDArray) -> None:
        for value, limit, name in ((slices, self.chip.slices, "slice"), (addresses, self.chip.words_per_slice, "word")):
            value = np.asarray(value)
            if value.size and (value.min() < 0 or value.max() >= limit):
                raise ProgramError(f"{self.chip.name} has {name}s 0..{limit - 1}", where="host access")
