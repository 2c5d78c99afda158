"""What the scheduler makes and every chip target runs: instruction queues, SRAM contents, claims.

A program holds no weights: :attr:`Program.resident` says which vectors of which parameter lie where, so new
weights of the same shape reuse it.  Instructions are NumPy columns, one structured array per queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.encoding import extents
from openlpu.arch.group import Group
from openlpu.arch.isa import BY_NAME, TABLE, columns_of, unit_of_queue
from openlpu.arch.link import Link, port_queue
from openlpu.partition.split import Split
from openlpu.place.homes import Resident

HOLD = BY_NAME["runtime_deskew"].opcode
RESIDENT = 0  # as a claim's writer: in SRAM before the token began (a parameter, the host's rows, older KV)


def queue_dtype(queue: str) -> np.dtype:
    """Columns of a queue: dispatch cycle, opcode, the instruction's id (for claims; not encoded), its fields."""
    fields = [(name, "<i4") for name in columns_of(unit_of_queue(queue))]
    return np.dtype([("cycle", "<u4"), ("op", "u1"), ("id", "<u4"), *fields])


CLAIM_READ = np.dtype(
    [("reader", "<u4"), ("operand", "u1"), ("writer", "<u4"), ("or_resident", "?"), ("part", "<u2")]
)
CLAIM_OUTPUT = np.dtype([("slice", "<u2"), ("address", "<u2"), ("writer", "<u4"), ("indirect", "?")])
CLAIM_PASSED = np.dtype([("instruction", "<u4"), ("place", "u1"), ("vector", "<u2"), ("plane", "u1")])


@dataclass(frozen=True)
class Claims:
    """What the scheduler meant; the chip ignores it, the referee compares.

    ``reads``: operand ``operand`` of instruction ``reader`` carries the value that instruction ``writer`` made
    (:data:`RESIDENT`: nobody in this token; ``or_resident``: either).  Operands count byte streams in the order
    of the fields: VXM a 0-3, b 4-7 (a latch or byte operand: 0 or 4); memory word of read and gather 0, map 1;
    scatter data 0, map 1; load_weights 0-15; install_weights: weight buffer groups 0-19; activate: stream 0,
    array 1 (the install); accumulate: arriving sum 0 (the activate), accumulator 1; SXM data 0-15, maps 16, 17;
    ifetch: the vector of its cycle 0, of the next 1; send 0; receive 0, its writer the peer's send, which has the same
    id as this program's own (:data:`RESIDENT`: what the stage before handed over).
    ``part``: which byte stream of the writer's result it is (quad plane 0-3, SXM output 0-15), or for a memory word
    the address (the base, of a gather), or for a receive the number of the way by which it comes (arch/group.py); else
    0.
    ``outputs``: after the token the word at ``address`` of ``slice`` was written by ``writer``; ``indirect``:
    address is the base of a scatter and the words are those of its map.
    ``passed``: a send to the stage behind, or a receive from the one before, carries this byte plane of this vector of
    the residual, for the token of this place of the chunk.
    """

    reads: NDArray
    outputs: NDArray
    passed: NDArray = field(default_factory=lambda: np.zeros(0, CLAIM_PASSED))


@dataclass(frozen=True)
class Rows:
    """Where a token leaves an fp32 value: byte plane p of vector i at (slices[i, p], addresses[i]); lane l of it is
    channel ``channel[i, l]``, -1 where the lane is idle."""

    slices: NDArray[np.int32]
    addresses: NDArray[np.int32]
    channel: NDArray[np.int32]


@dataclass(frozen=True)
class Segment:
    """The instructions of one step for contexts of at most ``context`` positions: of one token, or of prefill up to
    ``chunk`` (see :class:`openlpu.place.host.Step`).

    ``tensors``: where each fp32 value of the graph lies after a step, of its last token, in execution order, the logits
    last; nothing overwrites them inside a step.  ``cycles``: first dispatch to last logit written.  ``origin``: (first
    instruction id, operator's output) in ascending order: which operator an instruction belongs to.  Of a stage that
    hands over, ``cycles`` ends with its last send, and its output is the residual.
    """

    context: int
    queues: Mapping[str, NDArray]
    tensors: Mapping[str, Rows]
    cycles: int
    claims: Claims
    origin: tuple[tuple[int, str], ...]
    chunk: int = 1

    @property
    def name(self) -> str:
        """Its context and, of prefill, its chunk."""
        return f"{self.context}x{self.chunk}" if self.chunk > 1 else f"{self.context}"

    @property
    def logits(self) -> Rows:
        """Where the logits lie."""
        return self.tensors[list(self.tensors)[-1]]

    def held(self, more: int) -> Segment | None:
        """The same, whose chip sets its clock right for ``more`` cycles longer before it begins: everything else comes
        later.  None if delays would take other bytes, and so pages of instructions begin elsewhere."""
        queues = {}
        for name, rows in self.queues.items():
            later = rows.copy()
            later["cycle"] += more
            if len(rows) and rows["op"][0] == HOLD:
                later["cycle"][0] = 0
                later["delay"][0] += more
            if not np.array_equal(extents(later[:2])[1], extents(rows[:2])[1]):
                return None
            queues[name] = later
        return replace(self, queues=queues, cycles=self.cycles + more)


