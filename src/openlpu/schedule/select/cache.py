"""One kv vector's new rows in, one of each token; where the whole cache of that vector can be read out.

Position t lies in slice t % 16 of 16 slices.  K: address t / 16, all superlanes.  V: superlane (t % 256) / 16, one
address per group of 16 channels, 16 groups a block.  Scales: per KV head one fp32 vector a block, position on its lane.
A 4-bit code has a byte here, the integer that it stands for, so attention need not know.  The host's address maps send
a token's row where it belongs; the instructions are the same for every position.  The rows of several requests lie side
by side, and one more map says whose are read.  A token's place in the chunk is its position modulo the chunk, so one of
16 has 16 slices of its own, one of a chunk of four has four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openlpu.arch.truepoint import BLOCK
from openlpu.arch.truepoint.codes import INV_NARROW, INV_NIBBLE, INV_WIDE, NARROW_MAX, NIBBLE_MAX, WIDE_MAX
from openlpu.schedule.expression import Op
from openlpu.schedule.select.build import Build
from openlpu.schedule.select.codes import amax, at_least_floor, chain, code_of, float_of, reciprocal, scale_of
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.units.vxm import Want
from openlpu.schedule.values import Vec


@dataclass(frozen=True)
class Plane:
    """One byte plane of codes: 16 slices, the first address, and who wrote this token's rows."""

    slices: tuple[int, ...]
    address: int
    ready: int
    writers: tuple[tuple[int, ...], ...]  # by channel group (V) or one entry (K): per slice the scatter's id


@dataclass(frozen=True)
class Rows:
    """A kv vector's cache: byte planes, rows a block, scales by KV head."""

    planes: tuple[Plane, ...]  # low first
    groups: int
    scales: dict[int, Vec]
    requests: int

    def vectors(self, plane: int, block: int, group: int) -> Vec:
        """16 rows that one load takes: 16 positions of K, or 16 channels of V before the transposer."""
        p = self.planes[plane]
        writers = p.writers[group % len(p.writers)]
        return Vec(p.slices, p.address + (block * self.groups + group) * self.requests, p.ready, writers, True)

    def scale(self, b: Build, kv_head: int, block: int) -> Vec:
        """fp32 scales of a block's positions; of several requests those of the token's are looked up."""
        first = self.scales[kv_head]
        row = Vec(first.slices, first.address + block * self.requests, first.ready, first.writers, True)
        if self.requests == 1:
            return row
        away = int(first.slices[0] < b.chip.slices_per_hemisphere)
        return b.mem.gather(row, b.host_row(f"request.{away}", 1, away))


@scoped
def write(b: Build, where: str, tokens: Sequence[tuple[Op, Vec]], c: int, side: int, bits: int, *,
          transposed: bool) -> Rows:
    """Scatter the codes of kv vector ``c`` of K or V of all tokens (see :func:`coded`), heads side by side, and their
    scales into the cache."""
    codes, own = zip(*tokens, strict=True)
    groups = b.heads.channel_groups if transposed else BLOCK // b.chip.weight_streams
    shifted = [(codes, 0), ([Op("add_mod", code, 128) for code in codes], 1)] if bits == 16 else [(codes, 0)]
    planes = tuple(
        _write_plane(b, b.home(f"kv.{where}.{c}.{i}"), trees, byte, groups, side, transposed=transposed)
        for i, (trees, byte) in enumerate(shifted)
    )
    heads, scales = b.heads.heads_in(c), {}
    for g, lane in heads:
        mask, first = b.mask(b.heads.mask(lane)), b.heads.dim
        trees = [b.lane_max(Op("mask", x, mask), "max", first=first, many=len(heads)) for x in own]
        scales[g] = _write_scales(b, b.home(f"kv.{where}.scale{g}"), [b.vxm.evaluate(tree) for tree in trees], side)
    return Rows(planes, groups, scales, b.layout.requests)


