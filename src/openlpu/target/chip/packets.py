"""The resolved programs of a pipeline in; every packet of a token, and when each chip sets its clock right, out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from openlpu.arch.system import System
from openlpu.target.chip.code import Ints
from openlpu.target.chip.links import Ports
from openlpu.target.chip.machine import Trace

NEVER = np.iinfo(np.int64).max // 4


@dataclass(frozen=True)
class Packets:
    """A column per packet, sorted by link, then in order; times are aligned cycles of the whole system.

    ``source`` and ``target``: chips.  ``sent``, ``taken``: dispatch of send and receive.  ``level``: class of the link,
    ``depth``: of the buffer at its end.  ``stage`` and ``row`` of the receive name the packet; ``link`` is equal for
    one direction of one wire.
    """

    traces: tuple[Trace, ...]
    source: Ints
    target: Ints
    sent: Ints
    taken: Ints
    level: Ints
    depth: Ints
    stage: Ints
    row: Ints
    link: Ints

    def where(self, k: int) -> str:
        """The k-th packet in words."""
        number = int((self.link[:k] == self.link[k]).sum())
        receive = self.traces[self.stage[k]].code.where(int(self.row[k]))
        return f"packet {number} from chip {self.source[k]} to {self.target[k]}, stage {self.stage[k]}, {receive}"


@dataclass(frozen=True)
class Stretches:
    """What each chip runs between two alignments of its clock.

    By chip and stretch: ``begins`` (NEVER where a chip has fewer), and ``waits``, how long the chip may wait for its
    clock there (0: it starts).  ``end``: when each chip is done.
    """

    begins: Ints
    waits: Ints
    end: Ints

    def of(self, chips: Ints, cycles: Ints) -> Ints:
        """Which stretch of each chip a cycle lies in."""
        return (self.begins[chips] <= cycles[:, None]).sum(axis=1) - 1


def stretches(traces: Sequence[Trace], starts: Sequence[int], tensor: int, interval: int = 0) -> Stretches:
    """All chips start in cycle 0 of the system, and set their clocks right where their programs say.

    ``interval``: of a full pipeline; a chip whose program sets its clock right last did so for the token before.
    """
    found, end = [], []
    for trace, start in zip(traces, starts, strict=True):
        code = trace.code
        rows = code.rows("runtime_deskew")
        rows = rows[np.argsort(code.cycle[rows])]
        found.append((start + code.cycle[rows] + code.field["delay"][rows], code.field["delay"][rows]))
        end.append(start + int((code.cycle + code.latency).max(initial=0)))
    begins = np.full((len(found), 1 + max(len(at) for at, _ in found)), NEVER)
    waits = np.zeros_like(begins)
    begins[:, 0] = 0
    for stage, (at, wait) in enumerate(found):
        if len(at) and interval:
            begins[stage, 0] = max(0, at[-1] - interval)
        begins[stage, 1 : 1 + len(at)], waits[stage, 1 : 1 + len(at)] = at, wait
    return Stretches(*(np.repeat(a, tensor, axis=0) for a in (begins, waits, np.array(end, np.int64))))


def packets(
    system: System, traces: Sequence[Trace], starts: Sequence[int], links: Sequence[Ports], tensor: int
) -> Packets:
    """All packets of a token.  Per stage: its program, the cycle in which it starts, the links of its chips."""
    parts = list(_inside(system, traces, starts, links, tensor))
    parts += _between(system, traces, starts, links, tensor)
    table = np.concatenate([np.zeros((8, 0), np.int64), *parts], axis=1)
    wire = table[0] * (1 + table[1].max(initial=0)) + table[1]
    order = np.lexsort((table[2], wire))
    source, target, sent, taken, level, depth, stage, row = table[:, order]
    return Packets(tuple(traces), source, target, sent, taken, level, depth, stage, row, wire[order])


def _inside(
    system: System, traces: Sequence[Trace], starts: Sequence[int], links: Sequence[Ports], tensor: int
) -> Iterator[Ints]:
    """Packets between the chips of each stage: columns source to row of :class:`Packets`."""
    for s, trace in enumerate(traces):
        passing = trace.operands.passing
        tables = {port.peer: port.sources(tensor) for port in links[s].values()}
        sources = np.array([tables[int(peer)] for peer in passing.peer], np.int64).reshape(-1, tensor)
        for role in range(tensor):
            source, target = s * tensor + sources[:, role], s * tensor + role
            sent, taken = (starts[s] + trace.code.cycle[rows] for rows in (passing.sends, passing.receives))
            yield _rows(system, trace, links[s], passing.receives, (source, target, sent, taken), s)


def _between(
    system: System, traces: Sequence[Trace], starts: Sequence[int], links: Sequence[Ports], tensor: int
) -> Iterator[Ints]:
    """Packets from each stage to the next."""
    for s in range(1, len(traces)):
        handed, arriving = traces[s - 1].operands.passing.handed, traces[s].operands.passing.arriving
        sent, taken = starts[s - 1] + traces[s - 1].code.cycle[handed], starts[s] + traces[s].code.cycle[arriving]
        for role in range(tensor):
            target = s * tensor + role
            yield _rows(system, traces[s], links[s], arriving, (target - tensor, target, sent, taken), s)


def _rows(
    system: System, trace: Trace, links: Ports, receives: Ints, ends: tuple[Ints | int, Ints | int, Ints, Ints], s: int
) -> Ints:
    ports = [links.get(name) for name in trace.code.names]
    classes = [link.name for link in system.links]
    level = np.array([classes.index(p.link.name) if p else -1 for p in ports], np.int64)
    depth = np.array([p.depth if p else 0 for p in ports], np.int64)
    queue = trace.code.queue[receives]
    columns = (*ends, level[queue], depth[queue], s, receives)
    return np.stack([np.broadcast_to(np.asarray(c, np.int64), len(receives)) for c in columns])
