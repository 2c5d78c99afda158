"""A matrix product whose k is split over the chips of a group in; one program for all of them out.

Each chip has a *section* of k, and so partial sums of all outputs; which rows a chip finishes is data.  *Slot* q of
role r's activations are the rows that role r XOR q finishes, so slot q goes out by port q, and what comes in by port q
belongs to the chip's own rows, slot 0.  Slot 0 is multiplied last: sums of the others travel meanwhile.  Where a node
holds several groups, its other wires carry sums too: by a chip of another group, which sends them on.  Totals are added
in the tree of :func:`openlpu.arch.truepoint.half.product`, which looks the same from every role.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from openlpu._base.errors import DoesNotFit, OpenLpuError, ProgramError, Unsupported
from openlpu.arch.chip import Chip
from openlpu.arch.group import Group, Way, joined, relative, routes_by
from openlpu.arch.system import System
from openlpu.place.product import Ints, Product, place_product, tilings
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.expression import Op
from openlpu.schedule.product import ProductProgram, Sums, compile_product, finish, multiply
from openlpu.schedule.units.c2c import C2c, Cabling, group_ports
from openlpu.schedule.units.vxm import Vxm
from openlpu.schedule.values import Vec


@dataclass(frozen=True)
class GroupProgram:
    """``program``: of every chip of a node, joined by ``ways``, in which ``sections`` chips are a group; ``part``: rows
    that a role finishes; ``slices``, ``addresses``: where its result [row, tile] lies."""

    product: Product
    sections: int
    ways: tuple[Way, ...]
    program: ProductProgram
    part: int
    slices: Ints  # [row, tile, plane]
    addresses: Ints  # [row, tile]


@dataclass(frozen=True)
class Share:
    """A product over ``columns`` times ``sections`` chips: each multiplies a section of k by a share of the columns.

    ``group`` where there is more than one section, else ``program`` alone; or ``why`` there is none.
    """

    columns: int
    sections: int
    program: ProductProgram | None = None
    group: GroupProgram | None = None
    why: str = ""


def spread(product: Product, system: System) -> list[Share]:
    """Every way to spread a product over all chips of a system; those with a program first, the fastest of them first.

    Raises what the last one raised if there is none.
    """
    ways, errors = list[Share](), list[OpenLpuError]()
    for sections in (1, 2, 4, 8):
        if system.chips % sections:
            continue
        columns = system.chips // sections
        try:
            ways.append(_way(product, system, columns, sections))
        except (DoesNotFit, ProgramError, Unsupported) as error:
            errors.append(error)
            ways.append(Share(columns, sections, why=f"{error.where}: {error.what}"))
    if len(errors) == len(ways):
        raise errors[-1]
    return sorted(ways, key=lambda way: way.program.cycles if way.program else 1 << 62)


def _way(product: Product, system: System, columns: int, sections: int) -> Share:
    lanes = system.chip.lanes
    tiles = -(-product.n // lanes)
    share = replace(product, n=min(product.n, -(-tiles // columns) * lanes))
    if sections == 1:
        return Share(columns, sections, compile_product(share, system.chip))
    made = schedule_group(share, system.chip, sections, node_ways(system, sections))
    return Share(columns, sections, made.program, made)


def node_ways(system: System, sections: int) -> tuple[Way, ...]:
    """The ways of a node, or where it has none of all to all of its first ``sections`` chips.

    Raises :class:`Unsupported` where these are not all wired to all either.
    """
    for chips in {min(system.spec.shape.chips, system.chips): 0, sections: 0}:
        group = joined(system, np.arange(chips)[None]) if chips % sections == 0 else None
        if group and [way.source for way in group.ways] == [*group.sources[1:]] == [*relative(chips)[1:]]:
            return group.ways
    raise Unsupported("a section of k on each chip takes chips all wired to all", where=f"system {system.name}",
                      fix="use a system of nodes")


def schedule_group(product: Product, chip: Chip, sections: int, ways: tuple[Way, ...]) -> GroupProgram:
    """The program of a node's chips, joined by ``ways``, of which ``sections`` (2, 4, 8) are a group.

    Raises what :func:`~openlpu.schedule.product.compile_product` raises.
    """
    routes = [[route for route in routes_by(ways, q) if len(route) == 1 or route[0].number >= sections]
              for q in range(1, sections)]
    own, part = section(product, chip, sections), -(-product.m // sections)
    first, second = tilings(own, chip)
    try:
        homing = place_product(first)
    except DoesNotFit:
        homing = place_product(second)
    asm = Assembler(chip, homing.homes.sram)
    cabling = Cabling(Group(ways, (), ()))
    c2c, vxm = C2c(asm, group_ports(chip, sections, cabling), cabling), Vxm(asm)
    made = _Vectors(multiply(asm, homing), own.m, -(-own.n // chip.lanes))
    add = "add" if product.form == "fp16" else "add_mod"
    slices, addresses = np.zeros((part, made.tiles, 4), np.int64), np.zeros((part, made.tiles), np.int64)
    last = 0
    for row, tile in made.order(part):
        slots = [made.vec((sections - 1 - q) * part + row, tile) for q in range(sections)]
        asm.temporaries.enter()
        others = [c2c.over(slot, own) for slot, own in zip(slots[1:], routes, strict=True)]
        total = vxm.evaluate(_tree(add, [slots[0], *others]))
        asm.temporaries.leave([total])
        slices[row, tile], addresses[row, tile] = total.slices, total.address
        asm.outputs.extend((s, total.address, w, False) for s, w in zip(total.slices, total.writers, strict=True))
        last = max(last, total.ready)
    return GroupProgram(product, sections, ways, finish(asm, homing, last), part, slices, addresses)


def section(product: Product, chip: Chip, sections: int) -> Product:
    """What one chip multiplies: rows to share out evenly, a section of k."""
    chunk = product.chunk(chip)
    length = -(-product.k // chunk)
    return replace(product, m=-(-product.m // sections) * sections, k=-(-length // sections) * chunk)


def _tree(name: str, leaves: list[Vec]) -> Op:
    level: list[Vec | Op] = list(leaves)
    while len(level) > 1:
        level = [Op(name, level[i], level[i + 1]) for i in range(0, len(level), 2)]
    assert isinstance(level[0], Op), "a group has two chips at least"
    return level[0]


class _Vectors:
    """Sums by row and tile."""

    def __init__(self, parts: list[Sums], rows: int, tiles: int) -> None:
        self.parts, self.tiles = parts, tiles
        self.which = np.zeros((2, rows, tiles), np.int64)  # part, and number in it
        self.ready = np.zeros((rows, tiles), np.int64)
        for k, part in enumerate(parts):
            self.which[:, part.row, part.tile] = np.stack([np.full(len(part.row), k), np.arange(len(part.row))])
            self.ready[part.row, part.tile] = part.ready

    def vec(self, row: int, tile: int) -> Vec:
        """One of them."""
        k, i = self.which[:, row, tile].tolist()
        part = self.parts[k]
        return Vec(tuple(part.slices[i].tolist()), int(part.address[i]), int(part.ready[i]),
                   tuple(part.writers[i].tolist()))

    def order(self, part: int) -> list[tuple[int, int]]:
        """Rows of a part and tiles, those first whose sums on all slots are made first."""
        ready = self.ready.reshape(-1, part, self.tiles)[:-1].max(axis=0)
        return [(int(k) // self.tiles, int(k) % self.tiles) for k in np.argsort(ready, axis=None, kind="stable")]
