"""Chunks of several requests in; which step each stage of a pipeline runs in a turn, and when it began, out.

In a turn every stage works on another step, and what leaves a stage is what the next one takes.  A prompt's steps
enter one behind the other, those of several requests by turns; nothing here runs anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from openlpu.place.host import Step
from openlpu.schedule.program import SystemProgram
from openlpu.target.base import F32, Chunk


@dataclass(frozen=True)
class Fault:
    """An error in the ``packet``-th vector (from 0) that a chip receives from ``queue`` during the step of a position,
    ``times`` runs of it in a row."""

    position: int
    stage: int
    role: int
    queue: str
    packet: int = 0
    times: int = 1


@dataclass(eq=False)
class Order:
    """A chunk under way: its steps that have not entered, and the logits that were made."""

    chunk: Chunk
    todo: deque[Passage] = field(default_factory=deque)
    left: int = 0  # steps without logits yet
    rows: list[F32] = field(default_factory=list)


@dataclass(eq=False)
class Passage:
    """One step's way through the stages.

    Cycles on the system's clock: it could enter in ``ready``, and did in ``start``.  ``run`` counts the runs before
    it, ``flawed`` those of them with a ``fault`` of their own.  ``fault``: what a link found in this one; ``void``: it
    reads what an earlier step with a fault left, so it runs again too.
    ``handed``: what the stage that it left handed over.
    """

    order: Order
    step: Step
    segment: int
    ready: int = -1
    start: int = 0
    run: int = 0
    flawed: int = 0
    fault: Fault | None = None
    void: bool = False
    handed: NDArray[np.uint8] | None = None

    def again(self) -> Passage:
        """The same, to run once more."""
        flawed = self.flawed + bool(self.fault)
        return replace(self, run=self.run + 1, flawed=flawed, fault=None, void=False, handed=None)


class Flow:
    """The stages of a program as places in a row.  ``now``: the cycle in which the last step left, since the first one
    entered; ``steps``: how many left."""

    def __init__(self, program: SystemProgram) -> None:
        self.now, self.steps = 0, 0
        self._gap, self._cycles = cache(program.gap), cache(program.cycles)
        self._waiting: deque[Order] = deque()
        self._stages: list[Passage | None] = [None] * program.split.stages
        self._before: Passage | None = None

    def add(self, chunk: Chunk, steps: Sequence[tuple[Step, int]]) -> Order:
        """A chunk in ``steps``, each with the number of its segment, waits to enter from now on."""
        order = Order(chunk, left=len(steps))
        order.todo.extend(Passage(order, step, segment) for step, segment in steps)
        order.todo[0].ready = self.now
        self._waiting.append(order)
        return order

    def turn(self) -> list[tuple[int, Passage]]:
        """Every step moves on by a stage; which stage now runs which, the last first."""
        self._stages = [self._enter(), *self._stages[:-1]]
        return [(s, passage) for s, passage in reversed(list(enumerate(self._stages))) if passage]

    def leave(self, passage: Passage) -> int:
        """A step is done on the last stage.  With a fault, it and the steps of its order behind it enter again; how
        many."""
        self.now = passage.start + self._cycles(passage.segment)
        self.steps += 1
        if passage.void or not passage.fault:
            return 0
        order, last = passage.order, len(self._stages) - 1
        void = [p for p in self._stages[last::-1] if p and p.order is order and not p.void]
        order.todo.extendleft(p.again() for p in reversed(void))
        for p in void:
            p.void = True
        if order not in self._waiting:
            self._waiting.appendleft(order)
        return len(void)

    def damaged(self, passage: Passage) -> bool:
        """Whether its values are no tokens': it or a step of its order in front of it has a fault."""
        ahead = self._stages[self._stages.index(passage) :]
        return passage.void or any(p.fault for p in ahead if p and p.order is passage.order)

    def clear(self) -> None:
        """Nothing is under way any more."""
        self._waiting.clear()
        self._stages = [None] * len(self._stages)

    def _enter(self) -> Passage | None:
        """The next step of the order whose turn it is, as early as every stage can take it."""
        if not self._waiting:
            return None
        order = self._waiting.popleft()
        passage, before = order.todo.popleft(), self._before
        if order.todo:
            self._waiting.append(order)
        earliest = before.start + self._gap(before.segment, passage.segment) if before else 0
        passage.start = max(earliest, self.now if passage.run else passage.ready)
        passage.ready = passage.start if passage.ready < 0 else passage.ready
        self._before = passage
        return passage
