"""A checked table of instructions in; for every operand the instruction and result it takes, out.

This is the static half of running a program: control never depends on values, so who reads whose result is known
before any value is.  Rules about time end here; only what depends on address maps is left for execution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openlpu.arch.isa import ACCUMULATES, ACTIVATES, ALU, BY_NAME, LOADED
from openlpu.target.chip import deskew, links, sram, streams
from openlpu.target.chip.code import Code, Ints


@dataclass(frozen=True)
class Operands:
    """Operand ``number`` of instruction ``row`` is result ``part`` of instruction ``writer``.

    Numbers are those of :class:`~openlpu.schedule.program.Claims`.  A part counts the byte streams of a result; for
    a word in SRAM it is the address in the instruction, and the writer may be RESIDENT or DYNAMIC.  A receive
    takes what the writer, a send, sent by the link whose ``peer`` is the part, or (RESIDENT, part 0) what another stage
    sent.
    """

    row: Ints
    number: Ints
    writer: Ints
    part: Ints
    memory: sram.Sram
    passing: links.Passing


def resolve(code: Code, ports: links.Ports) -> Operands:
    """All operands of all instructions; refuses what arrives at the wrong time, twice or not at all."""
    passing = links.resolve(code, ports)
    taken, posted = streams.reads(code), streams.posts(code)
    source = streams.match(code, taken, posted)
    deskew.crossing(code, taken.row, posted.row[source])
    memory = sram.resolve(code)
    parts = [
        (taken.row, taken.part, posted.row[source], posted.part[source]),
        (memory.reads, 0, memory.writer, code.field["address"][memory.reads]),
        *_latches(code), _buffer(code), _array(code), *_accumulators(code),
        (passing.receives, 0, passing.sends, passing.peer), (passing.arriving, 0, sram.RESIDENT, 0),
    ]
    filled = [[np.broadcast_to(np.asarray(c, np.int64), len(p[0])) for c in p] for p in parts]
    row, number, writer, part = (np.concatenate(columns) for columns in zip(*filled, strict=True))
    return Operands(row, number, writer, part, memory, passing)


Part = tuple[Ints, Ints | int, Ints | int, Ints | int]


def _find(keys: Ints, wanted: Ints) -> Ints:
    """Index of each ``wanted`` in ``keys``, or -1."""
    if not len(keys):
        return np.full(len(wanted), -1)
    order = np.argsort(keys, kind="stable")
    at = order[np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)]
    return np.where(keys[at] == wanted, at, -1)


def _latches(code: Code) -> list[Part]:
    """An ALU's result stands in its latch for one cycle, where any ALU can take it."""
    rows = code.unit("vxm")
    horizon = int((code.cycle + code.latency).max(initial=0)) + 1
    ready = code.number[rows] * horizon + code.cycle[rows] + code.latency[rows]
    order = np.argsort(ready, kind="stable")
    twice = order[1:][np.diff(ready[order]) == 0]
    code.refuse(rows[twice], "its result meets an earlier one in the latch of its ALU")
    parts: list[Part] = []
    for kind, field, number in (("a_kind", "a", 0), ("b_kind", "b", 4)):
        takers = rows[code.field[kind][rows] == ALU]
        at = _find(ready, code.field[field][takers] * horizon + code.cycle[takers])
        code.refuse(takers[at < 0], f"operand {field}: the latch of that ALU is empty in this cycle")
        parts.append((takers, number, rows[at], 0))
    return parts


def _buffer(code: Code) -> Part:
    """The groups loaded since the last install are the operands of the next install."""
    loads, installs = code.rows("load_weights"), code.rows("install_weights")
    number = np.searchsorted(installs, loads)  # rows are in queue order: the installs in front of each load
    planes = 2 * code.chip.mxm_planes_per_hemisphere
    key = number * planes + code.number[loads]
    groups = code.chip.lanes // LOADED
    slot = key * groups + code.field["group"][loads]
    order = np.argsort(slot, kind="stable")
    code.refuse(loads[order[1:][np.diff(slot[order]) == 0]], "this group of the weight buffer is already loaded")
    own = np.arange(len(installs)) * planes + code.number[installs]
    code.refuse(installs[~np.isin(own, key)], "the weight buffer is empty")
    at = _find(own, key)
    used = at >= 0
    return installs[at[used]], code.field["group"][loads[used]], loads[used], 0


def _array(code: Code) -> Part:
    """An activate uses the array of the last install that had finished when it was dispatched."""
    installs, activates = code.rows("install_weights"), code.rows(*ACTIVATES)
    horizon = int((code.cycle + code.latency).max(initial=0)) + 1
    ready = code.number[installs] * horizon + code.cycle[installs] + code.latency[installs]
    order = np.argsort(ready, kind="stable")
    at = np.searchsorted(ready[order], code.number[activates] * horizon + code.cycle[activates], "right") - 1
    padded = np.append(installs[order], -1)  # -1 finds the last entry
    writer = padded[at]
    none = (writer < 0) | (code.number[writer] != code.number[activates])
    code.refuse(activates[none], "no array is installed")
    return activates, 1, writer, 0


def _accumulators(code: Code) -> list[Part]:
    """Each arriving sum meets one accumulate of its kind; without `clear` it is added to the slot's last content."""
    acts, accs = code.rows(*ACTIVATES), code.rows(*ACCUMULATES)
    half, single = (code.op == BY_NAME[name].opcode for name in ("activate_fp16", "accumulate_fp32"))
    horizon = int((code.cycle + code.latency).max(initial=0)) + 1
    arrival = code.number[acts] * horizon + code.cycle[acts] + code.latency[acts]
    expected = code.number[accs] * horizon + code.cycle[accs]
    at = _find(arrival, expected)
    code.refuse(accs[at < 0], "no sum arrives in this cycle")
    code.refuse(accs[half[acts[at]] != single[accs]], "the sum that arrives is of the other kind")
    lost = acts[_find(expected, arrival) < 0]
    code.refuse(lost, "its sum arrives without an accumulate")
    slot = code.number[accs] * code.chip.accumulators + code.field["slot"][accs]
    order = np.argsort(slot * horizon + code.cycle[accs], kind="stable")
    previous = np.full(len(accs), -1)
    same = np.diff(slot[order]) == 0
    previous[order[1:][same]] = accs[order[:-1][same]]
    adds = code.field["clear"][accs] == 0
    code.refuse(accs[adds & (previous < 0)], "the accumulator holds nothing to add to")
    code.refuse(accs[adds & (single[previous] != single[accs])], "the accumulator holds a sum of the other kind")
    return [(accs, 0, acts[at], 0), (accs[adds], 1, previous[adds], 0)]