@scoped
def coded(b: Build, x: Vec, bits: int) -> tuple[Op, Vec]:
    """(codes, scale) of one token, the scale of each head in its lanes.  Codes of 4 bits lie between the lower end of
    the head's lanes and 0, and the upper one."""
    if bits > 4:
        factor = scale_of(amax(b, [x], span=b.heads.dim), INV_WIDE if bits == 16 else INV_NARROW)
        inverse, scale = b.vxm.results([Want(reciprocal(factor)), Want(factor)])
        return code_of(x, inverse, WIDE_MAX if bits == 16 else NARROW_MAX), scale
    trees = (b.lane_max(Op("pass", x), end, span=b.heads.dim) for end in ("min", "max"))
    low, high = (b.vxm.evaluate(Op(end, tree, 0.0)) for end, tree in zip(("min", "max"), trees, strict=True))
    factor = at_least_floor(Op("mul", Op("sub", high, low), float_of(INV_NIBBLE)))
    inverse, scale = b.vxm.results([Want(reciprocal(factor)), Want(factor)])
    zero = b.vxm.evaluate(Op("to_int", Op("mul", low, inverse)))
    return code_of(x, inverse, (b.vxm.evaluate(Op("add_mod", zero, NIBBLE_MAX)), zero)), scale


def _write_plane(b: Build, home: Vec, codes: Sequence[Op], byte: int, groups: int, side: int, *,
                 transposed: bool) -> Plane:
    """Scatter byte ``byte`` of the tokens' codes, each to the slices of its place; data comes from the other
    hemisphere, beside the maps."""
    width, chunk = b.chip.weight_streams, b.chunk
    maps = b.host_row(f"{'v' if transposed else 'k'}_map.{1 - side}", 2, 1 - side)
    entries = [(maps.plane(r // 8), r % 8) for r in range(width)]
    far = b.asm.side(side) + maps.slices
    ready = 0
    writers = [[0] * width for _ in range(groups if transposed else 1)]
    for place, code in enumerate(codes):
        own = slice(place, width, chunk)
        rows = _v_rows(b, code, byte, groups, far) if transposed else [b.vxm.evaluate(code, far).plane(byte)]
        for group, data in enumerate(rows):
            address = home.address + group * b.layout.requests
            done, writers[group][own] = b.mem.scatter(data, entries[own], home.slices[own], address,
                                                      [0] * (width // chunk))
            ready = max(ready, done)
    return Plane(home.slices, home.address, ready, tuple(map(tuple, writers)))


def _v_rows(b: Build, code: Op, byte: int, groups: int, far: tuple[int, ...]) -> list[Vec]:
    """V's channel groups, each brought to the position's superlane: a turn by the host's map, then a fixed one."""
    turned = b.sxm.permute(b.vxm.evaluate(code).plane(byte), [b.host_row("v_turn", 2)])
    per = b.chip.lanes_per_superlane
    return [b.sxm.permute(turned, b.rotation(per * group), far) for group in range(groups)]


def joined(b: Build, parts: Sequence[Op | Vec]) -> Op:
    """The sum of masked vectors with no lane in common."""
    pieces: list[Op | Vec] = list(parts)
    while len(pieces) > 4:
        pieces = [b.vxm.evaluate(tree) if isinstance(tree := chain("add_mod", pieces[i : i + 4]), Op) else tree
                  for i in range(0, len(pieces), 4)]
    tree = chain("add_mod", pieces)
    return tree if isinstance(tree, Op) else Op("pass", tree)


def _write_scales(b: Build, table: Vec, scales: Sequence[Vec], side: int) -> Vec:
    """Put the tokens' scales into their lanes of the current block's row; returns the table with its writers.

    Lanes are masked, not multiplied: a token that runs again must not find what an error left there, NaN say.
    """
    block = b.host_row(f"block.{1 - side}", 1, 1 - side)
    old = b.mem.gather(table, block)
    kept = Op("mask", old, b.host_row("others"))
    own = [Op("mask", scale, b.host_row("onehot", place=i)) for i, scale in enumerate(scales)]
    new = b.vxm.evaluate(joined(b, [*own, kept]), b.asm.side(side) + block.slices)
    ready, ids = b.mem.scatter(new, [(block, 0)] * 4, table.slices, table.address, range(4))
    return Vec(table.slices, table.address, ready, ids, True)
