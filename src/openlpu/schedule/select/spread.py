"""Vectors and a mask that is 1 in one lane in; what they have in that lane, in every lane, out: products on the MXM
with the mask as all rows of the array."""

from __future__ import annotations

from collections.abc import Sequence

from openlpu.schedule.expression import Op
from openlpu.schedule.select.build import Build
from openlpu.schedule.select.codes import chain, stored
from openlpu.schedule.values import Vec


def spread(b: Build, mask: Vec, rows: Sequence[Vec], word: Vec) -> tuple[list[Vec], Vec]:
    """The signed byte of each of ``rows`` (one plane) and the 32 bits of ``word`` (four)."""
    plane = b.mxm.pick()
    b.mxm.load(plane, 0, mask, b.chip.superlanes)
    b.mxm.install(plane)
    found = [b.mxm.activate(plane, row, b.mxm.new_slot(plane), clear=True, emit=True)
             for row in (*rows, *(word.plane(i) for i in range(4)))]
    sums = [s for s in found if s is not None]
    assert len(sums) == len(found), "every activation emits"
    low, *others = sums[len(rows) :]
    parts: list[Op | Vec] = [Op("mask", low, 255)]
    parts += [Op("shift_left", Op("mask", p, 255), 8 * i) for i, p in enumerate(others, 1)]
    return sums[: len(rows)], stored(b, chain("add_mod", parts))
