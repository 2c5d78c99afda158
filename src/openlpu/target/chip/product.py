"""A product's program and its operands in; what the chip makes of them out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.group import Group
from openlpu.arch.system import System
from openlpu.place.product import Ints, Store
from openlpu.schedule.product import ProductProgram
from openlpu.schedule.product_group import GroupProgram
from openlpu.target.chip import host, pipeline
from openlpu.target.chip.links import Ports
from openlpu.target.chip.machine import Machine


def run(program: ProductProgram, a: NDArray, w: NDArray) -> NDArray:
    """[m, n] in int32 or fp32 of ``a`` [m, k] and ``w`` [k, n] in int8 or float16, every operand compared with the
    program's claims.  Raises what :meth:`~openlpu.target.chip.machine.Machine.run` raises.
    """
    machine = Machine(program.tiling.chip)
    fill(machine, program, a, w)
    machine.run(program.queues, program.claims)
    return result(machine, program)


def wiring(system: System, group: GroupProgram) -> Ports:
    """The links of the first chips of a system, as many as a program is for."""
    return pipeline.inside(system, Group(group.ways, (), ()))


def run_group(group: GroupProgram, links: Ports, a: NDArray, w: NDArray) -> NDArray:
    """Likewise of a product whose k is split over the chips of a group, wired by ``links``; where a node holds several
    groups, all do the same, and the result is that of the first."""
    program, p, roles = group.program, group.program.tiling.product, len(group.ways[0].source)
    machine = Machine(program.tiling.chip, roles, links)
    left = np.pad(a, ((0, p.m - len(a)), (0, group.sections * p.k - a.shape[1])))
    right = np.pad(w, ((0, group.sections * p.k - len(w)), (0, 0)))
    parts = left.reshape(group.sections, group.part, -1)
    for role in range(roles):
        own = role % group.sections
        mine = slice(own * p.k, (own + 1) * p.k)
        order = [own ^ q for q in range(group.sections - 1, -1, -1)]
        fill(machine, program, parts[order].reshape(p.m, -1)[:, mine], right[mine], role)
    machine.run(program.queues, program.claims)
    made = []
    for role in range(group.sections):
        planes = machine.peek(group.slices, group.addresses[..., None], role)
        made.append(np.ascontiguousarray(planes.transpose(0, 1, 3, 2)).view("<i4")[..., 0])
    out = np.concatenate(made).reshape(p.m, -1)[: len(a), : p.n]
    return out.view(np.float32) if p.form == "fp16" else out


def fill(machine: Machine, program: ProductProgram, a: NDArray, w: NDArray, role: int = 0) -> None:
    """Write operands and instructions into a chip's SRAM."""
    t, h, lanes = program.tiling, program.homing, program.tiling.chip.lanes
    host.fill(machine, program.resident, {}, role)
    pad = t.chunks * t.product.chunk(t.chip) - t.product.k
    left = np.pad(a, ((0, 0), (0, pad))).reshape(len(a), t.chunks, -1)
    right = np.pad(w, ((0, pad), (0, -w.shape[1] % lanes))).T.reshape(-1, lanes, t.chunks, left.shape[2])
    for e, weights, activations in zip(t.engines, h.weights, h.activations, strict=True):
        mine = right[e.tiles.start : e.tiles.stop : e.tiles.step][:, : t.groups * t.chip.weight_streams]
        vectors = mine.transpose(0, 2, 1, 3).reshape(-1, t.chip.weight_streams, left.shape[2])
        _load(machine, weights, vectors, role)
        rows = left[e.rows.start : e.rows.stop]
        blocks = zip(t.starts().tolist(), t.sizes(e).tolist(), strict=True)
        parts = [rows[first : first + size].transpose(1, 0, 2).reshape(-1, left.shape[2]) for first, size in blocks]
        _load(machine, activations, np.concatenate(parts)[:, None], role)


def _load(machine: Machine, store: Store, numbers: NDArray, role: int) -> None:
    """Numbers [addresses, slices, k] as vectors: of fp16 the low bytes first, then the high ones."""
    if not len(numbers):
        return
    planes = np.ascontiguousarray(numbers).view(np.uint8).reshape(*numbers.shape, -1)
    data = planes.transpose(0, 1, 3, 2).reshape(*numbers.shape[:2], -1)
    slices, addresses = _where(store, len(data))
    machine.load(slices, addresses[:, None], data, role)


def _where(store: Store, count: int) -> tuple[Ints, Ints]:
    """Slices [count, width] and addresses [count] of a store's vectors."""
    which, addresses = store.at(np.arange(count))
    return np.array(store.sets, np.int64)[which], addresses


def result(machine: Machine, program: ProductProgram) -> NDArray:
    """The product as it lies in SRAM."""
    t, lanes = program.tiling, program.tiling.chip.lanes
    made = np.zeros((t.product.m, -(-t.product.n // lanes), lanes), np.int32)
    for e, store in zip(t.engines, program.homing.sums, strict=True):
        if not store.sets:
            continue
        slices, addresses = _where(store, len(e.rows) * len(e.tiles))
        planes = machine.peek(slices, addresses[:, None])
        words = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<i4")[..., 0]
        for first, size in zip(t.starts().tolist(), t.sizes(e).tolist(), strict=True):
            part = words[first * len(e.tiles) :][: size * len(e.tiles)].reshape(len(e.tiles), size, lanes)
            rows = slice(e.rows.start + first, e.rows.start + first + size)
            made[rows, e.tiles.start : e.tiles.stop : e.tiles.step] = part.transpose(1, 0, 2)
    out = made.reshape(t.product.m, -1)[:, : t.product.n]
    return out.view(np.float32) if t.product.form == "fp16" else out
