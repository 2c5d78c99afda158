"""A chip in, a machine out: SRAM that lasts, and programs run on it token by token.

``machine.load`` is the host writing SRAM, ``machine.run`` one token, ``machine.peek`` the host reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.chip import Chip
from openlpu.schedule.program import Claims
from openlpu.target.chip import claims as claiming
from openlpu.target.chip import fetch as fetching
from openlpu.target.chip import operands as operanding
from openlpu.target.chip import rules
from openlpu.target.chip.code import Code, flatten
from openlpu.target.chip.execute import Run
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


def resolve(chip: Chip, queues: Mapping[str, NDArray], claims: Claims | None = None) -> Trace:
    """Check every rule that does not depend on values; no data is needed.  Raises :class:`ProgramError`."""
    code = flatten(chip, queues)
    rules.check(code)
    pages = fetching.resolve(code, queues)
    trace = Trace(code, operanding.resolve(code), pages)
    return with_claims(trace, claims) if claims is not None else trace


def with_claims(trace: Trace, claims: Claims) -> Trace:
    """The same program, compared with what was meant."""
    return replace(trace, expected=claiming.check(trace.code, trace.operands, claims))


class Machine:
    """One chip: SRAM contents stay from run to run; all else starts empty in each."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.state = State(chip)
        self._values = Values(0, 0, chip.lanes)

    def load(self, slices: NDArray, addresses: NDArray, data: NDArray) -> None:
        """The host writes vectors ``data`` [n, lanes] (uint8 or int8) to words (slices[i], addresses[i])."""
        data = np.ascontiguousarray(data).view(np.uint8)
        self._inside(slices, addresses)
        self.state.sram[slices, addresses] = data
        self.state.written[slices, addresses] = True

    def peek(self, slices: NDArray, addresses: NDArray) -> NDArray[np.uint8]:
        """Vectors uint8 [n, lanes] at words (slices[i], addresses[i]); slices and addresses broadcast."""
        self._inside(slices, addresses)
        if not self.state.written[slices, addresses].all():
            raise ProgramError("the host reads a word that was never written", where="peek")
        return self.state.sram[slices, addresses]

    def run(self, queues: Mapping[str, NDArray], claims: Claims | None = None) -> Trace:
        """Run queues once, from cycle 0 to the last result.

        Raises :class:`ProgramError` naming cycle, queue and instruction when a rule or a claim is broken (SRAM is
        then undefined), :class:`~openlpu._base.errors.NumericsError` when a value stops the step.
        """
        trace = resolve(self.chip, queues, claims)
        self.execute(trace)
        return trace

    def execute(self, trace: Trace) -> None:
        """Run a resolved program; cheaper than :meth:`run` when the same one runs for many tokens."""
        plan = trace.plan
        if len(self._values.words) < plan.words or len(self._values.bytes) < plan.bytes:
            self._values = Values(plan.words, plan.bytes, self.chip.lanes)
        memory, pages = trace.operands.memory, trace.pages
        Run(trace.code, plan, memory, pages, self.state, self._values, trace.expected).all()

    def _inside(self, slices: NDArray, addresses: NDArray) -> None:
        for value, limit, name in ((slices, self.chip.slices, "slice"), (addresses, self.chip.words_per_slice, "word")):
            value = np.asarray(value)
            if value.size and (value.min() < 0 or value.max() >= limit):
                raise ProgramError(f"{self.chip.name} has {name}s 0..{limit - 1}", where="host access")
