"""A TOML file in, a :class:`Chip` out: geometry, rates and latencies of one LPU, and where its units stand.

Positions count stream registers from the west edge: MXM, SXM, the MEM groups outermost first, VXM in the middle,
then the mirror image.  A stream moves one position a cycle.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from openlpu._base.errors import Unsupported


@dataclass(frozen=True)
class Chip:
    """One LPU as data.  Latencies are cycles from dispatch to the result on the unit's stream register."""

    name: str
    clock_hz: int
    superlanes: int
    lanes_per_superlane: int
    slices_per_hemisphere: int
    words_per_slice: int
    banks: int
    slices_per_register: int
    streams_per_direction: int
    mxm_planes_per_hemisphere: int
    vxm_alus: int
    weight_streams: int
    c2c_links: int
    nop_max: int
    ifetch_bytes: int
    queue_bytes: int
    barrier_cycles: int
    mem_issue: int
    accumulators: int
    latency: Mapping[str, int]

    @property
    def lanes(self) -> int:
        """Bytes in a vector."""
        return self.superlanes * self.lanes_per_superlane

    @property
    def groups(self) -> int:
        """MEM stream registers per hemisphere; the slices of a group share one."""
        return self.slices_per_hemisphere // self.slices_per_register

    @property
    def slices(self) -> int:
        """MEM slices on the chip: 0 is the westernmost."""
        return 2 * self.slices_per_hemisphere

    @property
    def vxm_position(self) -> int:
        """Stream register of the VXM, the middle of the chip."""
        return 2 + self.groups

    @property
    def positions(self) -> int:
        """Stream registers from edge to edge."""
        return 2 * self.vxm_position + 1

    def slice_position(self, slice_: int) -> int:
        """Stream register of a MEM slice."""
        if slice_ < self.slices_per_hemisphere:
            return 2 + slice_ // self.slices_per_register
        return self.vxm_position + 1 + (slice_ - self.slices_per_hemisphere) // self.slices_per_register

    def sxm_position(self, hemisphere: int) -> int:
        """Stream register of a hemisphere's SXM; hemisphere 0 is west."""
        return 1 if hemisphere == 0 else self.positions - 2

    def mxm_position(self, hemisphere: int) -> int:
        """Stream register of a hemisphere's MXM planes."""
        return 0 if hemisphere == 0 else self.positions - 1

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """Names of all instruction queues, in the order programs are stored."""
        names = [f"mem{i}" for i in range(self.slices)] + [f"vxm{i}" for i in range(self.vxm_alus)]
        for h in "we":
            for plane in range(self.mxm_planes_per_hemisphere):
                names += [f"mxm{h}{plane}.{part}" for part in ("weights", "activations", "accumulate")]
            names += [f"sxm{h}.{part}" for part in SXM_QUEUES]
            names += [f"c2c{h}{i}" for i in range(self.c2c_links // 2)]
        return tuple(names)


SXM_QUEUES = ("shift", "permute", "distribute", "rotate", "transpose0", "transpose1")


def load_chip(name: str) -> Chip:
    """A chip by name (``lpu-v1``, ``tiny``) or by the path of a TOML file."""
    bundled = files("openlpu.arch") / "chips" / f"{name.replace('-', '_')}.toml"
    if Path(name).suffix == ".toml" and Path(name).is_file():
        text = Path(name).read_text()
    elif bundled.is_file():
        text = bundled.read_text()
    else:
        known = sorted(p.name[:-5].replace("_", "-") for p in (files("openlpu.arch") / "chips").iterdir())
        fix = f"use one of {', '.join(known)} or a .toml file"
        raise Unsupported(f"unknown chip {name!r}", where="chip", fix=fix)
    data = tomllib.loads(text)
    chip = Chip(
        name=data["name"], clock_hz=data["clock_hz"], **data["geometry"], **data["queue"], **data["mxm"],
        latency=data["latency"],
    )
    if chip.ifetch_bytes != 2 * chip.lanes or chip.queue_bytes % chip.ifetch_bytes:
        what = f"a fetch is two vectors, {2 * chip.lanes} bytes, and a queue holds a whole number of them"
        raise Unsupported(what, where=f"chip {chip.name}", fix="set ifetch_bytes and queue_bytes so")
    return chip
