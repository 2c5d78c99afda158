"""The state of one program being built: values of the graph as vectors, constants, the host's rows, lane reductions.

Every operator's file in this folder is functions of a :class:`Build`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph
from openlpu.partition.split import Stage
from openlpu.place.emplace import Source, byte_planes
from openlpu.place.homes import Home
from openlpu.place.host import placed
from openlpu.place.lanes import HeadLanes, Lanes, around
from openlpu.place.layout import Layout
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.expression import Later, Op, Part, Trip
from openlpu.schedule.guide import Guide
from openlpu.schedule.temporaries import Temporaries, scoped
from openlpu.schedule.units.c2c import C2c, Cabling, group_ports
from openlpu.schedule.units.mem import Mem
from openlpu.schedule.units.mxm import Mxm
from openlpu.schedule.units.sxm import Moved, Sxm, Turned
from openlpu.schedule.units.vxm import Vxm
from openlpu.schedule.values import Vec

I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Floats:
    """An fp32 value: one 32-bit vector per row of its lane map, there or made when it is read."""

    lanes: Lanes
    parts: Sequence[Vec | Later]

    @property
    def vecs(self) -> list[Vec]:
        """The vectors in SRAM."""
        return [x.made() if isinstance(x, Later) else x for x in self.parts]


@dataclass(frozen=True)
class Coded:
    """Integer codes: low planes, high planes where a wide channel sits, the scale in all lanes.

    ``squares``: byte planes of the products that ``rms`` sums, as :func:`~openlpu.schedule.select.codes.products` lists
    them, where they were made beside the codes."""

    lanes: Lanes
    low: list[Vec]
    high: list[Vec | None]
    scale: Vec | Later
    squares: list[list[tuple[Vec, Vec]]] = field(default_factory=list)


@dataclass(frozen=True)
class Sums:
    """Exact integer sums with low planes, and with high planes where there are any, of one vector."""

    low: Vec
    high: Vec | None


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
    partners: dict[tuple[str, int], list[Later]] = field(default_factory=dict)  # for RoPE, where products make them
    routes: dict[tuple[str, int], Routes] = field(default_factory=dict)
    sums: dict[tuple[str, int], list[Sums]] = field(default_factory=dict)
    requests: dict[int, Guide] = field(default_factory=dict)  # by hemisphere: the map of the token's request
    last_send: int = 0  # to the next stage
    last_write: int = 0  # for the next sweep: cycles until it is there

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
        return resident(self.layout.homes.homes[name])

    def lanes(self, name: str) -> Lanes:
        """The lane map of a graph value."""
        return self.layout.lanes[name]

    def constant(self, words: I32, planes: int = 4, side: int | None = None) -> Vec:
        """A vector of 32-bit words (or their low ``planes`` bytes), the same one each time it is asked for.

        ``words``: [lanes], or [roles, lanes].  ``side``: the hemisphere it is wanted in.
        """
        words = words.astype("<i4")
        if words.ndim == 2 and (words == words[0]).all():
            words = words[0]
        name = f"constants.{planes}.{side}.{hashlib.sha256(words.tobytes()).hexdigest()[:16]}"
        data = byte_planes(words.reshape(-1, self.chip.lanes))[:, :planes]
        source = Source("bytes", data=data if words.ndim == 1 else data[:, None])
        if name not in self.layout.homes.homes and planes <= 2 and side is not None:
            self.layout.homes.keep(name, source, self.layout.homes.map_slices(side)[:planes])
        return self._keep(name, source, planes, side)

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
        """A permutation as two byte planes, in both hemispheres: data in the group of one takes the other."""
        return [self.constant(source.astype(np.int32), planes=2, side=i) for i in (0, 1)]

    def rotation(self, by: int, span: int = 0) -> list[Vec]:
        """The map that brings lane l + by to lane l, around; ``span``: around inside each segment of so many lanes."""
        lane, span = np.arange(self.chip.lanes, dtype=np.int32), span or self.chip.lanes
        return self.lane_map(np.where(lane < self.chip.lanes // span * span, around(lane, by, span), lane))

    def turn(self, by: int, span: int) -> list[Vec]:
        """As :meth:`rotation`, of ``span`` lanes of a superlane: a plane for ``distribute``, in both hemispheres."""
        lane = np.arange(self.chip.lanes, dtype=np.int32) % self.chip.lanes_per_superlane
        return [self.constant(around(lane, by, span), planes=1, side=i) for i in (0, 1)]

    def host_row(self, name: str, planes: int = 4, hemisphere: int | None = None, *, place: int = 0) -> Vec:
        """A row the host rewrites before each step; ``place``: of the chunk, for what differs between its tokens."""
        return self._keep(f"host.{placed(name, place)}", Source("zeros"), planes, hemisphere)

    # -- lane reductions ---------------------------------------------------------------------------------------

    @scoped
    def lane_max(
        self, x: Op | Vec, op: str, checks: Sequence[Op] = (), first: int = 1, span: int = 0, many: int = 1,
        least: bool = False, zeros: bool = False
    ) -> Op:
        """The maximum (or minimum: ``op``) of a tree over all lanes (``span``: those of each segment), in every lane;
        a tree on what comes from the SXMs.

        Each round of rotations widens the window that a lane has seen, at first ``first`` lanes.  ``checks``: computed
        beside the tree, for their errors; ``many``: how many such maxima are found at about the same time; ``least``:
        nothing is smaller than zeros, so that the SXMs may shift some, too; ``zeros``: and they are all there is behind
        the first segment.
        """
        shifts = self._even and least and many == 1 and (zeros or not span)
        far, near, side = self._rounds(-(-(span or self.chip.lanes) // first), first, many, SHIFTED if shifts else 2)
        window, trips = first * side, list[Round]()
        for radix in far:
            by = [r * window for r in range(radix)]
            trips.append(partial(self._moved, op, by, span or self.chip.lanes) if shifts else
                         partial(self._largest, op, [self.rotation(r, span) for r in by], "permute"))
            window *= radix
        window = 1
        for radix in near:
            maps = [self.turn(r * window, side) for r in range(radix)]
            trips.append(partial(self._largest, op, maps, "distribute"))
            window *= radix
        for trip in trips:
            x, checks = self._trip(trip, x, checks, straight=many <= CROWD), ()
        return x if isinstance(x, Op) else Op("pass", x)

    @property
    def _even(self) -> bool:
        """Whether what an SXM shifts and what it permutes in the same cycle comes back together."""
        return self.chip.latency["shift"] == self.chip.latency["permute"]

    def _trip(self, trip: Round, x: Op | Vec, checks: Sequence[Op], *, straight: bool) -> Op:
        """A round of rotations of a vector, or of a result that goes ``straight`` to the SXMs if it can."""
        if isinstance(x, Vec) or not straight:
            return trip(x if isinstance(x, Vec) else self.vxm.sides([x], checks=checks)[0])
        later = self.vxm.passing(x, checks)
        way = trip(later)
        return Trip(way.name, way.a, way.b, later=later, stored=trip)

    def _rounds(self, parts: int, first: int, many: int, chained: int) -> tuple[list[int], list[int], int]:
        """The rounds of ``many`` maxima over so many windows of ``first`` lanes that take the fewest cycles: those
        across superlanes, then those inside, where runs of so many lanes (1: none) are turned.  A round takes a trip,
        and two cycles for as many rotations as its chain takes at once, ``chained`` across superlanes; the SXMs make
        two rotations a cycle, of all maxima."""
        parts = max(parts, 2)  # one trip even if there is one alone, for the checks
        near = TRIP + self.chip.latency["distribute"] - self.chip.latency["permute"]
        side = math.gcd(parts, self.chip.lanes_per_superlane) if first == 1 else 1
        ways = [(far, list[int](), 1) for far in factorings(parts)]
        if side > 1:
            ways += [(far, inside, side) for inside in factorings(side)
                     for far in (factorings(parts // side) if parts > side else [[]])]

        def cost(way: tuple[list[int], list[int], int]) -> int:
            rounds = [(TRIP, chained, radix) for radix in way[0]] + [(max(near, 1), 2, radix) for radix in way[1]]
            alone = sum(trip - -2 * (radix - 1) // chained for trip, chained, radix in rounds)
            return alone + max(-(-many * sum(radix - 1 for radix in own) // 2) for own in way[:2])

        return min(ways, key=cost)

    def _moved(self, op: str, by: Sequence[int], span: int, x: Vec | Later) -> Op:
        """The maximum of rotations of a segment by so many lanes, the first by none.  Beside those that the SXMs
        permute in a cycle one is shifted: what leaves at one end in one SXM, and what comes in at the other end in the
        other."""
        turns = by[isinstance(x, Vec) :]
        slots = -(-len(turns) // SHIFTED)
        split = [*turns[2 * slots :], *[0] * (3 * slots - len(turns))]
        copies = self._copies(x, slots + 1)
        chains: list[Op] = []
        for i, amount in enumerate(turns[: 2 * slots]):
            side, shift = i % 2, split[i // 2]
            turned = Turned(self.asm, copies[i // 2 + (split[0] > shift == 0)], self.rotation(amount, span), side)
            found: Op | Turned = turned
            if shift:
                found = self._both(op, turned, span - shift if side else shift, span, north=bool(side))
            if i < 2:
                chains.append(Op(op, found, x) if not i and isinstance(x, Vec) else Op("pass", found))
            else:
                chains[side] = Op(op, found, chains[side])
        return Op(op, chains[0], chains[1]) if chains[1:] else chains[0]

    def _both(self, op: str, turned: Turned, amount: int, span: int, *, north: bool) -> Op:
        """What an SXM turns and what it shifts in the same cycle."""
        around = self.rotation(-amount if north else amount, span)
        moved = Moved(self.asm, turned.source, turned.maps, turned.hemisphere, amount=amount, north=north, same=around)
        return Op(op, Part(moved, 0), Part(moved, 1))

    def _largest(self, op: str, maps: Sequence[Sequence[Vec]], way: str, x: Vec | Later) -> Op:
        """The maximum of what some maps make of a vector, the first leaving it as it is, in a chain of what comes from
        each SXM: from one SXM at most one vector at the same offset.  A vector in SRAM itself comes last, when the SXMs
        have read it; else it is shifted by nothing beside the first turn, or turned like the others."""
        beside = isinstance(x, Later) and way == "permute" and self._even
        turns = maps[isinstance(x, Vec) or beside :]
        counts = (len(turns) + 1) // 2, len(turns) // 2
        copies = self._copies(x, counts[0])
        turned = [Turned(self.asm, copies[i // 2 + counts[0] - counts[i % 2]], lane_map, i % 2, way)
                  for i, lane_map in enumerate(turns)]
        chains = [Op("pass", own[0]) for own in (turned[::2], turned[1::2]) if own]
        if beside:
            chains[0] = self._both(op, turned[0], 0, 0, north=True)
        for i, other in enumerate(turned[2:]):
            chains[i % 2] = Op(op, other, chains[i % 2])
        if isinstance(x, Vec):
            chains[-1:] = [Op(op, x, chains[-1])]
        return chains[0] if len(chains) == 1 else Op(op, chains[0], chains[1])

    def _copies(self, x: Vec | Later, count: int) -> list[Vec | Op | Later]:
        """A vector as it can be read in some slots of the SXMs; of what comes straight, each two cycles behind."""
        copies: list[Vec | Op | Later] = [x]
        while len(copies) < count:
            copies.append(x if isinstance(x, Vec) else Op("pass", copies[-1]))
        return copies


def resident(home: Home) -> Vec:
    """The first vector of a home, there before the token began."""
    return Vec(home.slices, home.address, 0, (0,) * len(home.slices))


Round = Callable[["Vec | Later"], Op]  # of rotations, of a vector or of what goes straight to the SXMs
SHIFTED = 3  # rotations in two cycles of a chain, of which the SXMs shift one
CROWD = 16  # maxima at about the same time, beyond which SXMs are hardly ever free when a result comes
TRIP = 46  # cycles, about, of a trip to the SXM and back, however few rotations are made


def factorings(lanes: int) -> Iterator[list[int]]:
    """Factors of which the product is at least a number of lanes, 2 or more, and hardly more: one, two, and so on."""
    for count in range(1, lanes.bit_length() + 1):
        radix = next(r for r in range(1, lanes + 1) if r**count >= lanes)
        factors = [radix] * count
        for i in range(count):
            while factors[i] > 1 and math.prod(factors) // factors[i] * (factors[i] - 1) >= lanes:
                factors[i] -= 1
        yield factors