@dataclass(frozen=True)
class Sweep(Segment):
    """The instructions of a chunk in sweep ``number`` of an encoder (:mod:`openlpu.partition.sweeps`); ``cycles`` end
    with the last write of what the next sweep reads."""

    number: int = 0

    @property
    def name(self) -> str:
        """Its context, chunk and number."""
        return f"{self.context}x{self.chunk}.{self.number}"


@dataclass(frozen=True)
class Program:
    """Segments that share one SRAM image, the smallest chunk first, of each the smallest context; the host picks one
    before each step.

    ``host``: names of the resident rows the host rewrites before a token (see :mod:`openlpu.place.host`), without
    their ``host.``.  ``v_rows``: rows of V per block, which the host's address maps need.  ``requests``
    have a KV cache each; the host says before a step whose token it is.
    """

    chip: Chip
    resident: tuple[Resident, ...]
    host: tuple[str, ...]
    v_rows: int
    vocab: int
    segments: tuple[Segment, ...]
    requests: int = 1

    @property
    def context(self) -> int:
        """Positions the largest segment serves."""
        return self.segments[-1].context

    def segment(self, position: int, chunk: int = 1) -> Segment:
        """The smallest segment of a chunk whose context holds a position."""
        assert 0 <= position < self.context, f"position {position} is outside the context"
        return next(s for s in self.segments if s.chunk == chunk and position < s.context)


@dataclass(frozen=True)
class StageProgram:
    """One program for all chips of a stage, which differ in what their SRAM holds and in nothing else.

    With ``tensor`` > 1 the arrays of ``program``'s sources and the channels of its :class:`Rows` have an axis in front
    where roles differ: use :attr:`residents` and :meth:`rows`.  ``ports`` are the queues that send to other roles.
    ``next`` and ``previous`` are the queues that hand over to the stage behind and take
    from the one before, "" at the ends of the pipeline; where the system wires another port of the same hemisphere,
    the queue is renamed.
    """

    program: Program
    tensor: int
    ports: tuple[str, ...] = ()
    next: str = ""
    previous: str = ""

    @cached_property
    def residents(self) -> tuple[tuple[Resident, ...], ...]:
        """By role, what its SRAM holds before the first token."""
        items = self.program.resident
        return tuple(tuple(replace(i, source=i.source.of(r)) for i in items) for r in range(self.tensor))

    def held(self, more: int) -> StageProgram | None:
        """:meth:`Segment.held` of every segment."""
        segments = tuple(s for s in (segment.held(more) for segment in self.program.segments) if s)
        if len(segments) < len(self.program.segments):
            return None
        return replace(self, program=replace(self.program, segments=segments))

    def rows(self, rows: Rows, role: int) -> Rows:
        """Where a role's chip leaves a value, and which channels it has there."""
        return replace(rows, channel=rows.channel[role]) if rows.channel.ndim == 3 else rows

    def sends(self, segment: Segment) -> int:
        """Vectors that a chip sends."""
        links = (queue for name, queue in segment.queues.items() if name.startswith("c2c"))
        return sum(int((queue["op"] == BY_NAME["send"].opcode).sum()) for queue in links)

    def handed_over(self, segment: Segment) -> int:
        """The cycle of the first vector for the next stage."""
        queue = segment.queues[self.next]
        return int(queue["cycle"][queue["op"] == BY_NAME["send"].opcode].min())

    def taken(self, segment: Segment) -> int:
        """The cycle in which the first vector from the stage before is received."""
        queue = segment.queues[self.previous]
        return int(queue["cycle"][queue["op"] == BY_NAME["receive"].opcode].min())

    def drifting(self, segment: Segment) -> int:
        """Cycles that it runs after it last set its clock right; all where it never does."""
        holds = [q[q["op"] == HOLD] for name, q in segment.queues.items() if name.startswith("c2c")]
        return self.busy(segment) - max((int(q["cycle"][-1] + q["delay"][-1]) for q in holds if len(q)), default=0)

    def busy(self, segment: Segment) -> int:
        """Cycles from the first dispatch to the last result: after so many the chips can begin another token."""
        return self._busy[segment.name]

    @cached_property
    def _busy(self) -> dict[str, int]:
        latency = np.array([self.program.chip.latency[i.latency] if i.latency else 1 for i in TABLE])
        return {s.name: max(int((q["cycle"] + latency[q["op"]]).max()) for q in s.queues.values() if len(q))
                for s in self.program.segments}


