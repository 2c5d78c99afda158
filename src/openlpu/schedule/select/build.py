"""The state of one program being built: values of the graph as vectors, constants, the host's rows, lane reductions.

Every operator's file in this folder is functions of a :class:`Build`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph
from openlpu.partition.split import Stage
from openlpu.place.emplace import Source, byte_planes
from openlpu.place.host import placed
from openlpu.place.lanes import HeadLanes, Lanes
from openlpu.place.layout import Layout
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.expression import Op
from openlpu.schedule.guide import Guide
from openlpu.schedule.temporaries import Temporaries, scoped
from openlpu.schedule.units.c2c import C2c, Cabling, group_ports
from openlpu.schedule.units.mem import Mem
from openlpu.schedule.units.mxm import Mxm
from openlpu.schedule.units.sxm import Sxm
from openlpu.schedule.units.vxm import Vxm
from openlpu.schedule.values import Vec

I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Floats:
    """An fp32 value: one 32-bit vector per row of its lane map."""

    lanes: Lanes
    vecs: list[Vec]


@dataclass(frozen=True)
class Coded:
    """Integer codes: low planes, high planes where a wide channel sits, the scale in all lanes."""

    lanes: Lanes
    low: list[Vec]
    high: list[Vec | None]
    scale: Vec


@dataclass(frozen=True)
class Routes:
    """Of each chosen expert, ascending: its weight and 1 (0 where the weight is 0) in all lanes, and by hemisphere the
    map of addresses that names it."""

    weights: list[Vec]
    live: list[Vec]
    guides: list[tuple[Guide, Guide]]


@dataclass
class Build:
    """The program of a stage's chips for contexts of at most ``context`` positions, ``chunk`` tokens a step.

    ``floats`` and ``coded`` hold the values of the graph by name and place in the chunk.
    """

    stage: Stage
    layout: Layout
    context: int
    cabling: Cabling = field(default_factory=Cabling)
    chunk: int = 1
    asm: Assembler = field(init=False)
    mem: Mem = field(init=False)
    vxm: Vxm = field(init=False)
    sxm: Sxm = field(init=False)
    mxm: Mxm = field(init=False)
    c2c: C2c = field(init=False)
    floats: dict[tuple[str, int], Floats] = field(default_factory=dict)
    coded: dict[tuple[str, int], Coded] = field(default_factory=dict)
    routes: dict[tuple[str, int], Routes] = field(default_factory=dict)
    last_send: int = 0  # to the next stage

    def __post_init__(self) -> None:
        self.asm = Assembler(self.layout.chip, self.layout.homes.sram)
        self.mem, self.vxm, self.mxm = Mem(self.asm), Vxm(self.asm), Mxm(self.asm)
        self.sxm = Sxm(self.asm, self.vxm)
        self.c2c = C2c(self.asm, group_ports(self.chip, self.stage.tensor, self.cabling), self.cabling)

    @property
    def graph(self) -> Graph:
        """The nodes of the stage."""
        return self.stage.graph

    @property
    def chip(self) -> Chip:
        """The chip this program is for."""
        return self.layout.chip

    @property
    def temporaries(self) -> Temporaries:
        """Rows for values inside the token."""
        return self.asm.temporaries

    @property
    def heads(self) -> HeadLanes:
        """Where attention's heads sit."""
        return self.layout.heads

    @property
    def blocks(self) -> int:
        """Attention blocks in the context bucket."""
        return -(-self.context // BLOCK)

    # -- resident vectors --------------------------------------------------------------------------------------

    def home(self, name: str) -> Vec:
        """A placed vector, by the name that place/layout.py gave it."""
        home = self.layout.homes.homes[name]
        return Vec(home.slices, home.address, 0, (0,) * len(home.slices))

    def lanes(self, name: str) -> Lanes:
        """The lane map of a graph value."""
        return self.layout.lanes[name]

    def constant(self, words: I32, planes: int = 4, copy: int = 0) -> Vec:
        """A vector of 32-bit words (or their low ``planes`` bytes), the same one each time it is asked for.

        ``words``: [lanes], or [roles, lanes].
        """
        words = words.astype("<i4")
        if words.ndim == 2 and (words == words[0]).all():
            words = words[0]
        name = f"constants.{planes}.{copy}.{hashlib.sha256(words.tobytes()).hexdigest()[:16]}"
        data = byte_planes(words.reshape(-1, self.chip.lanes))[:, :planes]
        source = Source("bytes", data=data if words.ndim == 1 else data[:, None])
        return self._keep(name, source, planes)

    def _keep(self, name: str, source: Source, planes: int, hemisphere: int | None = None) -> Vec:
        """A row that the scheduler adds to the layout; every segment that asks shares it."""
        homes = self.layout.homes
        if name not in homes.homes:
            homes.keep(name, source, homes.quad_slices(hemisphere)[:planes])
        return self.home(name)

    def mask(self, lanes: NDArray[np.bool_]) -> Vec:
        """All ones in the lanes, zeros elsewhere: the operand of ``mask``; lanes by role where they differ."""
        return self.constant(np.where(lanes, -1, 0).astype(np.int32))

    def lane_map(self, source: I32) -> list[Vec]:
        """A permutation as two byte planes, in two groups: data in the one group takes its map from the other."""
        return [self.constant(source.astype(np.int32), planes=2, copy=i) for i in (0, 1)]

    def rotation(self, by: int) -> list[Vec]:
        """The map that brings lane l + by to lane l, around."""
        return self.lane_map((np.arange(self.chip.lanes, dtype=np.int32) + by) % self.chip.lanes)

    def host_row(self, name: str, planes: int = 4, hemisphere: int | None = None, *, place: int = 0) -> Vec:
        """A row the host rewrites before each step; ``place``: of the chunk, for what differs between its tokens."""
        return self._keep(f"host.{placed(name, place)}", Source("zeros"), planes, hemisphere)

    # -- lane reductions ---------------------------------------------------------------------------------------

    @scoped
    def lane_max(self, vec: Vec, op: str) -> Vec:
        """The maximum (or minimum: ``op``) over all lanes, in every lane: each round of rotations widens the window."""
        window = 1
        for radix in rounds(self.chip.lanes):
            tree: Op | Vec = vec
            for r in range(1, radix):
                tree = Op(op, self.sxm.permute(vec, self.rotation(r * window)), tree)
            assert isinstance(tree, Op), "a round has at least two members"
            vec = self.vxm.evaluate(tree)
            window *= radix
        return vec


def rounds(lanes: int) -> list[int]:
    """Factors of the lane count, at most 8 each (the fastest, measured), whose product is the lane count."""
    out = []
    while lanes > 1:
        radix = next(r for r in (8, 5, 4, 3, 2, lanes) if lanes % r == 0)
        out.append(radix)
        lanes //= radix
    return out
