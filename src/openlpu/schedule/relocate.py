"""A scheduled sweep in; the sweep of another layer, the same in every cycle with that layer's addresses, out.

Layers of an encoder lie alike (place/layout.py): in the same slices, at other addresses.  So what is scheduled for one
serves all, if every operand of the one has a place in the other's, no slice reads and writes one bank in a cycle, and
no queue takes other bytes, for then fetches bring what they brought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.encoding import extents
from openlpu.arch.isa import BY_NAME
from openlpu.graph.ir import Graph, Node
from openlpu.place.homes import Homes
from openlpu.place.layout import Layout, of_sweep
from openlpu.schedule.fetch import Page
from openlpu.schedule.program import Claims, Sweep

LOOKED_UP = tuple(BY_NAME[name].opcode for name in ("read", "gather"))
ADDRESSED = (*LOOKED_UP, *(BY_NAME[name].opcode for name in ("write", "scatter")))
DIRECT = tuple(BY_NAME[name].opcode for name in ("read", "write"))


@dataclass(frozen=True)
class Scheduled:
    """A sweep, the graph it was scheduled from, and where its pages of instructions lie."""

    graph: Graph
    sweep: Sweep
    pages: list[Page]

    def moved(self, graph: Graph, number: int, layout: Layout) -> Scheduled | None:
        """Sweep ``number``, of another graph; None where the schedule does not serve it."""
        by = number - self.sweep.number
        names = _names(self.graph, graph, layout)
        to = _rows(layout.homes, self.sweep.number, by, self.pages) if names else None
        if names is None or to is None:
            return None
        old = self.sweep.queues
        queues = {name: _readdressed(rows, to[int(name[3:])]) if name.startswith("mem") else rows
                  for name, rows in old.items()}
        slices = [(queues[f"mem{s}"], s) for s in range(layout.chip.slices)]
        half = layout.chip.words_per_slice // layout.chip.banks
        if not all(_same_bytes(old[f"mem{s}"], rows) and _apart(rows, half) for rows, s in slices):
            return None
        claims = _claims(self.sweep.claims, slices, to)
        tensors = {names[name]: rows for name, rows in self.sweep.tensors.items()}
        origin = tuple((first, names.get(name, name)) for first, name in self.sweep.origin)
        sweep = replace(self.sweep, number=number, queues=queues, claims=claims, tensors=tensors, origin=origin)
        pages = [replace(page, address=int(to[page.slice_, page.address])) for page in self.pages]
        return Scheduled(graph, sweep, pages)


def _names(here: Graph, there: Graph, layout: Layout) -> dict[str, str] | None:
    """The other's name of every value, if each node does the same with what lies alike."""
    names: dict[str, str] = {}
    if len(here.nodes) != len(there.nodes):
        return None
    for a, b in zip(here.nodes, there.nodes, strict=True):
        if _seen(a, here, layout) != _seen(b, there, layout) or tuple(names[i] for i in a.inputs) != b.inputs:
            return None
        names[a.output] = b.output
    return names


def _seen(node: Node, graph: Graph, layout: Layout) -> tuple[object, ...]:
    """What the scheduler sees of a node, but for names and homes."""
    attrs = {word: value for word, value in node.attrs.items() if word not in ("layer", "state")}
    lanes = layout.lanes[node.output].channel.tobytes() if node.output in layout.lanes else b""
    planes = [plane for name, plane in layout.plane.items() if name.rpartition(".")[0] == node.where]
    return (node.op, node.params.keys(), attrs, graph.values[node.output].size, lanes, planes,
            layout.side.get(node.where))


def _rows(homes: Homes, number: int, by: int, pages: Sequence[Page]) -> NDArray[np.int32] | None:
    """[slice, row]: where what lies there for sweep ``number`` lies for the one ``by`` further on; None where it lies
    in other slices, or slices have no room for its pages."""
    chip = homes.chip
    to = np.tile(np.arange(chip.words_per_slice, dtype=np.int32), (chip.slices, 1))
    for name, home in homes.homes.items():
        other = homes.homes[of_sweep(name, number, by)]
        if (home.slices, home.count) != (other.slices, other.count):
            return None
        to[home.slices, home.address : home.address + home.count] += other.address - home.address
    for s in {page.slice_ for page in pages}:
        own = [page.address for page in pages if page.slice_ == s]
        count = 2 * len(own)
        if homes.sram.room((s,)) < count:
            return None
        to[s, min(own) : min(own) + count] = homes.sram.bottom[s] + np.arange(count)
    return to


def _readdressed(rows: NDArray, to: NDArray[np.int32]) -> NDArray:
    out, at = rows.copy(), np.isin(rows["op"], ADDRESSED)
    out["address"][at] = to[rows["address"][at]]
    return out


def _same_bytes(old: NDArray, new: NDArray) -> bool:
    """Whether repeats say the same of both."""
    return all(np.array_equal(a, b) for a, b in zip(extents(old), extents(new), strict=True))


def _apart(rows: NDArray, half: int) -> bool:
    """Whether what a slice reads and writes in one cycle lies in different banks."""
    rows = rows[np.isin(rows["op"], DIRECT)]
    both = np.flatnonzero(rows["cycle"][1:] == rows["cycle"][:-1])
    bank = rows["address"] // half
    return not (bank[both] == bank[both + 1]).any()


def _claims(claims: Claims, slices: Sequence[tuple[NDArray, int]], to: NDArray[np.int32]) -> Claims:
    """The same, of the words that are meant now."""
    where = np.full(int(claims.reads["reader"].max()) + 1, -1, np.int32)
    for rows, s in slices:
        where[rows["id"][np.isin(rows["op"], LOOKED_UP)]] = s
    reads, outputs = claims.reads.copy(), claims.outputs.copy()
    own = where[reads["reader"]]
    words = (reads["operand"] == 0) & (own >= 0)
    reads["part"][words] = to[own[words], reads["part"][words]]
    outputs["address"] = to[outputs["slice"], outputs["address"]]
    return replace(claims, reads=reads, outputs=outputs)
