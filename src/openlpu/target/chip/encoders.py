"""The programs of an encoder's stages in, hidden states and cycles out: a sequence after the other on all chips."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from openlpu.arch.system import System, load_system
from openlpu.graph.ir import Graph
from openlpu.partition.split import Split
from openlpu.schedule.encoders import Turn, busy, part_of, passage, spread
from openlpu.schedule.program import SystemProgram
from openlpu.schedule.sweeps import step
from openlpu.target.base import F32, Chunk
from openlpu.target.chip import host, pipeline
from openlpu.target.chip.links import Port, Ports
from openlpu.target.chip.machine import Trace, resolve
from openlpu.target.chip.pipeline import Ends
from openlpu.target.chip.system import machines
from openlpu.target.chip.value_free import Checked, checked, ends_of


class SystemEncoder:
    """Chips that run an encoder, a sequence at a time; ``cycles``: of the one before, known before it runs.

    Every operand of every step is compared with the programs' claims, every link's rules are checked.
    Raises :class:`~openlpu._base.errors.ProgramError` as :func:`openlpu.target.chip.system.machines` does.
    """

    def __init__(self, program: SystemProgram, params: Mapping[str, np.ndarray], system: System) -> None:
        self.program, self.slots = program, 1
        self.context = program.stage(0).program.context
        self.cycles = passage(program, 1).cycles
        self.machines = machines(program, params, system)
        self._hops = pipeline.hops(system, program)
        self._traces: dict[tuple[int, int], Trace] = {}
        self._joined: set[tuple[int, int]] = set()

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        """Hidden states [n, hidden] of each sequence, all of them or the last."""
        out = []
        for chunk in chunks:
            assert not chunk.start and not chunk.slot, "an encoder takes a sequence whole, one at a time"
            way, handed = passage(self.program, len(chunk.tokens)), np.zeros(0, np.uint8)
            for before, turn in zip((None, *way.turns), way.turns, strict=False):
                if before and before.stage < turn.stage:
                    self._check(before, turn)
                handed = self._step(turn, chunk, handed)
            self.cycles = way.cycles
            last = host.hidden(self.machines[-1], self.program.stage(-1), len(chunk.tokens))
            out.append(last[0 if chunk.every else -1 :])
        return out

    def _step(self, turn: Turn, chunk: Chunk, arriving: np.ndarray) -> np.ndarray:
        """Run a step; what it hands over."""
        machine, program = self.machines[turn.stage], self.program.stage(turn.stage).program
        said = step(chunk.tokens, chunk.types, turn.number, part_of(self.program, turn).chunk)
        host.write_rows(machine, program, said)
        trace = self._trace(turn)
        takes = len(trace.operands.passing.arriving) > 0
        return machine.execute(trace, arriving if takes else None)

    def _trace(self, turn: Turn) -> Trace:
        """The program of a stage's sweep, resolved and checked."""
        s, segment = turn.stage, turn.segment
        if (s, segment) not in self._traces:
            trace = self.machines[s].resolve(self.program.queues(s, segment), part_of(self.program, turn).claims)
            _fits(self.program, turn, trace, self.machines[s].links)
            self._traces[s, segment] = trace
        return self._traces[s, segment]

    def _check(self, here: Turn, there: Turn) -> None:
        """The link over which one sweep hands over to the other."""
        if (key := (here.stage, here.segment)) not in self._joined:
            sent, taken = (Ends.of(self._trace(turn)) for turn in (here, there))
            over(self.program, here, there, sent, taken, self._hops[here.stage])
            self._joined.add(key)

    def close(self) -> None:
        """Nothing to release."""


def over(program: SystemProgram, here: Turn, there: Turn, sent: Ends, taken: Ends, port: Port) -> None:
    """Check what a step hands over to one of the next stage, chunk after chunk as fast as both take them.

    Raises :class:`~openlpu._base.errors.ProgramError` as :func:`openlpu.target.chip.pipeline.check` does.
    """
    shift, pace = there.start - here.start, max(busy(program, here), busy(program, there))
    pipeline.hop(here.stage, sent, taken, port, shift)
    pipeline.hop_full(here.stage, sent, taken, port, shift, pace)


def check_sweeps(
    system: System, program: SystemProgram, stages: Collection[int], contexts: Collection[int]
) -> Iterator[Checked]:
    """As :func:`openlpu.target.chip.value_free.check_system`: every sweep of these stages in the buckets of some
    contexts, equal ones once, and the links to the stages beside them."""
    hops, done = pipeline.hops(system, program), set[tuple[object, ...]]()
    ports = [pipeline.ports(system, program, s, hops) for s in range(program.split.stages)]
    for context in contexts:
        way = passage(program, context)
        for turn in way.turns:
            kind = program.stages[turn.stage], turn.segment, *ports[turn.stage].items()
            if turn.stage in stages and kind not in done:
                done.add(kind)
                yield _checked(program, turn, ports[turn.stage])
        for here, there in pairwise(way.turns):
            near = {here.stage, there.stage} & {*stages}
            if here.stage < there.stage and near and (here.stage, context) not in done:
                done.add((here.stage, context))
                sent, taken = (ends_of(program, t.stage, t.segment, ports[t.stage]) for t in (here, there))
                over(program, here, there, sent, taken, hops[here.stage])


def _checked(program: SystemProgram, turn: Turn, ports: Ports) -> Checked:
    start, s, stage = time.perf_counter(), turn.stage, program.stage(turn.stage)
    part = part_of(program, turn)
    with pipeline.named(f"stage {s}"):
        trace = resolve(stage.program.chip, program.queues(s, turn.segment), part.claims, ports)
    _fits(program, turn, trace, ports)
    return checked((s,), part, stage.tensor, trace, time.perf_counter() - start)


def _fits(program: SystemProgram, turn: Turn, trace: Trace, ports: Ports) -> None:
    """Nothing comes from before the first stage or goes beyond the last; one step is done when the next begins."""
    ends, s = Ends.of(trace), turn.stage
    pipeline.closed(ends if s == 0 else None, ends if s == program.split.stages - 1 else None)
    pipeline.stage_full(s, ends, ports, busy(program, turn))


def load(
    graph: Graph, *, context: int = 0, system: System | str = "node", split: Split | None = None, chunk: int = 0,
) -> SystemEncoder:
    """Compile for some chips of a system and load; ``context`` and ``chunk`` as in
    :func:`openlpu.schedule.encoders.schedule_system`."""
    wired = load_system(system) if isinstance(system, str) else system
    found = spread(graph, wired, split or Split(), context, chunk)
    return SystemEncoder(found.program, graph.params, found.system)
