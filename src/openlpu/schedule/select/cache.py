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
from openlpu.arch.truepoint.codes import INV_NARROW, INV_NIBBLE, INV_WIDE, NIBBLE_MAX
from openlpu.place.host import TURNED
from openlpu.schedule.expression import Later, Op
from openlpu.schedule.select.build import Build
from openlpu.schedule.select.codes import above, amax, at_least_floor, chain, code_of, float_of, reciprocal, scale_of
from openlpu.schedule.temporaries import scoped
from openlpu.schedule.units.vxm import Want
from openlpu.schedule.values import Vec

TOGETHER = 3  # maxima of a token that are found at about the same time: the queries', K's, V's


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
    turned: dict[int, Vec]  # of K, where they are wanted: scales with both halves of the block exchanged
    apart: dict[int, tuple[Vec, Vec]]  # of one token: a block's scales before it, and its own in its head's lanes

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
def write(b: Build, where: str, tokens: Sequence[tuple[Sequence[Vec], Vec]], c: int, side: int, *,
          transposed: bool, turned: bool = False) -> Rows:
    """Scatter the codes of kv vector ``c`` of K or V of all tokens (see :func:`coded`), heads side by side, and their
    scales into the cache; ``turned``: of the only block also with its halves exchanged."""
    codes, scales = zip(*tokens, strict=True)
    groups = b.heads.channel_groups if transposed else BLOCK // b.chip.weight_streams
    planes = tuple(
        _write_plane(b, b.home(f"kv.{where}.{c}.{i}"), [words[i].plane(i) for words in codes], groups, side,
                     transposed=transposed)
        for i in range(len(codes[0]))
    )
    made = {g: _write_scales(b, b.home(f"kv.{where}.scale{g}"), scales, lane, side, turned=turned)
            for g, lane in b.heads.heads_in(c)}
    beside = {g: other for g, (_, _, other) in made.items() if other}
    apart = {g: (old, scales[0]) for g, (_, old, _) in made.items() if len(tokens) == 1}
    return Rows(planes, groups, {g: table for g, (table, *_) in made.items()}, b.layout.requests, beside, apart)


def stored(b: Build, where: str, c: int, bits: int, *, transposed: bool) -> Rows:
    """What :func:`write` gave in an earlier step."""
    groups = b.heads.channel_groups if transposed else BLOCK // b.chip.weight_streams
    homes = [b.home(f"kv.{where}.{c}.{i}") for i in range(2 if bits == 16 else 1)]
    planes = tuple(Plane(home.slices, home.address, 0, (home.writers,)) for home in homes)
    scales = {g: b.home(f"kv.{where}.scale{g}") for g, _ in b.heads.heads_in(c)}
    return Rows(planes, groups, scales, b.layout.requests, {}, {})


@scoped
def coded(b: Build, x: Vec | Later, bits: int, side: int, *, transposed: bool) -> tuple[list[Vec], Vec]:
    """(codes, scale) of one token's K or V: words whose byte i is plane i, and the scale of each head in its lanes.
    Codes of 4 bits lie between the lower end of the head's lanes and 0, and the upper one."""
    away = () if transposed else _away(b, side, transposed=transposed)  # V is turned first
    if bits > 4:
        factor = scale_of(amax(b, [x], b.heads.dim, TOGETHER, each=True), INV_WIDE if bits == 16 else INV_NARROW)
        code = code_of(x, reciprocal(factor))
        words = [code, above(code)] if bits == 16 else [code]
        *made, scale = b.vxm.results([*(Want(word, away, close=True) for word in words), Want(factor)])
        return made, scale
    trees = (b.lane_max(Op("pass", x), end, span=b.heads.dim) for end in ("min", "max"))
    low, high = (b.vxm.evaluate(Op(end, tree, 0.0)) for end, tree in zip(("min", "max"), trees, strict=True))
    factor = at_least_floor(Op("mul", Op("sub", high, low), float_of(INV_NIBBLE)))
    inverse, scale = b.vxm.results([Want(reciprocal(factor)), Want(factor)])
    zero = b.vxm.evaluate(Op("to_int", Op("mul", low, inverse)))
    least = Op("min_int", code_of(x, inverse), b.vxm.evaluate(Op("add_mod", zero, NIBBLE_MAX)))
    return [b.vxm.evaluate(Op("max_int", least, zero), away)], scale


