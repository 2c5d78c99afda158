"""A segment in; where its cycles went out: use of each unit, and the critical path cycle by cycle.

The path is walked back from the last logit.  At each instruction it follows the operand that was available last, so
every cycle of the token falls into exactly one kind: a unit working, a value hopping along stream registers, or
waiting for a port, a plane or a free stream.  The kinds add up to the total.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

import numpy as np

from openlpu.arch.chip import Chip
from openlpu.arch.isa import TABLE, unit_of_queue
from openlpu.schedule.program import RESIDENT, Segment

HOPS, WAITING = "hops", "waiting"
PASSIVE = ("read", "load_weights", "install_weights")


@dataclass(frozen=True)
class Report:
    """``busy``: unit -> (dispatches, share of its queues' slots); ``path``: kind -> cycles and ``operators``:
    operator -> cycles, both along the critical path and both adding up to ``cycles``."""

    cycles: int
    instructions: int
    busy: dict[str, tuple[int, float]]
    path: dict[str, int]
    operators: dict[str, int]


@dataclass(frozen=True)
class Dispatch:
    """One instruction, by id: where and when it was dispatched, and cycles until its result."""

    cycle: int
    position: int
    unit: str
    latency: int
    passive: bool  # it could have happened earlier: a read of a word long there, a weight load, an install


def report(chip: Chip, segment: Segment) -> Report:
    """Account for every cycle of a segment."""
    dispatches = _dispatches(chip, segment)
    operands = _operands(segment)
    outputs = segment.claims.outputs
    logits = set(outputs["writer"][~outputs["indirect"]].tolist())
    last = max((int(row["id"]) for q, rows in segment.queues.items() if q.startswith("mem") for row in rows
                if int(row["id"]) in logits),
               key=lambda i: dispatches[i].cycle)
    path, operators = _walk(dispatches, operands, last, segment)
    return Report(segment.cycles, len(dispatches), _busy(chip, segment), dict(path), dict(operators))


def _dispatches(chip: Chip, segment: Segment) -> dict[int, Dispatch]:
    out = {}
    for queue, rows in segment.queues.items():
        if not len(rows):
            continue
        position, unit = chip.queue_position(queue), unit_of_queue(queue).split(".")[0].upper()
        for op, cycle, number in zip(rows["op"].tolist(), rows["cycle"].tolist(), rows["id"].tolist(), strict=True):
            row = TABLE[op]
            latency = chip.latency[row.latency] if row.latency else 0
            out[number] = Dispatch(cycle, position, unit, latency, row.name in PASSIVE)
    return out


def _operands(segment: Segment) -> dict[int, list[int]]:
    """Instruction id -> ids whose values it reads."""
    out: dict[int, list[int]] = {}
    reads = segment.claims.reads
    for reader, writer in zip(reads["reader"].tolist(), reads["writer"].tolist(), strict=True):
        if writer != RESIDENT:
            out.setdefault(reader, []).append(writer)
    return out


def _available(dispatches: dict[int, Dispatch], operands: dict[int, list[int]], writer: int) -> int:
    """When a value could have been had first: a read, load or install looks through to what it passes on."""
    d = dispatches[writer]
    if not d.passive:
        return d.cycle + d.latency
    return max((_available(dispatches, operands, w) for w in operands.get(writer, [])), default=0)


def _walk(
    dispatches: dict[int, Dispatch], operands: dict[int, list[int]], last: int, segment: Segment
) -> tuple[Counter[str], Counter[str]]:
    path: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    starts, names = zip(*segment.origin, strict=True)

    def charge(kind: str, cycles: int, number: int) -> None:
        path[kind] += cycles
        operators[names[bisect_right(starts, number) - 1]] += cycles

    now = last
    charge(dispatches[now].unit, dispatches[now].latency, now)
    while operands.get(now):
        here = dispatches[now]
        before = max(operands[now], key=lambda w: (_available(dispatches, operands, w), dispatches[w].cycle))
        there = dispatches[before]
        gap = here.cycle - there.cycle - there.latency
        hops = min(abs(here.position - there.position), gap)
        charge(there.unit, there.latency, before)
        charge(HOPS, hops, now)
        charge(WAITING, gap - hops, now)
        now = before
    charge(WAITING, dispatches[now].cycle, now)
    return path, operators


def _busy(chip: Chip, segment: Segment) -> dict[str, tuple[int, float]]:
    counts: Counter[str] = Counter()
    queues: Counter[str] = Counter()
    for queue, rows in segment.queues.items():
        unit = unit_of_queue(queue).upper()
        queues[unit] += chip.mem_issue if unit == "MEM" else 1
        counts[unit] += len(rows)
    return {u: (counts[u], float(np.float64(counts[u]) / (queues[u] * segment.cycles))) for u in sorted(queues)}
