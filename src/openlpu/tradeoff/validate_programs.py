"""A chip in; what programs for it take, in cycles and watts, out: scheduled or written out, never a closed form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.isa import ALU, BY_NAME
from openlpu.arch.system import load_system
from openlpu.place.homes import Homes
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.joules import energy
from openlpu.schedule.program import queue_dtype
from openlpu.schedule.tracks import ChipRun
from openlpu.schedule.units.mxm import Mxm
from openlpu.schedule.values import Vec
from openlpu.target.chip.machine import Trace, resolve

CYCLES = 200  # of dense work; its power does not depend on it


def install(chip: Chip, tiles: int) -> Trace:
    """The program that loads and installs ``tiles`` weight tiles on each MXM plane, each plane from slices of its own.

    The referee has accepted it: every rule and every claim holds, whatever the weights are.
    """
    homes = Homes(chip, ())
    asm = Assembler(chip, homes.sram)
    mxm = Mxm(asm)
    groups = chip.lanes // chip.weight_streams
    for number, plane in enumerate(mxm.planes):
        slices = homes.tile_slices(plane.hemisphere, number // 2, tiles * groups)
        first = homes.sram.keep(slices, tiles * groups, "weights")
        for tile in range(tiles):
            rows = Vec(slices, first + tile * groups, 0, (0,) * len(slices))
            mxm.load(plane, 0, rows, groups, steady=True)
            mxm.install(plane)
    return resolve(chip, *asm.finish())


def install_cycles(chip: Chip) -> int:
    """First read of SRAM until all planes hold weights that activations can meet."""
    return install(chip, 1).cycles


def weight_rate(chip: Chip, tiles: int) -> float:
    """Bytes of weights that reach the MXMs a cycle, over a run of so many tiles from its first read to its end."""
    return tiles * 2 * chip.mxm_planes_per_hemisphere * chip.lanes**2 / install(chip, tiles).cycles


def dense_watts(chip: Chip, *, everything: bool = False) -> float:
    """Power while every plane multiplies, every ALU adds and every stream carries a new vector in every cycle.

    ``everything``: every port of the SRAM and every link is busy as well.
    """
    queues = dict([*_compute(chip), *_streams(chip, everything), *(_links(chip) if everything else ())])
    packet = load_system("node").links[0].packet_bytes
    return energy([ChipRun("chip", chip, 0, CYCLES, queues, ((0, "work"),), packet_bytes=packet)]).watts_alone


def _compute(chip: Chip) -> Iterator[tuple[str, NDArray]]:
    """An activation and a sum of every plane, an addition of every ALU, in every cycle."""
    for alu in range(chip.vxm_alus):
        yield f"vxm{alu}", _each(f"vxm{alu}", "add", dst_kind=ALU)
    for side, first in (("w", 0), ("e", chip.streams_per_direction)):  # sums flow inward
        for plane in range(chip.mxm_planes_per_hemisphere):
            name = f"mxm{side}{plane}"
            yield f"{name}.activations", _each(f"{name}.activations", "activate")
            yield f"{name}.accumulate", _each(f"{name}.accumulate", "accumulate", emit=1, stream=first + 4 * plane)


def _streams(chip: Chip, everything: bool) -> Iterator[tuple[str, NDArray]]:
    """A read onto each stream where it begins, by a slice of its own; with ``everything`` all slices read and write."""
    per = chip.streams_per_direction
    for slice_ in range(chip.slices):
        back = chip.slices - 1 - slice_
        stream = slice_ if slice_ < per else per + back
        read = _each(f"mem{slice_}", "read", stream=min(stream, 2 * per - 1))
        if everything:
            yield f"mem{slice_}", np.concatenate([read, _each(f"mem{slice_}", "write")])
        elif slice_ < per or back < per:
            yield f"mem{slice_}", read


def _links(chip: Chip) -> Iterator[tuple[str, NDArray]]:
    """A vector by every link, as often as it takes one at 25 Gb/s a lane."""
    for name in chip.queues:
        if name.startswith("c2c"):
            yield name, _each(name, "send", np.arange(0, CYCLES, 24))


def _each(queue: str, op: str, cycles: ArrayLike | None = None, **fields: int) -> NDArray:
    """One instruction in each of some cycles (None: in every one)."""
    at = np.arange(CYCLES) if cycles is None else np.asarray(cycles)
    rows = np.zeros(len(at), queue_dtype(queue))
    rows["cycle"], rows["op"] = at, BY_NAME[op].opcode
    for field, value in fields.items():
        rows[field] = value
    return rows
