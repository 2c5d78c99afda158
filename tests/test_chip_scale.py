"""A program as long as a large model's stage, without values: one program for eight chips, checked in seconds."""

from __future__ import annotations

import resource
import time
from dataclasses import replace

import numpy as np
from chip_programs import claims_of
from numpy.typing import NDArray

from openlpu.arch.isa import BY_NAME
from openlpu.arch.link import port_queue
from openlpu.arch.system import load_system
from openlpu.schedule.program import queue_dtype
from openlpu.target.chip import pipeline
from openlpu.target.chip.clocks import simulate
from openlpu.target.chip.machine import resolve
from openlpu.target.chip.packets import packets, stretches

GROUPS, VECTORS, PERIOD = 20, 20, 48  # of a tile: groups of weights, vectors multiplied, cycles


class Columns:
    """Queues from arrays of cycles; ids count up."""

    def __init__(self) -> None:
        self.queues: dict[str, NDArray] = {}
        self.count = 0

    def put(self, queue: str, op: str, cycle: NDArray, **fields: NDArray | int) -> None:
        """Instructions of one kind, merged into the queue by cycle."""
        columns = np.zeros(len(cycle), queue_dtype(queue))
        columns["cycle"], columns["op"] = cycle, BY_NAME[op].opcode
        columns["id"] = self.count + np.arange(1, len(cycle) + 1)
        self.count += len(cycle)
        for name, value in fields.items():
            columns[name] = value
        both = np.concatenate([self.queues.get(queue, columns[:0]), columns])
        self.queues[queue] = both[np.argsort(both["cycle"], kind="stable")]


def stage(tiles: int) -> tuple[Columns, int]:
    """Weights of ``tiles`` tiles from 16 slices to the west MXM, a few vectors through each, and links kept busy."""
    system = load_system("node")
    chip, link, out = system.chip, system.links[0], Columns()
    start = 60 + PERIOD * np.arange(tiles)

    def read(slice_: int, at: NDArray, address: NDArray | int, stream: int) -> None:
        out.put(f"mem{slice_}", "read", at - chip.slice_position(slice_) - 3, address=address, stream=stream)

    loads = (start[:, None] + np.arange(GROUPS)).ravel()
    for k in range(16):
        read(k, loads, np.arange(len(loads)) % 8000, 32 + k)
    out.put("mxmw0.weights", "load_weights", loads, stream=32, group=np.tile(np.arange(GROUPS), tiles), step=1)
    out.put("mxmw0.weights", "install_weights", start + GROUPS)
    acts = (start[:, None] + GROUPS + chip.latency["install"] + np.arange(VECTORS)).ravel()
    read(20, acts, np.arange(len(acts)) % 8000, 48)
    out.put("mxmw0.activations", "activate", acts, stream=48)
    out.put("mxmw0.accumulate", "accumulate", acts + chip.latency["matmul"], slot=np.arange(len(acts)) % 64, clear=1)
    sends = np.arange(60, int(start[-1]), link.cycles)
    read(24, sends, 7, 49)
    for p in range(1, 8):
        queue = port_queue(p)
        if queue[3] == "e":
            continue
        out.put(queue, "send", sends, stream=49)
        out.put(queue, "receive", sends + link.latency, stream=p)
        slice_ = 28 + p
        hops = chip.slice_position(slice_) + chip.latency["c2c"]
        out.put(f"mem{slice_}", "write", sends + link.latency + hops, stream=p, address=np.arange(len(sends)) % 8000)
    return out, out.count


def test_a_stage_of_eight_chips_is_checked_in_seconds() -> None:
    """About 400,000 instructions, each on eight chips; value-free, claims compared."""
    system = load_system("node")
    chip = replace(system.chip, queue_bytes=system.chip.ifetch_bytes * 4000)  # no fetches: they are tested elsewhere
    columns, count = stage(950)
    ports = {port_queue(p): pipeline.wired(system, [(0, p)], p, p, p) for p in range(1, 8)}
    before = time.process_time()
    trace = resolve(chip, columns.queues, links=ports)
    resolved = time.process_time() - before
    claims = claims_of(trace, [])
    before = time.process_time()
    resolve(chip, columns.queues, claims, ports)
    claimed = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{count:,} instructions on 8 chips: {resolved:.1f} s, with claims {claimed:.1f} s, peak {peak:.2f} GB")
    assert count > 380_000
    assert claimed < 60 and peak < 8
    found = packets(system, [trace], [0], [ports], 8)
    assert len(found.sent) > 3 * 8 * 1000
    timing = simulate(system, found, stretches([trace], [0], 8), draws=4)
    assert timing.cycles == int((trace.code.cycle + trace.code.latency).max())
