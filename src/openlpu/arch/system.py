"""A system file's :class:`Spec` in, a :class:`System` out: its wires, and which chips of the machine a program gets.

A program knows chips by logical number.  Which physical chip that is, spares and faults decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import DoesNotFit, Unsupported
from openlpu.arch import alignment
from openlpu.arch.chip import Chip
from openlpu.arch.link import Link
from openlpu.arch.system_file import Spec, read_spec
from openlpu.arch.topology import Wires, wires


@dataclass(frozen=True, eq=False)
class System:
    """Chips and the wires between them.

    ``physical`` says which chip of the machine each logical chip is, ``dead`` which of them are out of order, and
    ``built`` holds all wires of the machine, spares included.
    """

    spec: Spec
    built: Wires
    physical: NDArray[np.int64]
    dead: frozenset[int]

    @property
    def name(self) -> str:
        """As its file gives it."""
        return self.spec.name

    @property
    def chip(self) -> Chip:
        """The kind of all its chips."""
        return self.spec.chip

    @property
    def epoch(self) -> int:
        """Cycles of the period of the hardware aligned counter."""
        return self.spec.epoch

    @property
    def chips(self) -> int:
        """Chips that a program runs on."""
        return len(self.physical)

    @property
    def links(self) -> tuple[Link, ...]:
        """Classes of cable by level: inside a node, between nodes, between racks."""
        return self.spec.links

    @property
    def sram_bytes(self) -> int:
        """SRAM of all chips that a program runs on."""
        chip = self.chip
        return self.chips * chip.slices * chip.words_per_slice * chip.lanes

    @cached_property
    def wires(self) -> Wires:
        """Where each port of each logical chip leads."""
        return self.built.among(self.physical)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Chips of the group that a wire of each level leads out of: a chip, a node, a rack."""
        shape = self.spec.shape
        rack = shape.chips * (shape.nodes - shape.spares)
        whole = shape.chips if shape.kind == "pipeline" else rack  # a pipeline's racks are not joined as groups
        return (1, shape.chips, whole)[: max(1, len(self.links))]

    @cached_property
    def tree(self) -> alignment.Tree:
        """The spanning tree along which clocks are aligned."""
        return alignment.tree(self.wires, self.sizes, chain=self.spec.shape.kind == "pipeline")

    @cached_property
    def misaligned(self) -> tuple[int, ...]:
        """By level: most cycles between the clocks at the two ends of a wire just after alignment."""
        return alignment.misaligned(self.wires, self.tree, [link.align for link in self.links])

    def slack(self, level: int) -> int:
        """Cycles that two clocks may drift apart until the chips must be aligned again."""
        return self.links[level].latency - self.links[level].maximum - self.misaligned[level] - 1

    def pace(self, chips: int, levels: Iterable[int]) -> alignment.Pace:
        """How long the first ``chips`` chips may run on their own clocks with links of some levels in use."""
        slack = min(self.slack(level) for level in levels)
        every = np.arange(chips)
        path = self.tree.path_sums(every, np.zeros_like(every), [link.align for link in self.links])
        return alignment.Pace(slack * 10**6 // (2 * alignment.PPM), int(path.max()), self.epoch)

    @property
    def forward(self) -> int:
        """Cycles of a hop outside the link: out of the SRAM next to the edge, and into that of the next chip."""
        edge, latency = self.chip.slice_position(0), self.chip.latency
        return latency["read"] + edge + latency["c2c"] + edge + latency["write"]

    def hop(self, level: int) -> int:
        """Cycles from the read of a vector in one chip until it can be read in the next."""
        return self.links[level].latency + self.forward

    def seconds(self, cycles: float) -> float:
        """Cycles of the chip's clock as seconds."""
        return cycles / self.chip.clock_hz

    def lined_up(self, stage: int) -> System:
        """The same chips numbered for stages of ``stage`` chips in a line, where a node holds several of them.

        Chip r of a stage is then wired to chip r of the next: each second node is passed backwards, so that a stage is
        followed by one in the same node, or by its counterpart in the next node.  What is left over comes last.
        """
        whole = self.chips // stage * stage
        groups = self.physical[:whole].reshape(-1, max(1, self.spec.shape.chips // stage), stage).copy()
        groups[1::2] = groups[1::2, ::-1]
        return replace(self, physical=np.append(groups, self.physical[whole:]))

    def without(self, dead: Iterable[int]) -> System:
        """The same system on the healthy nodes of the machine, ``dead`` being physical chips.

        A node with a dead chip is not used at all, so that labels inside nodes stay.  Each ring of nodes starts behind
        the dead one: one dead node for one spare keeps every label of a single rack, and a program runs as it is
        (``wires.same`` says so).  A pipeline passes over dead nodes and leaves spare ones at its end.
        Raises :class:`DoesNotFit` with the count of healthy chips if spares are too few.
        """
        dead = frozenset(dead)
        built = self.spec.shape.built
        for chip in sorted(dead):
            if not 0 <= chip < built:
                raise Unsupported(f"there is no chip {chip}", where=self.spec.where,
                                  fix=f"its chips are 0 to {built - 1}")
        return _arrange(self.spec, self.built, self.dead | dead)


def load_system(name: str, chips: int | None = None) -> System:
    """A system by name or by the path of a TOML file, of its own size or with so many usable ``chips``.

    Raises :class:`Unsupported` naming the file and the field when there is none, or it cannot be built.
    """
    return of_spec(read_spec(name, chips))


def of_spec(spec: Spec, dead: Iterable[int] = ()) -> System:
    """The system that a file describes, without its ``dead`` physical chips; raises as :meth:`System.without`."""
    return _arrange(spec, wires(spec.shape), frozenset(dead))


def _arrange(spec: Spec, built: Wires, dead: frozenset[int]) -> System:
    """Logical chips onto physical ones, around the dead nodes."""
    shape = spec.shape
    down = np.zeros(shape.built, bool)
    down[list(dead)] = True
    down = np.logical_or.reduce(down.reshape(shape.racks, shape.nodes, shape.chips), axis=2)
    if shape.kind == "pipeline":
        order = np.flatnonzero(~down).tolist()[: shape.usable // shape.chips]
    else:
        order = [rack * shape.nodes + node for rack in range(shape.racks)
                 for node in _stretch(down[rack], shape.nodes - shape.spares)]
    if len(order) * shape.chips < shape.usable:
        healthy = int((~down).sum()) * shape.chips
        what = f"{shape.usable} chips asked for, {healthy} of {shape.built} are in nodes without a dead chip"
        if healthy >= shape.usable:
            what += f", too few of them in rack {int(down.sum(axis=1).argmax())}"
        raise DoesNotFit(what, where=spec.where, fix="use fewer chips, or a system with more spare nodes")
    physical = np.add.outer(np.array(order) * shape.chips, np.arange(shape.chips)).ravel()
    system = System(spec, built, physical, dead)
    if (system.tree.parent[1:] < 0).any():
        raise DoesNotFit("no wire is left between some of the healthy nodes", where=spec.where,
                         fix="repair a dead node: a wire reaches over only so many")
    for link, apart in zip(spec.links, system.misaligned, strict=True):
        if link.latency <= link.maximum + apart:
            what = f"is {link.latency}: a vector may take {link.maximum} cycles, between clocks {apart} apart"
            where = f"{spec.where}, [links.{link.name}] latency"
            smaller = f"fewer chips (--chips N of `openlpu systems` and `openlpu compile --system {spec.name}`)"
            raise Unsupported(what, where=where, fix=f"make it more than {link.maximum + apart}; or use {smaller}")
    return system


def _stretch(down: NDArray[np.bool_], needed: int) -> list[int]:
    """The shortest stretch of the ring of nodes with as many healthy ones as needed; empty if there are too few."""
    count = len(down)
    behind = np.flatnonzero(~down & np.roll(down, 1)) if down.any() else np.zeros(1, int)
    found: list[tuple[int, list[int]]] = []
    for start in behind.tolist():
        ring = [node % count for node in range(start, start + count) if not down[node % count]][:needed]
        if len(ring) == needed:
            found.append(((ring[-1] - start) % count, ring))
    return min(found)[1] if found else []