def _maps(b: Build, side: int, *, transposed: bool) -> Vec:
    """Where a token's rows go."""
    return b.host_row(f"{'v' if transposed else 'k'}_map.{1 - side}", 2, 1 - side)


def _away(b: Build, side: int, *, transposed: bool) -> tuple[int, ...]:
    """Slices in which what is scattered does not lie: it comes from the other hemisphere, beside the maps."""
    return b.asm.side(side) + _maps(b, side, transposed=transposed).slices


def _write_plane(b: Build, home: Vec, codes: Sequence[Vec], groups: int, side: int, *, transposed: bool) -> Plane:
    """Scatter a byte plane of the tokens' codes, each to the slices of its place."""
    width, chunk = b.chip.weight_streams, b.chunk
    maps = _maps(b, side, transposed=transposed)
    entries = [(maps.plane(r // 8), r % 8) for r in range(width)]
    ready = 0
    writers = [[0] * width for _ in range(groups if transposed else 1)]
    for place, code in enumerate(codes):
        own = slice(place, width, chunk)
        rows = _v_rows(b, code, groups, _away(b, side, transposed=True)) if transposed else [code]
        for group, data in enumerate(rows):
            address = home.address + group * b.layout.requests
            done, writers[group][own] = b.mem.scatter(data, entries[own], home.slices[own], address,
                                                      [0] * (width // chunk))
            ready = max(ready, done)
    return Plane(home.slices, home.address, ready, tuple(map(tuple, writers)))


def _v_rows(b: Build, code: Vec, groups: int, far: tuple[int, ...]) -> list[Vec]:
    """V's channel groups, each brought to the position's superlane: a turn by the host's map, then a fixed one."""
    turned = b.sxm.permute(code, [b.host_row("v_turn", 2)])
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


def _write_scales(b: Build, table: Vec, scales: Sequence[Vec], lane: int, side: int, *, turned: bool
                  ) -> tuple[Vec, Vec, Vec | None]:
    """Put the tokens' scales of the head that begins in a lane into their lanes of the current block's row; returns the
    table with its writers, the row before, and the new one with its halves exchanged where that is wanted.

    Lanes are masked, not multiplied: a token that runs again must not find what an error left there, NaN say.
    """
    block = b.host_row(f"block.{1 - side}", 1, 1 - side)
    old = b.mem.gather(table, block)
    new = b.vxm.evaluate(_with(b, old, scales, lane, ""), b.asm.side(side) + block.slices)
    ready, ids = b.mem.scatter(new, [(block, 0)] * 4, table.slices, table.address, range(4))
    other = None
    if turned:
        other = b.vxm.evaluate(_with(b, b.sxm.permute(old, b.rotation(BLOCK // 2, BLOCK)), scales, lane, TURNED))
    return Vec(table.slices, table.address, ready, ids, True), old, other


def _with(b: Build, old: Vec, scales: Sequence[Vec], lane: int, word: str) -> Op:
    """A block's row of scales with those of the tokens; ``word``: behind the names of the host's rows."""
    turned = [b.sxm.turned(scale, [b.host_row(f"turn{lane}{word}.{h}", 2, h, place=i) for h in (0, 1)])
              for i, scale in enumerate(scales)]
    own = [Op("mask", scale, b.host_row(f"onehot{word}", place=i)) for i, scale in enumerate(turned)]
    return joined(b, [*own, Op("mask", old, b.host_row(f"others{word}"))])
