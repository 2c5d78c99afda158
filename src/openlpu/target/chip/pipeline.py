"""The programs of pipeline stages and where they start in; what passes from one to the next checked, out.

Stages are separate programs, but share time: stage s runs its cycle 0 in cycle ``starts[s]`` of the first one.  The
k-th vector that a stage hands over is the k-th that the next one receives, on every role alike, and both programs must
claim that it is the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.group import Group, Way
from openlpu.arch.link import port_queue, together
from openlpu.arch.system import System
from openlpu.schedule.program import Segment, SystemProgram
from openlpu.target.chip.code import Code, Ints
from openlpu.target.chip.links import Passing, Port, Ports, again, pair
from openlpu.target.chip.machine import Trace

TOLD = "plane {2} of vector {1} of the token in place {0}"


@dataclass(frozen=True)
class Ends:
    """A stage as its neighbours see it: instructions, of which those on links matter, what they send and take, and what
    that is claimed to be (None: not compared)."""

    code: Code
    passing: Passing
    claimed: NDArray | None = None

    @classmethod
    def of(cls, trace: Trace) -> Ends:
        """Of a resolved stage."""
        return cls(trace.code, trace.operands.passing, trace.expected.passed if trace.expected else None)

    def names(self, rows: Ints) -> list[tuple[int, ...]]:
        """The claimed (place, vector, plane) of what sends or receives carry."""
        assert self.claimed is not None, "there are claims"
        found = {number: tuple(name) for number, *name in self.claimed.tolist()}
        missing = [int(row) for row in rows if int(self.code.id[row]) not in found]
        self.code.refuse(np.array(missing[:1], np.int64), "what it passes is not claimed")
        return [found[int(self.code.id[row])] for row in rows]


def check(traces: Sequence[Trace], starts: Sequence[int], hops: Sequence[Port]) -> None:
    """Pair what stage s hands over with what stage s + 1 receives over ``hops[s]``.

    Raises :class:`ProgramError` naming the stages, cycle, queue and instruction where a link over- or underflows.
    """
    ends = [Ends.of(trace) for trace in traces]
    closed(ends[0], ends[-1])
    for s, port in enumerate(hops):
        hop(s, ends[s], ends[s + 1], port, starts[s + 1] - starts[s])


def closed(first: Ends | None, last: Ends | None) -> None:
    """Nothing comes from before the first stage, or goes beyond the last."""
    if first:
        first.code.refuse(first.passing.arriving, "receives from a stage before the first")
    if last:
        last.code.refuse(last.passing.handed, "hands over to a stage behind the last")


def hop(s: int, here: Ends, there: Ends, port: Port, shift: int) -> None:
    """What :func:`check` does, of stages ``s`` and s + 1, the second of which starts ``shift`` cycles later."""
    with named(f"from stage {s} to {s + 1}"):
        pair(here.code, here.passing.handed, there.code, there.passing.arriving, port, shift)
        if here.claimed is not None and there.claimed is not None:
            _same(here, there)


def _same(here: Ends, there: Ends) -> None:
    """Every receive takes what it is claimed to take."""
    out, into = here.passing.handed, there.passing.arriving
    for send, receive, sent, taken in zip(out, into, here.names(out), there.names(into), strict=True):
        if sent != taken:
            what = f"takes {TOLD.format(*sent)}, sent by [{here.code.where(int(send))}]; claimed is"
            there.code.refuse(np.array([receive]), f"{what} {TOLD.format(*taken)}")


def check_full(
    traces: Sequence[Trace], starts: Sequence[int], hops: Sequence[Port], groups: Sequence[Ports], interval: int
) -> None:
    """A token may enter every ``interval`` cycles: each stage is done with one when the next comes, and the links keep
    their rules with several under way.  ``groups``: the links of each stage's chips.

    Raises :class:`ProgramError` as :func:`check` does.
    """
    ends = [Ends.of(trace) for trace in traces]
    for s, end in enumerate(ends):
        stage_full(s, end, groups[s], interval)
    for s, port in enumerate(hops):
        hop_full(s, ends[s], ends[s + 1], port, starts[s + 1] - starts[s], interval)


def stage_full(s: int, end: Ends, group: Ports, interval: int) -> None:
    """What :func:`check_full` does, of stage ``s``; here all its instructions matter."""
    code, passing = end.code, end.passing
    with named(f"stage {s}, a token every {interval} cycles"):
        code.refuse(np.flatnonzero(code.done > interval), "is not done when the next token comes")
        for port in group.values():
            own = passing.peer == port.peer
            again(code, passing.sends[own], code, passing.receives[own], port, interval)


def on_time(s: int, trace: Trace, segment: Segment) -> None:
    """The last stage ``s`` has written all logits when its segment says so."""
    code, logits = trace.code, segment.logits
    places = logits.slices * code.chip.words_per_slice + logits.addresses[:, None]
    writes = code.rows("write")
    own = writes[np.isin(code.number[writes] * code.chip.words_per_slice + code.field["address"][writes], places)]
    with named(f"stage {s}"):
        code.refuse(own[code.done[own] > segment.cycles], f"logits are promised in cycle {segment.cycles}")


def hop_full(s: int, here: Ends, there: Ends, port: Port, shift: int, interval: int) -> None:
    """What :func:`check_full` does, of the way from stage ``s`` to stage s + 1."""
    with named(f"from stage {s} to {s + 1}, a token every {interval} cycles"):
        again(here.code, here.passing.handed, there.code, there.passing.arriving, port, interval, shift)


@contextmanager
def named(stage: str) -> Iterator[None]:
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
    first, out = stage * program.split.tensor, {}
    if program.local:
        out |= inside(system, program.local, first)
    if stage < len(hops):
        out[port_queue(program.hops[stage].leaves)] = hops[stage]
    if stage:
        out[port_queue(program.hops[stage - 1].arrives)] = replace(hops[stage - 1], inward=True)
    return out


def inside(system: System, group: Group, first: int = 0) -> dict[str, Port]:
    """Where the queues of a group lead, the chips from ``first`` on; raises as :func:`ports` does."""
    return {way.into: _joined(system, first, way) for way in group.ways}


def _joined(system: System, first: int, way: Way) -> Port:
    """The wires of a way, into every chip of the stage that begins with chip ``first``; they must be there.

    A program may count on a slower cable, which the way takes in another stage; not on a deeper buffer than the
    slowest one of the system asks for.
    """
    found = {wired(system, [(first + sender, first + role)], way.leaves[sender], way.arrives[role], way.number)
             for role, sender in enumerate(way.source)}
    edges = {(port_queue(way.leaves[s])[3], port_queue(way.arrives[r])[3]) for r, s in enumerate(way.source)}
    if len(found) > 1 or len(edges) > 1:
        what = f"the chips of a stage take what is sent by way {way.number} from cables or edges that differ"
        raise ProgramError(what, where=f"system {system.name}")
    port = found.pop()
    counted = min(way.link.latency, max(link.latency for link in system.links))
    link = replace(port.link, latency=max(counted, port.link.latency))
    return replace(port, link=link, source=way.source, sender=way.out)


def wired(system: System, chips: Iterable[tuple[int, int]], leaves: int, arrives: int, peer: int = 0) -> Port:
    """Wires from port ``leaves`` of the first of two chips to port ``arrives`` of the other, for all of ``chips``.

    They must be there; ``peer`` as in :class:`Port`.
    """
    wires, levels, where = system.wires, set[int](), f"system {system.name}"
    for here, there in chips:
        known = here < system.chips and 0 <= leaves < wires.peer.shape[1]
        if not known or (wires.peer[here, leaves], wires.arrival[here, leaves]) != (there, arrives):
            raise ProgramError(f"port {leaves} of chip {here} does not lead to port {arrives} of chip {there}",
                               where=where)
        levels.add(int(wires.level[here, leaves]))
    apart = max(system.misaligned[level] for level in levels)
    return Port(together(system.links[level] for level in sorted(levels)), peer, apart)
