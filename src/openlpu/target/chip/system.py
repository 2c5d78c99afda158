"""The programs of a system's chips in, logits and cycles out: fill all SRAM, pass token after token through the stages.

A link never sends again: a packet with an error that its code cannot correct is flagged, and the host runs the token
once more.  What a token leaves in SRAM is written again with it, so the bits are those of a run without the error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np

from openlpu._base.errors import LinkError, NumericsError, OpenLpuError, ProgramError
from openlpu.arch.system import System, load_system
from openlpu.graph.ir import Graph
from openlpu.partition.names import Local
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.place.host import Step
from openlpu.schedule.program import StageProgram, SystemProgram
from openlpu.schedule.search import lined_up
from openlpu.schedule.system import cables, paced, schedule_system
from openlpu.target.base import F32, Chunk
from openlpu.target.chip import clocks, host, pipeline
from openlpu.target.chip.flow import Fault, Flow, Order, Passage
from openlpu.target.chip.links import Packet, Port
from openlpu.target.chip.machine import Machine, Trace
from openlpu.target.chip.packets import packets, stretches
from openlpu.target.chip.turns import Course, Turns
from openlpu.target.chip.values import Values

REPLAYS = 3  # of one token; an error that is still there is no accident


class SystemExecutable:
    """Chips with a sequence for each of the programs' requests, of which every stage works on another at a time.

    ``cycles``: of the step that was done last, from when it could enter to its logits, replays included; ``replays``
    counts those.  ``flow`` knows the clock of all steps.

    With ``check`` every operand of every token is compared with the programs' claims.
    Raises :class:`ProgramError` when the system has other chips or wires than the program is for.
    """

    def __init__(
        self, program: SystemProgram, params: Mapping[str, np.ndarray], system: System, check: bool = True
    ) -> None:
        self.program, self.system, self.check = program, system, check
        self.stages = [program.stage(s) for s in range(len(program.stages))]
        self.slots = self.stages[0].program.requests
        self.context = min(stage.program.context for stage in self.stages)
        self.cycles, self.replays = program.cycles(0), 0
        self.faults: list[Fault] = []
        self.flow = Flow(program)
        self._traces: dict[int, list[Trace]] = {}
        self._hops = pipeline.hops(system, program)
        self._turns = Turns(self._hops, lambda segment: Course.of(self.traces(segment), program.starts(segment)))
        self.machines = machines(program, params, system)

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        """Logits per chunk, as :meth:`ChipExecutable.run <openlpu.target.chip.run.ChipExecutable.run>`; chunks of
        several requests are under way at once."""
        own: dict[int, list[int]] = {}
        for k, chunk in enumerate(chunks):
            own.setdefault(chunk.slot, []).append(k)
        rows: dict[int, F32] = {}
        for turn in zip_longest(*own.values()):  # a request has one chunk at a time
            orders = {k: self.enter(chunks[k]) for k in turn if k is not None}
            for _ in orders:
                self._next()
            rows |= {k: np.stack(order.rows) for k, order in orders.items()}
        return [rows[k] for k in range(len(chunks))]

    def enter(self, chunk: Chunk) -> Order:
        """A chunk goes into the pipeline; its request must have no other there."""
        assert chunk.slot < self.slots, "the programs have no cache for this request"
        return self.flow.add(chunk, [*host.steps(self.program, chunk)])

    def leave(self) -> tuple[Chunk, F32]:
        """Run all stages, each on another step, until a chunk is out: it, and its logits as of :meth:`run`.

        Raises :class:`LinkError` naming the chip and port of an error that stays.
        """
        order = self._next()
        return order.chunk, np.stack(order.rows)

    def step(self, step: Step, segment: int) -> F32:
        """The logits of one step in the segment of that number."""
        order = self.flow.add(Chunk(step.request, step.start, step.tokens), [(step, segment)])
        assert self._next() is order, "nothing else is under way"
        return order.rows[0]

    def _next(self) -> Order:
        """Turn by turn until a chunk has all its logits.  An error ends everything that is under way."""
        out: Order | None = None
        try:
            while out is None:
                for s, passage in self.flow.turn():
                    if not s:
                        self._turns.enter(passage.start, passage.segment)
                    self._run(s, passage)
                    if s == len(self.stages) - 1 and self._out(passage):
                        out = passage.order
        except OpenLpuError:
            self.flow.clear()
            raise
        return out

    def _run(self, s: int, passage: Passage) -> None:
        """A stage does its part of a step.  A flag is seen at the end: whatever follows goes on with damaged values."""
        machine, trace = self.machines[s], self.traces(passage.segment)[s]
        host.write_rows(machine, self.stages[s].program, passage.step)
        found = [f for f in self.faults
                 if f.position in passage.step.positions and f.stage == s and passage.run < f.times]
        if found and not passage.fault:
            passage.fault = found[0]
        damaged = [_packet(trace, f) for f in found] if self.flow.damaged(passage) else None
        passage.handed = machine.execute(trace, passage.handed, damaged)

    def _out(self, passage: Passage) -> bool:
        """A step is done on the last stage; whether its chunk is."""
        order, fault = passage.order, passage.fault
        if fault and passage.flawed == REPLAYS:
            raise self._broken(fault)
        self.replays += self.flow.leave(passage)
        if fault or passage.void:
            return False
        logits = self._logits(passage.step, passage.segment)
        if order.chunk.every or order.left == 1:
            order.rows.append(logits)
        self.cycles = self.flow.now - passage.ready
        order.left -= 1
        return not order.left

    def _logits(self, step: Step, segment: int) -> F32:
        name = list(self.stages[-1].program.segments[segment].tensors)[-1]
        logits = self.value(len(self.stages) - 1, segment, name)
        if not np.isfinite(logits).all():
            raise NumericsError("a logit is not finite", where=f"position {step.end - 1}")
        return logits

    def _broken(self, fault: Fault) -> LinkError:
        chip = fault.stage * self.program.split.tensor + fault.role
        where = f"position {fault.position}, chip {chip} of system {self.system.name}, {fault.queue}"
        fix = f"map the program onto the spare: the system without chip {self.system.physical[chip]}"
        return LinkError(f"an error that {REPLAYS} replays did not mend", where=where, fix=fix)

    def traces(self, segment: int) -> list[Trace]:
        """Each stage's program in a segment, resolved, and checked against its neighbours."""
        if segment not in self._traces:
            known: dict[tuple[int, tuple[tuple[str, Port], ...]], Trace] = {}
            traces = []
            for s, (number, machine) in enumerate(zip(self.program.stages, self.machines, strict=True)):
                key = number, tuple(machine.links.items())
                if key not in known:
                    claims = self.stages[s].program.segments[segment].claims if self.check else None
                    known[key] = machine.resolve(self.program.queues(s, segment), claims)
                traces.append(known[key])
            self.fit(traces, segment)
            self._traces[segment] = traces
        return self._traces[segment]

    def fit(self, traces: Sequence[Trace], segment: int) -> None:
        """Check the stages against their neighbours, with one token and with a token every interval."""
        starts, groups = self.program.starts(segment), [machine.links for machine in self.machines]
        pipeline.check(traces, starts, self._hops)
        pipeline.check_full(traces, starts, self._hops, groups, self.program.interval(segment))
        pipeline.on_time(len(traces) - 1, traces[-1], self.stages[-1].program.segments[segment])

    def timing(self, segment: int, draws: int = 1000, seed: int = 0) -> clocks.Timing:
        """A token on real clocks and links, see :mod:`openlpu.target.chip.clocks`."""
        traces, starts = self.traces(segment), self.program.starts(segment)
        tensor, links = self.program.split.tensor, [machine.links for machine in self.machines]
        found = packets(self.system, traces, starts, links, tensor)
        spans = stretches(traces, starts, tensor, self.program.interval(segment))
        return clocks.simulate(self.system, found, spans, draws, seed)

    def value(self, stage: int, segment: int, name: str) -> F32:
        """An fp32 value of the last token, by channel, from where a segment of a stage left it on its chips."""
        text: StageProgram = self.stages[stage]
        rows = text.program.segments[segment].tensors[name]
        return host.value(self.machines[stage], [text.rows(rows, role) for role in range(text.tensor)])

    def close(self) -> None:
        """Nothing to release."""


