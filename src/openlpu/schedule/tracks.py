"""Scheduled programs in; one token as pictures see it out: named chips, and what each unit does in which cycle.
Of an encoder that is a sequence (sequences.py).

One chip is the case of length 1.  Chips that run the same instructions hold the same ``queues`` object, so whatever is
derived from them is derived once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.isa import BY_NAME, TABLE, unit_of_queue
from openlpu.arch.link import port_queue
from openlpu.partition.names import shift
from openlpu.place.homes import Resident
from openlpu.schedule.program import Program, Segment, StageProgram, SystemProgram, queue_dtype
from openlpu.schedule.report import LINKS, Piece, critical_path

READS = tuple(BY_NAME[name].opcode for name in ("read", "gather"))
WRITES = tuple(BY_NAME[name].opcode for name in ("write", "scatter"))


@dataclass(frozen=True)
class ChipRun:
    """One chip's part in a token: ``queues`` count cycles from ``start``, a cycle of the token, and end within
    ``cycles``.  ``origin``: (first instruction id, operator) ascending; ``peers``: queue of a link -> the chip at its
    other end; ``link_slot`` and ``packet_bytes``: cycles that a vector takes on it, and bytes with its framing;
    ``first``: the layer of the model that the names of operators and residents call layer 0."""

    name: str
    chip: Chip
    start: int
    cycles: int
    queues: Mapping[str, NDArray]
    origin: tuple[tuple[int, str], ...]
    resident: tuple[Resident, ...] = ()
    peers: Mapping[str, str] = field(default_factory=dict)
    link_slot: int = 1
    packet_bytes: int = 0
    first: int = 0

    @property
    def operators(self) -> list[str]:
        """Names of the operators of ``origin``, with the model's layers."""
        return [shift(name, self.first) for _, name in self.origin]


@dataclass(frozen=True)
class Token:
    """A token over all chips, or ``what`` else: ``path`` tiles its cycles from 0 to ``cycles`` with what it waited
    for."""

    chips: tuple[ChipRun, ...]
    path: tuple[Piece, ...]
    what: str = "token"

    @property
    def cycles(self) -> int:
        """From the first dispatch to the last logit written."""
        return self.path[-1].start + self.path[-1].cycles


def content(run: ChipRun) -> frozenset[tuple[int, int]]:
    """Equal for chips that run the same instructions at the same places, whatever ports they send by."""
    return frozenset((run.chip.queue_position(name), id(rows)) for name, rows in run.queues.items() if len(rows))


def duration(chips: Sequence[ChipRun]) -> int:
    """Cycles of a token over chips, the first of which begins in cycle 0."""
    return max(run.start + run.cycles for run in chips)


def interval(chips: Sequence[ChipRun]) -> int:
    """Cycles between tokens when every chip begins the next request as soon as it has done with one."""
    return max(run.cycles for run in chips)


def single(program: Program, segment: Segment) -> ChipRun:
    """The only chip of a token."""
    return ChipRun("chip 0", program.chip, 0, segment.cycles, segment.queues, segment.origin, program.resident)


def of_chip(program: Program, segment: Segment) -> Token:
    """A token on one chip."""
    return Token((single(program, segment),), critical_path(program.chip, segment))


def of_system(system: SystemProgram, segment: int) -> Token:
    """A token on all chips of a system, in the segment of that number.

    Its path runs through every stage up to the send of the first vector for the next, and over the link."""
    chips: list[ChipRun] = []
    path: list[Piece] = []
    walked: dict[int, tuple[Piece, ...]] = {}  # equal stages share a program
    wired: dict[tuple[object, ...], ChipRun] = {}  # and equally wired ones its queues
    starts = system.starts(segment)
    for s, (which, start) in enumerate(zip(system.stages, starts, strict=True)):
        stage = system.stage(s)
        part = stage.program.segments[segment]
        if which not in walked:
            walked[which] = critical_path(stage.program.chip, part, first_send(stage, part))
        own = pieces_from(walked[which], stage.taken(part) if s else 0)  # the first vector is under way until then
        names = {name: shift(name, system.first[s]) for _, name in part.origin}
        path += [Piece(start + p.start, p.cycles, p.kind, names[p.operator]) for p in own]
        if s < len(system.hops):
            sent = start + stage.handed_over(part)
            there = system.stage(s + 1)
            taken = starts[s + 1] + there.taken(there.program.segments[segment])
            path.append(Piece(sent, taken - sent, LINKS, path[-1].operator))
        key = which, *((hop.leaves, hop.arrives) for hop in system.hops[max(s - 1, 0) : s + 1]), bool(s)
        if key not in wired:
            wired[key] = of_role(system, s, 0, segment, start)
        chips += [replace(wired[key], start=start, first=system.first[s], **identity(system, s, r))
                  for r in range(system.split.tensor)]
    return Token(tuple(chips), tuple(path))


