"""A TOML file in; out comes a :class:`Spec`, what the file says about a system of chips, with every field checked.

A file names a chip, a kind of topology, its sizes, and the classes of cable that kind has.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from openlpu._base.errors import Unsupported
from openlpu.arch.chip import Chip, load_chip
from openlpu.arch.link import Link
from openlpu.arch.topology import LEVELS, NODE, RACK_PORTS, Shape


@dataclass(frozen=True)
class Spec:
    """A system without its wires.

    ``links`` are the classes of cable by level: inside a node, between nodes, between racks.  ``epoch`` is the period
    of the hardware aligned counter, in cycles.  ``where`` names the file in messages.
    """

    where: str
    name: str
    chip: Chip
    shape: Shape
    links: tuple[Link, ...]
    epoch: int


# The fields of a system file by section, each from, to: by kind of topology, then of every link.
TOP = {"epoch": (1, 65535)}
SIZES: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "single": {}, "line": {"chips": (1, 1024)}, "ring": {"chips": (2, 1024)}, "node": {"chips": (1, NODE)},
    "dragonfly": {"nodes": (1, 449), "ports": (1, 56), "spares": (0, 448)},
    "rotational": {"nodes": (1, 1024), "ports": (1, 56), "spares": (0, 1023)},
    "racks": {"racks": (1, 1024), "nodes": (1, 17), "ports": (RACK_PORTS + 1, 56), "spares": (0, 16)},
    "pipeline": {"racks": (1, 1024), "nodes": (1, 64), "ports": (4, 56), "spares": (0, 63)},
}
CYCLES = (1, 10**6)
LINK = {"cycles": CYCLES, "packet_bytes": CYCLES, "minimum": CYCLES, "maximum": CYCLES, "align": (0, 10**6),
        "latency": CYCLES}
SPREAD = ("mean", "sigma")  # the fields of a link that need not be whole numbers
EXAMPLES = "compare with the system files of openlpu.arch.systems"


def system_names() -> list[str]:
    """The systems that come with openlpu."""
    return sorted(p.name[:-5].replace("_", "-") for p in (files("openlpu.arch") / "systems").iterdir())


def system_file(name: str) -> Traversable:
    """The TOML file of a system, by name or by its path; raises :class:`Unsupported` when there is none."""
    if Path(name).suffix == ".toml" and Path(name).is_file():
        return Path(name)
    bundled = files("openlpu.arch") / "systems" / f"{name.replace('-', '_')}.toml"
    if "/" in name or not bundled.is_file():
        what = f"there is no file {name}" if Path(name).suffix == ".toml" else f"unknown system {name!r}"
        raise Unsupported(what, where="system", fix=f"use one of {', '.join(system_names())} or a .toml file")
    return bundled


def read_spec(name: str, chips: int | None = None) -> Spec:
    """What the file of a system says, by name or by the path of a TOML file; ``chips`` overrides its size.

    Raises :class:`Unsupported` naming the file and the field when there is none, or it cannot be built.
    """
    file = system_file(name)
    where, folder = (name, Path(name).parent) if file == Path(name) else (f"system {name}", None)
    try:
        data = tomllib.loads(file.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise Unsupported(f"not a TOML file: {error}", where=where, fix=EXAMPLES) from error
    _only(data, ("name", "chip", "topology", "size", "links", *TOP), where)
    label, chip_name, kind = (_text(data.get(field), f"{where}, {field}") for field in ("name", "chip", "topology"))
    if kind not in LEVELS:
        fix = f"use one of {', '.join(LEVELS)}"
        raise Unsupported(f"unknown topology {kind!r}", where=f"{where}, topology", fix=fix)
    beside = folder / chip_name if folder else None  # a user's chip may lie beside their system
    chip = load_chip(str(beside) if beside and beside.is_file() else chip_name)
    shape = _shape(kind, _table(data.get("size", {}), f"{where}, [size]"), where)
    if chips is not None:
        shape = _resized(shape, chips, where)
    _check_shape(shape, chip, where)
    tables = _table(data.get("links", {}), f"{where}, [links]")
    _only(tables, LEVELS[kind], f"{where}, [links]")
    links = tuple(_link(name, tables.get(name), chip, f"{where}, [links.{name}]") for name in LEVELS[kind])
    return Spec(where, label, chip, shape, links, _integer(data.get("epoch"), TOP["epoch"], f"{where}, epoch"))


def _shape(kind: str, table: Mapping[str, Any], where: str) -> Shape:
    """Sizes of a kind of topology."""
    _only(table, SIZES[kind], f"{where}, [size]")
    sizes = {field: _integer(table.get(field), limit, f"{where}, [size] {field}")
             for field, limit in SIZES[kind].items()}
    return Shape(kind, **({"chips": 1} if kind == "single" else {}) | sizes)


def _resized(shape: Shape, chips: int, where: str) -> Shape:
    """The shape with so many chips, refused in words if it is not built so."""
    sized = shape.resized(chips) if chips > 0 else None
    if sized:
        return sized
    rack = NODE * (shape.nodes - shape.spares)
    built = {"single": "one chip", "line": "1 chip or more", "ring": "2 chips or more", "node": "1, 2, 4 or 8 chips"}
    racks = f", and above {rack} whole racks of {rack}" if len(LEVELS[shape.kind]) > 2 else ""
    fix = f"ask for {built.get(shape.kind, '1, 2, 4 or whole nodes of 8' + racks)}"
    raise Unsupported(f"cannot have {chips} chips", where=where, fix=fix)


def _check_shape(shape: Shape, chip: Chip, where: str) -> None:
    """Refuse more groups than there are ports to join them, and more ports than the chip has."""
    if shape.kind == "node" and shape.chips not in (1, 2, 4, NODE):
        raise Unsupported(f"is {shape.chips}", where=f"{where}, [size] chips", fix="a node has 1, 2, 4 or 8 chips")
    if shape.spares >= shape.nodes:
        raise Unsupported(f"is {shape.spares} of {shape.nodes} nodes", where=f"{where}, [size] spares",
                          fix="leave a node to work with")
    for join in shape.joins:
        if join.groups > 1 and not join.parallel:
            what = f"{join.groups} groups need {len(join.steps)} ports each, and have {join.size * join.ports}"
            raise Unsupported(what, where=f"{where}, [size]", fix="use fewer of them, or more ports")
    highest = {"single": 0, "line": 2, "ring": 2}.get(shape.kind, shape.chips - 1)
    highest = max([highest, *(join.first + join.ports - 1 for join in shape.joins if join.groups > 1)])
    if highest >= max(chip.c2c_links, 1):
        what = f"uses port {highest}; a {chip.name} has ports 0 to {chip.c2c_links - 1}"
        raise Unsupported(what, where=f"{where}, topology", fix="use a chip with more c2c_links")


def _link(name: str, table: object, chip: Chip, where: str) -> Link:
    """One class of cable."""
    if table is None:
        raise Unsupported("this section is missing", where=where, fix=EXAMPLES)
    fields = _table(table, where)
    _only(fields, (*LINK, *SPREAD), where)
    whole = {field: _integer(fields.get(field), limit, f"{where} {field}") for field, limit in LINK.items()}
    mean, sigma = (_number(fields.get(field), f"{where} {field}") for field in SPREAD)
    link = Link(name=name, mean=mean, sigma=sigma, **whole)
    if not link.minimum <= link.mean <= link.maximum:
        raise Unsupported("the mean lies outside minimum and maximum", where=f"{where} mean", fix="correct one of them")
    if link.packet_bytes < chip.lanes:
        what = f"is {link.packet_bytes}; a vector alone has {chip.lanes} bytes"
        raise Unsupported(what, where=f"{where} packet_bytes", fix="make it larger")
    return link


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Unsupported("not a table", where=where, fix="write it as a section of fields")
    return value


def _only(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse fields that nothing reads."""
    known = list(known)
    for unknown in sorted(set(table) - set(known)):
        fix = f"known are {', '.join(known)}" if known else "leave it out"
        raise Unsupported(f"there is no field {unknown}", where=where, fix=fix)


def _integer(value: object, limit: tuple[int, int], where: str) -> int:
    """A field's value, if it is an integer within its limit."""
    low, high = limit
    if value is None:
        raise Unsupported("this field is missing", where=where, fix="add it")
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Unsupported(f"is {value!r}, not an integer from {low} to {high}", where=where, fix="change it")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise Unsupported("a system needs this field, a text", where=where, fix="add it")
    return value


def _number(value: object, where: str) -> float:
    """A field's value, if it is a number of cycles, whole or not."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 10**6:
        raise Unsupported(f"is {value!r}, not a number of cycles", where=where, fix=EXAMPLES)
    return float(value)
