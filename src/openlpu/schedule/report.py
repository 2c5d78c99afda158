"""A segment in; where its cycles went out: use of each unit, and the critical path cycle by cycle.

The path is walked back from the last logit, or what a sweep of an encoder writes last.  At each instruction it follows
the operand that was available last, so every cycle of the token falls into exactly one kind: a unit working, a value
hopping along stream registers, a vector on a link between chips, the chip's clock being set right, weights on their way
into an array that a value waits for, or another wait, for a port, a plane or a free stream.  The kinds add up to the
total.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.isa import TABLE, unit_of_queue
from openlpu.schedule.program import HOLD, RESIDENT, Segment, Sweep

HOPS, WAITING, WEIGHTS, CLOCK = "hops", "waiting", "weights", "clock"
COLLECTIVES, LINKS = "collectives", "links"  # between the chips of a stage; from stage to stage
LINK, ALUS = "C2C", "VXM"  # the unit that sends and receives; the one that works in chains
INSTALL, LOADS = "install_weights", ("load_weights", "install_weights")
PASSIVE = ("read", *LOADS)  # it could have happened earlier: a read of a word long there, a weight load, an install


@dataclass(frozen=True)
class Piece:
    """``cycles`` of the critical path from cycle ``start``: what happened, and for which operator."""

    start: int
    cycles: int
    kind: str
    operator: str


@dataclass(frozen=True)
class Report:
    """``busy``: unit -> (dispatches, share of its queues' slots); ``pieces``: the critical path, each cycle from 0 to
    ``cycles`` in exactly one."""

    cycles: int
    instructions: int
    busy: dict[str, tuple[int, float]]
    pieces: tuple[Piece, ...]

    @property
    def path(self) -> dict[str, int]:
        """Kind -> cycles along the critical path, ``cycles`` in all."""
        return totals((piece.kind, piece.cycles) for piece in self.pieces)

    @property
    def operators(self) -> dict[str, int]:
        """Operator -> cycles along the critical path, ``cycles`` in all."""
        return totals((piece.operator, piece.cycles) for piece in self.pieces)


@dataclass(frozen=True)
class Dispatch:
    """One instruction, by id: where and when it was dispatched, and cycles until its result."""

    cycle: int
    position: int
    unit: str
    latency: int
    name: str

    @property
    def done(self) -> int:
        """The cycle of its result."""
        return self.cycle + self.latency


def totals(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Cycles by name, in the order in which names come first."""
    out: dict[str, int] = {}
    for name, cycles in parts:
        out[name] = out.get(name, 0) + cycles
    return out


def report(chip: Chip, segment: Segment) -> Report:
    """Account for every cycle of a segment."""
    counts = dispatched(segment.queues)
    return Report(segment.cycles, counts.total(), busy(chip, counts, segment.cycles), critical_path(chip, segment))


def in_turn(chip: Chip, steps: Iterable[tuple[Report, int]]) -> Report:
    """Account for every cycle of steps that follow each other, each so many times."""
    counts, pieces, end = Counter[str](), [], 0
    for step, times in steps:
        counts.update({unit: times * count for unit, (count, _) in step.busy.items()})
        for _ in range(times):
            pieces += [replace(piece, start=end + piece.start) for piece in step.pieces]
            end += step.cycles
    return Report(end, counts.total(), busy(chip, counts, end), tuple(pieces))


def critical_path(chip: Chip, segment: Segment, until: int | None = None) -> tuple[Piece, ...]:
    """The pieces of a segment's critical path in order of time: to its last logit, or a sweep's last write, or to the
    dispatch of instruction ``until``."""
    dispatches = _Dispatches(chip, segment)
    last = _last_write(dispatches, segment) if until is None else until
    walk = _walk(dispatches, _Operands(segment), last)
    end, pieces = dispatches[last].cycle, []
    if until is None:
        end += dispatches[last].latency
    else:
        next(walk)  # the work of that instruction itself
    starts, names = zip(*segment.origin, strict=True)
    holds = _holds(segment)
    for kind, cycles, number in walk:
        end -= cycles
        piece = Piece(end, cycles, kind, names[bisect_right(starts, number) - 1])
        pieces += _held(piece, holds) if kind in (WAITING, WEIGHTS) else [piece] if cycles else []
    assert not end, "the path reaches back to the first cycle"
    return tuple(reversed(pieces))


def _holds(segment: Segment) -> list[tuple[int, int]]:
    """From when to when the chip sets its clock right, the last time first."""
    rows = [q[q["op"] == HOLD] for name, q in segment.queues.items() if name.startswith("c2c")]
    found = ((int(row["cycle"]), int(row["cycle"] + row["delay"])) for part in rows for row in part)
    return sorted(found, reverse=True)


def _held(piece: Piece, holds: Iterable[tuple[int, int]]) -> Iterator[Piece]:
    """A wait cut where the chip sets its clock right, the last part first."""
    end = piece.start + piece.cycles
    for first, last in holds:
        first, last = max(first, piece.start), min(last, end)
        if first < last:
            if last < end:
                yield replace(piece, start=last, cycles=end - last)
            yield replace(piece, start=first, cycles=last - first, kind=CLOCK)
            end = first
    if end > piece.start:
        yield replace(piece, cycles=end - piece.start)


def _last_write(dispatches: Mapping[int, Dispatch], segment: Segment) -> int:
    """The id of the write that ends a token, or a sweep: of a sweep that of what waits for the next one too."""
    outputs = segment.claims.outputs
    ends = set(outputs["writer"][~outputs["indirect"] | isinstance(segment, Sweep)].tolist())
    writes = [rows["id"] for queue, rows in segment.queues.items() if queue.startswith("mem")]
    return max((n for n in np.concatenate(writes).tolist() if n in ends), key=lambda n: dispatches[n].done)


class _Dispatches(dict[int, Dispatch]):
    """Instructions by id, made when they are asked for: a path meets few of them."""

    def __init__(self, chip: Chip, segment: Segment) -> None:
        queues = {name: rows for name, rows in segment.queues.items() if len(rows)}
        self.numbers, self.cycles, self.ops = (
            np.concatenate([rows[column] for rows in queues.values()]) for column in ("id", "cycle", "op"))
        self.at = np.zeros(int(self.numbers.max()) + 1, np.int64)  # by id: its place among all
        self.at[self.numbers] = np.arange(len(self.numbers))
        self.begins = list(accumulate(map(len, queues.values()), initial=0))
        self.where = [(chip.queue_position(name), unit_of_queue(name).split(".")[0].upper()) for name in queues]
        self.latency = [chip.latency[made.latency] if made.latency else 0 for made in TABLE]

    def __missing__(self, number: int) -> Dispatch:
        at = self.at.item(number)
        assert self.numbers[at] == number, f"instruction {number} is in a queue"
        op = self.ops.item(at)
        position, unit = self.where[bisect_right(self.begins, at) - 1]
        self[number] = found = Dispatch(self.cycles.item(at), position, unit, self.latency[op], TABLE[op].name)
        return found


class _Operands(dict[int, list[int]]):
    """Instruction id -> ids whose values it reads."""

    def __init__(self, segment: Segment) -> None:
        instructions = max(int(rows["id"].max(initial=0)) for rows in segment.queues.values())
        reads = segment.claims.reads[segment.claims.reads["writer"] != RESIDENT]
        self.writer = reads["writer"][np.argsort(reads["reader"], kind="stable")]
        counts = np.bincount(reads["reader"], minlength=instructions + 1)
        self.begins = np.concatenate(([0], np.cumsum(counts)))  # by id: where its claims begin among all

    def __missing__(self, number: int) -> list[int]:
        first, end = self.begins[number], self.begins[number + 1]
        self[number] = found = self.writer[first:end].tolist()
        return found


class _Available(dict[int, int]):
    """When a value could have been had first, by the id of its maker.

    A read, load or install looks through to what it passes on.  So does an ALU, whose time is that of its chain: all
    operands of a chain are there when the last one is.
    """

    def __init__(self, dispatches: Mapping[int, Dispatch], operands: Mapping[int, list[int]]) -> None:
        self.dispatches, self.operands = dispatches, operands

    def __missing__(self, writer: int) -> int:
        d = self.dispatches[writer]
        if d.name in PASSIVE or d.unit == ALUS:
            work = d.latency if d.unit == ALUS else 0
            time = work + max((self[w] for w in self.operands[writer]), default=0)
        else:
            time = d.done
        self[writer] = time
        return time


def _walk(
    dispatches: Mapping[int, Dispatch], operands: Mapping[int, list[int]], last: int
) -> Iterator[tuple[str, int, int]]:
    """(kind, cycles, the instruction charged) from the end of the token back to its first cycle.

    ``due``: the cycle before which ``now`` waits for weights: it needs what an array has then, or is a read for it.
    """
    now, due, available = last, 0, _Available(dispatches, operands)
    yield dispatches[now].unit, dispatches[now].latency, now
    while operands[now]:
        here = dispatches[now]
        before = max(operands[now], key=lambda w: (available[w], dispatches[w].cycle))
        there = dispatches[before]
        work = min(there.latency, here.cycle - there.cycle)  # a sum is back at its accumulator in the next cycle
        gap = here.cycle - there.cycle - work
        if here.unit == there.unit == LINK:
            yield COLLECTIVES, gap, now
            gap = 0
        hops = min(abs(here.position - there.position), gap)
        arrays = [dispatches[w].done for w in operands[now] if dispatches[w].name == INSTALL]
        due = here.cycle if here.name in LOADS else max(arrays, default=due)
        weights = min(max(due - hops - there.cycle - work, 0), gap - hops)
        yield HOPS, hops, now
        yield WAITING, gap - hops - weights, now
        yield WEIGHTS, weights, now
        yield there.unit, work, before
        due = due - here.cycle + there.cycle if there.name in PASSIVE else 0
        now = before
    yield LINKS if dispatches[now].unit == LINK else WAITING, dispatches[now].cycle, now


def busy(chip: Chip, counts: Counter[str], cycles: int) -> dict[str, tuple[int, float]]:
    """Of each unit its dispatches, and the share of its slots in so many cycles."""
    slots = issue(chip)
    return {u: (counts[u], counts[u] / (slots[u] * cycles)) for u in sorted(slots)}


def issue(chip: Chip) -> Counter[str]:
    """Instructions that each unit of a chip can dispatch in a cycle."""
    out: Counter[str] = Counter()
    for queue in chip.queues:
        unit = unit_of_queue(queue).upper()
        out[unit] += chip.mem_issue if unit == "MEM" else 1
    return out


def dispatched(queues: Mapping[str, NDArray]) -> Counter[str]:
    """Instructions of each unit."""
    out: Counter[str] = Counter()
    for queue, rows in queues.items():
        out[unit_of_queue(queue).upper()] += len(rows)
    return out