def machines(program: SystemProgram, params: Mapping[str, np.ndarray], system: System) -> list[Machine]:
    """The chips of each stage, wired, their SRAM full.  Raises :class:`ProgramError` when the system has other chips or
    wires than the program is for."""
    if (chip := program.programs[0].program.chip) != system.chip:
        what = f"the program is for chips {chip.name}, these are {system.chip.name}"
        raise ProgramError(what, where=f"system {system.name}", fix="compile the model again")
    hops, values, out = pipeline.hops(system, program), Values(), list[Machine]()
    for s in range(len(program.stages)):
        stage = program.stage(s)
        out.append(Machine(chip, stage.tensor, pipeline.ports(system, program, s, hops), values))
        for role, residents in enumerate(stage.residents):
            host.fill(out[s], residents, Local(params, program.first[s], ()), role)
    return out


def _packet(trace: Trace, fault: Fault) -> Packet:
    code = trace.code
    rows = code.rows("receive")
    rows = rows[code.queue[rows] == code.names.index(fault.queue)]
    assert fault.packet < len(rows), f"{fault.queue} receives {len(rows)} vectors"
    return int(rows[fault.packet]), fault.role


def load(
    graph: Graph, *, slots: int = 1, context: int = 0, system: System | str = "node", split: Split | None = None,
    chunks: Sequence[int] = (),
) -> SystemExecutable:
    """Compile for some chips of a system and load; ``context`` and ``chunks`` as in
    :func:`openlpu.target.chip.run.load`.

    Raises :class:`~openlpu._base.errors.Unsupported` where the model or the system does not allow the split.
    """
    split = split or Split()
    wired = lined_up(load_system(system) if isinstance(system, str) else system, split)
    local, hops = cables(wired, split)
    program = schedule_system(shard(graph, split), wired.chip, local, hops, context=context, pace=paced(wired, split),
                              chunks=chunks, requests=slots)
    return SystemExecutable(program, graph.params, wired)
