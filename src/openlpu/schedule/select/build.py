"""The state of one program being built: values of the graph as vectors, constants, the host's rows, lane reductions.

Every operator's file in this folder is functions of a :class:`Build`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph
from openlpu.place.emplace import Source, byte_planes
from openlpu.place.lanes import HeadLanes, Lanes, head_lanes, packed
from openlpu.schedule.assembler import Assembler
from openlpu.schedule.expression import Op
from openlpu.schedule.program import Resident
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


@dataclass
class Build:
    """One chip's program for contexts of at most ``context`` positions."""

    chip: Chip
    graph: Graph
    context: int
    asm: Assembler = field(init=False)
    mem: Mem = field(init=False)
    vxm: Vxm = field(init=False)
    sxm: Sxm = field(init=False)
    mxm: Mxm = field(init=False)
    heads: HeadLanes = field(init=False)
    floats: dict[str, Floats] = field(default_factory=dict)
    coded: dict[str, Coded] = field(default_factory=dict)
    host: dict[str, Resident] = field(default_factory=dict)
    constants: dict[bytes, Vec] = field(default_factory=dict)
    turn: int = 0

    def __post_init__(self) -> None:
        c = self.graph.config
        self.asm = Assembler(self.chip)
        self.mem, self.vxm, self.mxm = Mem(self.asm), Vxm(self.asm), Mxm(self.asm)
        self.sxm = Sxm(self.asm, self.vxm)
        self.heads = head_lanes(c.heads, c.kv_heads, c.head_dim, self.chip)

    @property
    def blocks(self) -> int:
        """Attention blocks in the context bucket."""
        return -(-self.context // BLOCK)

    def layout(self, name: str) -> Lanes:
        """The lane map of a graph value: heads side by side for q, k, v; packed otherwise."""
        for node in self.graph.nodes:
            if node.op == "attention" and (name == node.output or name in node.inputs[:1]):
                return self.heads.query
            if node.op == "attention" and name in node.inputs[1:]:
                return self.heads.kv
            if node.op in ("rope", "headnorm") and name in node.inputs:
                return self.layout(node.output)
            if node.op == "quantize" and name == node.output:
                return self.layout(node.inputs[0])
        return packed(self.graph.values[name].size, self.chip)

    # -- resident vectors --------------------------------------------------------------------------------------

    def quad_slices(self, hemisphere: int | None = None) -> tuple[int, ...]:
        """Slices for a resident 32-bit vector: groups in turn, innermost first, where there is room."""
        asm, half = self.asm, self.chip.groups
        order = sorted(range(2 * half), key=lambda g: abs(2 * g + 1 - 2 * half) // 2)
        order = [g for g in order if hemisphere is None or (g >= half) == bool(hemisphere)]
        self.turn += 1
        return max((asm.group_slices(order[(self.turn + k) % len(order)]) for k in range(len(order))),
                   key=lambda s: asm.sram.room(s) // 64)

    def tile_slices(self, hemisphere: int) -> tuple[int, ...]:
        """``weight_streams`` slices of a hemisphere, from the edge inward; the set with the most room."""
        side, width = self.asm.side(hemisphere), self.chip.weight_streams
        side = side if hemisphere == 0 else side[::-1]
        sets = [tuple(sorted(side[i : i + width])) for i in range(0, len(side) - width + 1, width)]
        return max(sets, key=self.asm.sram.room)

    def constant(self, words: I32, planes: int = 4, copy: int = 0) -> Vec:
        """A vector of 32-bit words (or their low ``planes`` bytes), the same one each time it is asked for."""
        key = bytes([planes, copy]) + words.astype("<i4").tobytes()
        if key not in self.constants:
            data = byte_planes(words.astype(np.int32)[None, :])[:, :planes]
            name = f"constants.{len(self.constants)}"
            self.constants[key] = self.asm.keep(name, Source("bytes", data=data), self.quad_slices()[:planes])
        return self.constants[key]

    def mask(self, lanes: NDArray[np.bool_]) -> Vec:
        """All ones in the lanes, zeros elsewhere: the operand of ``mask``."""
        return self.constant(np.where(lanes, -1, 0).astype(np.int32))

    def lane_map(self, source: I32) -> list[Vec]:
        """A permutation as two byte planes, in two groups: data in the one group takes its map from the other."""
        return [self.constant(source.astype(np.int32), planes=2, copy=i) for i in (0, 1)]

    def rotation(self, by: int) -> list[Vec]:
        """The map that brings lane l + by to lane l, around."""
        return self.lane_map((np.arange(self.chip.lanes, dtype=np.int32) + by) % self.chip.lanes)

    def parameter(self, name: str, key: str, lanes: I32) -> Vec:
        """fp32 parameter entries by channel, one vector."""
        rows = np.array([0], np.int32)
        if self.graph.params[key].ndim == 1:
            source = Source("row", key, rows, lanes)
        else:
            source = Source("float", key, rows, lanes)
        return self.asm.keep(name, source, self.quad_slices())

    def host_row(self, name: str, planes: int = 4, hemisphere: int | None = None) -> Vec:
        """A row the host rewrites before each token."""
        if name not in self.host:
            vec = self.asm.keep(f"host.{name}", Source("zeros"), self.quad_slices(hemisphere)[:planes])
            self.host[name] = self.asm.resident[-1]
            return vec
        row = self.host[name]
        return Vec(tuple(int(s) for s in row.slices[0]), int(row.addresses[0]), 0, (0,) * planes)

    # -- lane reductions ---------------------------------------------------------------------------------------

    def lane_max(self, vec: Vec, op: str) -> Vec:
        """The maximum over all lanes, in every lane: rounds of rotations, each multiplying the window."""
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
    """Factors of the lane count, at most 5 each, whose product is the lane count."""
    out = []
    while lanes > 1:
        radix = next(r for r in (4, 5, 3, 2, lanes) if lanes % r == 0)
        out.append(radix)
        lanes //= radix
    return out
