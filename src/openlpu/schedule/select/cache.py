"""One kv vector's new row in; where the whole cache of that vector can be read out.

Position t lies in slice t % 16 of 16 slices.  K: address t / 16, all superlanes.  V: superlane (t % 256) / 16, one
address per group of 16 channels, 16 groups a block.  Scales: per KV head one fp32 vector a block, position on its lane.
The host's address maps send a token's row where it belongs; the instructions are the same for every position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openlpu.arch.truepoint import BLOCK
from openlpu.arch.truepoint.codes import NARROW_MAX
from openlpu.place.emplace import Source
from openlpu.schedule.expression import Op
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.select.codes import amax, chain, code_of, reciprocal, scale_of
from openlpu.schedule.values import Vec


@dataclass(frozen=True)
class Rows:
    """A kv vector's cache: 16 slices, the first address, rows a block, scales by KV head."""

    slices: tuple[int, ...]
    address: int
    groups: int
    ready: int
    writers: tuple[tuple[int, ...], ...]  # by channel group (V) or one entry (K): per slice the scatter's id
    scales: dict[int, Vec]

    def vectors(self, block: int, group: int) -> Vec:
        """16 rows that one load takes: 16 positions of K, or 16 channels of V before the transposer."""
        writers = self.writers[group % len(self.writers)]
        return Vec(self.slices, self.address + block * self.groups + group, self.ready, writers, True)

    def scale(self, kv_head: int, block: int) -> Vec:
        """fp32 scales of a block's positions."""
        first = self.scales[kv_head]
        return Vec(first.slices, first.address + block, first.ready, first.writers, True)


def write(b: Build, where: str, x: Floats, c: int, side: int, *, transposed: bool) -> Rows:
    """Quantise kv vector ``c`` of K or V head by head and scatter its codes and scales into the cache."""
    asm, width = b.asm, b.chip.weight_streams
    maps = b.host_row(f"{'v' if transposed else 'k'}_map.{1 - side}", 2, 1 - side)
    lanes_of = [(maps.plane(r // 8), r % 8) for r in range(width)]
    far = asm.side(side) + maps.slices  # data comes from the other hemisphere, beside the maps
    scales, inverse = {}, []
    for g, lane in b.heads.heads_in(c):
        mask = b.mask(b.heads.mask(lane))
        scale = scale_of(b, amax(b, [x.vecs[c]], [mask]), None)
        scales[g] = _write_scale(b, f"kv.{where}.scale{g}", scale, side)
        inverse.append(Op("mask", b.vxm.evaluate(reciprocal(scale)), mask))
    tree = code_of(x.vecs[c], _joined(b, inverse), NARROW_MAX)
    slices = b.tile_slices(side)
    groups = b.heads.channel_groups if transposed else BLOCK // width
    name = f"kv.{where}{c}"
    base = asm.keep_tile(name, Source("zeros"), slices, groups * b.blocks)[0].address
    ready, writers = 0, []
    for group, data in enumerate(_v_rows(b, tree, groups, far) if transposed else [b.vxm.evaluate(tree, far).plane(0)]):
        done, ids = b.mem.scatter(data, lanes_of, slices, base + group, [0] * width)
        ready = max(ready, done)
        writers.append(ids)
    return Rows(slices, base, groups, ready, tuple(writers), scales)


def _v_rows(b: Build, code: Op, groups: int, far: tuple[int, ...]) -> list[Vec]:
    """V's channel groups, each brought to the position's superlane: a turn by the host's map, then a fixed one."""
    turned = b.sxm.permute(b.vxm.evaluate(code).plane(0), [b.host_row("v_turn", 2)])
    per = b.chip.lanes_per_superlane
    return [b.sxm.permute(turned, b.rotation(per * group), far) for group in range(groups)]


def _joined(b: Build, parts: list[Op]) -> Op:
    """The sum of masked vectors with no lane in common."""
    pieces: list[Op | Vec] = list(parts)
    while len(pieces) > 4:
        pieces = [b.vxm.evaluate(tree) if isinstance(tree := chain("add_mod", pieces[i : i + 4]), Op) else tree
                  for i in range(0, len(pieces), 4)]
    tree = chain("add_mod", pieces)
    return tree if isinstance(tree, Op) else Op("pass", tree)


def _write_scale(b: Build, name: str, scale: Vec, side: int) -> Vec:
    """Put a scale into this position's lane of the current block's row; returns the table with its writers."""
    asm = b.asm
    slices = b.quad_slices(side)
    table = asm.keep(name, Source("zeros"), slices, b.blocks)
    block = b.host_row(f"block.{1 - side}", 1, 1 - side)
    old = b.mem.gather(table, block)
    kept = Op("mul", old, b.host_row("others"))
    new = b.vxm.evaluate(Op("add", kept, Op("mul", scale, b.host_row("onehot"))), asm.side(side) + block.slices)
    ready, ids = b.mem.scatter(new, [(block, 0)] * 4, slices, table.address, range(4))
    return Vec(slices, table.address, ready, ids, True)


def ones(b: Build, hemisphere: int) -> Vec:
    """16 weight rows of ones in a hemisphere."""
    key = b"ones" + bytes([hemisphere])
    if key not in b.constants:
        width = b.chip.weight_streams
        data = np.ones((width, 1, b.chip.lanes), np.uint8)
        b.constants[key] = b.asm.keep_tile(f"constants.ones{hemisphere}", Source("bytes", data=data),
                                           b.tile_slices(hemisphere), 1)[0]
    return b.constants[key]