def of_role(system: SystemProgram, s: int, role: int, segment: int, start: int) -> ChipRun:
    """The chip of a role in a token that its stage begins in cycle ``start``; of other stages nothing is needed."""
    stage = system.stage(s)
    part = stage.program.segments[segment]
    packet = max((link.packet_bytes for link in system.links), default=0)
    return ChipRun(
        chip=stage.program.chip, start=start, cycles=stage.busy(part), queues=system.queues(s, segment),
        origin=part.origin, link_slot=system.slot, packet_bytes=packet, first=system.first[s],
        **identity(system, s, role),
    )


class Identity(TypedDict):
    """What chips of equally wired stages do not share."""

    name: str
    resident: tuple[Resident, ...]
    peers: Mapping[str, str]


def identity(system: SystemProgram, s: int, role: int) -> Identity:
    """Name, memory and neighbours of a chip."""
    stage, tensor = system.stage(s), system.split.tensor
    ways = system.local.ways if system.local else ()
    peers = {way.out: f"chip {s * tensor + way.source.index(role)}" for way in ways}
    peers |= {port_queue(hop.leaves): f"chip {(s + 1) * tensor + role}" for hop in system.hops[s : s + 1]}
    return {"name": f"chip {s * tensor + role}", "resident": stage.residents[role], "peers": peers}


def pieces_from(pieces: Iterable[Piece], cycle: int) -> Iterator[Piece]:
    """The pieces of a path from a cycle on."""
    for p in pieces:
        cut = max(cycle - p.start, 0)
        if cut < p.cycles:
            yield replace(p, start=p.start + cut, cycles=p.cycles - cut) if cut else p


def first_send(stage: StageProgram, segment: Segment) -> int | None:
    """The id of the send that hands the first vector to the next stage; None where nothing is handed over."""
    rows = segment.queues.get(stage.next, np.zeros(0, queue_dtype("c2cw0")))
    sends = rows["id"][rows["op"] == BY_NAME["send"].opcode]
    return int(sends[0]) if len(sends) else None


@dataclass(frozen=True)
class Track:
    """What one instruction queue does, or one port of a MEM slice's: at most one instruction a cycle, ascending.

    ``cycle``, ``op`` and ``number`` (the instruction's id) are columns; ``operator`` indexes the run's origin.
    """

    name: str
    unit: str
    cycle: NDArray[np.int64]
    op: NDArray[np.uint8]
    number: NDArray[np.int64]
    operator: NDArray[np.int64]


def tracks(run: ChipRun) -> Iterator[Track]:
    """The tracks of a chip in queue order: two for a MEM slice, which reads and writes in one cycle."""
    starts = np.array([first for first, _ in run.origin], np.int64)
    for queue, rows in run.queues.items():
        unit = unit_of_queue(queue)
        ports = _ports(rows) if unit == "mem" else {queue: slice(None)}
        for name, mine in ports.items():
            part = rows[mine]
            number = part["id"].astype(np.int64)
            operator = np.maximum(np.searchsorted(starts, number, "right") - 1, 0)
            label = queue if name == queue else f"{queue} {name}"
            yield Track(label, unit, part["cycle"].astype(np.int64), part["op"], number, operator)


def _ports(rows: NDArray) -> dict[str, NDArray[np.bool_]]:
    """The instructions of a slice by port; a fetch takes the write slot, or the read slot beside a write."""
    reads, writes = np.isin(rows["op"], READS), np.isin(rows["op"], WRITES)
    beside = ~writes & ~reads & np.isin(rows["cycle"], rows["cycle"][writes])
    return {"read": reads | beside, "write": ~(reads | beside)}


def latencies(chip: Chip) -> list[int]:
    """Cycles from dispatch to result, by opcode; 0 where there is none."""
    return [chip.latency[i.latency] if i.latency else 0 for i in TABLE]
