"""The programs of pipeline stages and where they start in; what passes from one to the next checked, out.

Stages are separate programs, but share time: stage s runs its cycle 0 in cycle ``starts[s]`` of the first one.  The
k-th vector that a stage hands over is the k-th that the next one receives, on every role alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np

from openlpu._base.errors import ProgramError
from openlpu.arch.link import port_queue
from openlpu.arch.system import System
from openlpu.schedule.program import SystemProgram
from openlpu.target.chip.links import Port, Ports, again, pair
from openlpu.target.chip.machine import Trace


def check(traces: Sequence[Trace], starts: Sequence[int], hops: Sequence[Port]) -> None:
    """Pair what stage s hands over with what stage s + 1 receives over ``hops[s]``.

    Raises :class:`ProgramError` naming the stages, cycle, queue and instruction where a link over- or underflows.
    """
    ends = [trace.operands.passing for trace in traces]
    traces[0].code.refuse(ends[0].arriving, "receives from a stage before the first")
    traces[-1].code.refuse(ends[-1].handed, "hands over to a stage behind the last")
    for s, port in enumerate(hops):
        sender, receiver = traces[s].code, traces[s + 1].code
        with _named(f"from stage {s} to {s + 1}"):
            pair(sender, ends[s].handed, receiver, ends[s + 1].arriving, port, starts[s + 1] - starts[s])


def check_full(
    traces: Sequence[Trace], starts: Sequence[int], hops: Sequence[Port], groups: Sequence[Ports], interval: int
) -> None:
    """A token may enter every ``interval`` cycles: each stage is done with one when the next comes, and the links keep
    their rules with several under way.  ``groups``: the links of each stage's chips.

    Raises :class:`ProgramError` as :func:`check` does.
    """
    for s, trace in enumerate(traces):
        code, passing = trace.code, trace.operands.passing
        with _named(f"stage {s}, a token every {interval} cycles"):
            done = code.cycle + np.maximum(code.latency, 1) + code.field["delay"]
            code.refuse(np.flatnonzero(done > interval), "is not done when the next token comes")
            for port in groups[s].values():
                own = passing.peer == port.peer
                again(code, passing.sends[own], code, passing.receives[own], port, interval)
    for s, port in enumerate(hops):
        out, into = traces[s].operands.passing.handed, traces[s + 1].operands.passing.arriving
        with _named(f"from stage {s} to {s + 1}, a token every {interval} cycles"):
            again(traces[s].code, out, traces[s + 1].code, into, port, interval, starts[s + 1] - starts[s])


@contextmanager
def _named(stage: str) -> Iterator[None]:
    """Errors say which stage they are about."""
    try:
        yield
    except ProgramError as error:
        raise ProgramError(error.what, where=f"{stage}, {error.where}", fix=error.fix) from error


def hops(system: System, program: SystemProgram) -> list[Port]:
    """The wires from each stage to the next: all roles leave and arrive by one port."""
    tensor = program.split.tensor
    stages = [range(s * tensor, (s + 1) * tensor) for s in range(program.split.stages)]
    return [wired(system, zip(here, there, strict=True), hop.leaves, hop.arrives)
            for (here, there), hop in zip(pairwise(stages), program.hops, strict=True)]


def ports(system: System, program: SystemProgram, stage: int, hops: Sequence[Port]) -> Ports:
    """Where the C2C queues of the chips of a stage lead; raises :class:`ProgramError` when there is no such wire."""
    tensor = program.split.tensor
    first, out = stage * tensor, {}
    for p in range(1, tensor):
        out[port_queue(p)] = wired(system, ((first + r, first + (r ^ p)) for r in range(tensor)), p, p, p)
    if stage < len(hops):
        out[port_queue(program.hops[stage].leaves)] = hops[stage]
    if stage:
        out[port_queue(program.hops[stage - 1].arrives)] = replace(hops[stage - 1], inward=True)
    return out


def wired(system: System, chips: Iterable[tuple[int, int]], leaves: int, arrives: int, peer: int = 0) -> Port:
    """Wires from port ``leaves`` of the first of two chips to port ``arrives`` of the other, for all of ``chips``.

    They must be there and of one class; ``peer`` as in :class:`Port`.
    """
    wires, levels, where = system.wires, set[int](), f"system {system.name}"
    for here, there in chips:
        known = here < system.chips and 0 <= leaves < wires.peer.shape[1]
        if not known or (wires.peer[here, leaves], wires.arrival[here, leaves]) != (there, arrives):
            raise ProgramError(f"port {leaves} of chip {here} does not lead to port {arrives} of chip {there}",
                               where=where)
        levels.add(int(wires.level[here, leaves]))
    if len(levels) > 1:
        raise ProgramError(f"port {leaves} of the chips of a stage leads over cables of different classes", where=where)
    (level,) = levels
    return Port(system.links[level], peer, system.misaligned[level])