@dataclass(frozen=True)
class Hop:
    """How a stage is wired to the next: the class of cable, the port a vector leaves by, and the one it arrives by."""

    link: Link
    leaves: int
    arrives: int


@dataclass(frozen=True)
class SystemProgram:
    """The programs of all chips of a system, role r of stage s on chip ``s * tensor + r``.

    Stage s runs ``programs[stages[s]]``, whose ``layers.0`` is the model's layer ``first[s]``; equal stages share a
    program.  ``local`` is how the chips of a stage are joined (None: a stage is one chip), ``hops[s]`` the way from
    stage s to stage s + 1.
    """

    split: Split
    programs: tuple[StageProgram, ...]
    stages: tuple[int, ...]
    first: tuple[int, ...]
    local: Group | None
    hops: tuple[Hop, ...]

    @property
    def links(self) -> tuple[Link, ...]:
        """The cables it uses."""
        return (*(self.local.links if self.local else ()), *(hop.link for hop in self.hops))

    @property
    def slot(self) -> int:
        """Cycles that a vector occupies the slowest of the cables."""
        return max((link.cycles for link in self.links), default=1)

    def stage(self, s: int) -> StageProgram:
        """The program of a stage."""
        return self.programs[self.stages[s]]

    def queues(self, s: int, segment: int) -> dict[str, NDArray]:
        """The queues of a stage's chips, those that lead to other stages under the names of their ports."""
        stage = self.stage(s)
        queues = dict(stage.program.segments[segment].queues)
        behind, before = self.hops[s : s + 1], self.hops[s - 1 : s] if s else ()
        ports = [(stage.next, port_queue(hop.leaves)) for hop in behind]
        ports += [(stage.previous, port_queue(hop.arrives)) for hop in before]
        moved = {port: queues[name] for name, port in ports}
        queues |= {name: queues[name][:0] for name, _ in ports}
        assert not any(len(queues[port]) for port in moved), "a port leads to one chip"
        return queues | moved

    def moved(self, segment: int) -> int:
        """Bytes that all chips send in a step."""
        sends = [stage.sends(stage.program.segments[segment]) for stage in self.programs]
        return sum(sends[n] for n in self.stages) * self.split.tensor * self.programs[0].program.chip.lanes

    def starts(self, segment: int) -> tuple[int, ...]:
        """The cycle in which each stage begins a token, in the segment of that number, on a clock common to all."""
        out = [0]
        for s, hop in enumerate(self.hops):
            here, there = self.stage(s), self.stage(s + 1)
            sent = here.handed_over(here.program.segments[segment])
            out.append(out[-1] + sent + hop.link.latency - there.taken(there.program.segments[segment]))
        return tuple(out)

    def cycles(self, segment: int) -> int:
        """From a token's first dispatch on the first stage to its last logit on the last one."""
        return self.starts(segment)[-1] + self.stage(-1).program.segments[segment].cycles

    def alone(self) -> int:
        """The most cycles from when a chip sets its clock right for the last time in a step to the next step."""
        most, parts = 0, range(len(self.stage(0).program.segments))
        for here in parts:
            drifting = [stage.drifting(stage.program.segments[here]) for stage in self.programs]
            for behind in parts:
                waits = self._waits(here, behind)
                most = max(most, *(max(waits) - w + drifting[n] for w, n in zip(waits, self.stages, strict=True)))
        return most

    def interval(self, segment: int) -> int:
        """Cycles between two tokens when every stage has one: those of the stage that takes longest."""
        return max(stage.busy(stage.program.segments[segment]) for stage in self.programs)

    def gap(self, segment: int, behind: int) -> int:
        """Cycles from the start of a step in a segment to that of the step behind it: every stage is done with the one
        when it begins the other."""
        return max(self._waits(segment, behind))

    def _waits(self, segment: int, behind: int) -> list[int]:
        """:meth:`gap` as each stage needs it."""
        busy = [stage.busy(stage.program.segments[segment]) for stage in self.programs]
        here, there = self.starts(segment), self.starts(behind)
        return [a + busy[n] - b for a, b, n in zip(here, there, self.stages, strict=True)]
