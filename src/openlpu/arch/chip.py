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
from typing import Any

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

    def queue_position(self, queue: str) -> int:
        """Stream register of the unit that a queue drives (a link has none: its hemisphere's edge)."""
        if queue.startswith("mem"):
            return self.slice_position(int(queue[3:]))
        if queue.startswith("vxm"):
            return self.vxm_position
        hemisphere = "we".index(queue[3])
        return self.sxm_position(hemisphere) if queue.startswith("sxm") else self.mxm_position(hemisphere)

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


# The fields of a chip file by section, each from, to, and in steps of: what instruction fields, address maps and
# blocks of attention can name, and what the chip model knows how to do.
LATENCY = (1, 1000, 1)
FIELDS: Mapping[str, Mapping[str, tuple[int, int, int]]] = {
    "": {"clock_hz": (1, 10**12, 1)},
    "geometry": {
        "superlanes": (16, 32, 1), "lanes_per_superlane": (16, 16, 1), "slices_per_hemisphere": (16, 256, 4),
        "words_per_slice": (16, 8192, 1), "banks": (1, 8192, 1), "slices_per_register": (4, 4, 1),
        "streams_per_direction": (32, 32, 1), "mxm_planes_per_hemisphere": (1, 8, 1), "vxm_alus": (16, 64, 1),
        "weight_streams": (16, 16, 1), "c2c_links": (0, 64, 2),
    },
    "queue": {
        "nop_max": (65535, 65535, 1), "ifetch_bytes": (1, 10**6, 1), "queue_bytes": (1, 10**6, 1),
        "barrier_cycles": (1, 10**6, 1),
        "mem_issue": (2, 2, 1),
    },
    "mxm": {"accumulators": (2, 64, 1)},
    "latency": dict.fromkeys(
        ("read", "write", "vxm", "vxm_special", "shift", "permute", "distribute", "rotate", "transpose", "install",
         "matmul", "accumulate", "c2c", "ifetch"), LATENCY,
    ),
}


def known_chips() -> list[str]:
    """The names that :func:`load_chip` knows."""
    return sorted(p.name[:-5].replace("_", "-") for p in (files("openlpu.arch") / "chips").iterdir())


def load_chip(name: str) -> Chip:
    """A chip by name (``lpu-v1``, ``tiny``) or by the path of a TOML file.

    Raises :class:`Unsupported` naming the file and the field when there is none, or openlpu cannot build for it.
    """
    bundled = files("openlpu.arch") / "chips" / f"{name.replace('-', '_')}.toml"
    if Path(name).suffix == ".toml" and Path(name).is_file():
        where, raw = name, Path(name).read_bytes()
    elif "/" not in name and bundled.is_file():
        where, raw = f"chip {name}", bundled.read_bytes()
    else:
        what = f"there is no file {name}" if Path(name).suffix == ".toml" else f"unknown chip {name!r}"
        raise Unsupported(what, where="chip", fix=f"use one of {', '.join(known_chips())} or a .toml file")
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except ValueError as error:
        fix = "compare with the chip files of openlpu.arch.chips"
        raise Unsupported(f"not a TOML file: {error}", where=where, fix=fix) from error
    return _chip(data, where)


def _chip(data: Mapping[str, Any], where: str) -> Chip:
    """The chip of a file's tables, every field checked."""
    label = data.get("name")
    if not isinstance(label, str) or not label:
        raise Unsupported("a chip needs a name, a text", where=f"{where}, name", fix="add it")
    numbers: dict[str, dict[str, int]] = {}
    for section, limits in FIELDS.items():
        table = data.get(section, {}) if section else {k: v for k, v in data.items() if k not in ("name", *FIELDS)}
        path = f"{where}, [{section}]" if section else where
        if not isinstance(table, Mapping):
            raise Unsupported("not a table", where=path, fix="write it as a section of fields")
        for unknown in sorted(set(table) - set(limits)):
            raise Unsupported(f"there is no field {unknown}", where=path, fix=f"known are {', '.join(limits)}")
        numbers[section] = {
            field: _number(table.get(field), limit, f"{path} {field}" if section else f"{path}, {field}")
            for field, limit in limits.items()
        }
    latency = numbers.pop("latency")
    chip = Chip(name=label, latency=latency, **{k: v for part in numbers.values() for k, v in part.items()})
    if chip.ifetch_bytes != 2 * chip.lanes or chip.queue_bytes % chip.ifetch_bytes:
        what = f"a fetch is two vectors, {2 * chip.lanes} bytes, and a queue holds a whole number of them"
        raise Unsupported(what, where=f"{where}, [queue]", fix="set ifetch_bytes and queue_bytes so")
    if chip.words_per_slice % chip.banks:
        what = f"{chip.words_per_slice} words do not divide into {chip.banks} banks"
        raise Unsupported(what, where=f"{where}, [geometry] banks", fix="make it a divisor")
    return chip


def _number(value: object, limit: tuple[int, int, int], where: str) -> int:
    """A field's value, if it is an integer within its limit."""
    low, high, step = limit
    if value is None:
        raise Unsupported("this field is missing", where=where, fix="add it")
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high or value % step:
        span = f"{low}" if low == high else f"an integer from {low} to {high}"
        what = f"{span}, a multiple of {step}" if step > 1 else span
        raise Unsupported(f"is {value!r}; openlpu builds chips where it is {what}", where=where, fix="change it")
    return value
