"""Words as pairs of byte planes in; exact sums over all lanes, in every lane, out: products with a tile of ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openlpu.schedule.expression import Op, Operand
from openlpu.schedule.select.build import Build
from openlpu.schedule.units.mxm import Plane
from openlpu.schedule.values import Vec


def ones(b: Build, plane: Plane | None = None, lanes: int = 0) -> Plane:
    """A plane (None: any) with ones in all its rows, for sums over the first so many lanes (0: all); nothing that a
    token computes is waited for."""
    plane = plane or b.mxm.pick()
    words = np.arange(b.chip.lanes) < (lanes or b.chip.lanes)
    row = b.constant(words.astype(np.int32), planes=1, side=plane.hemisphere)
    b.mxm.load(plane, 0, row, b.chip.superlanes)
    b.mxm.install(plane)
    return plane


def total(b: Build, plane: Plane, words: Sequence[tuple[Vec, Vec]]) -> Op:
    """256 * Σ high + Σ low with a plane's tile, over all pairs (low, high), joined as int32; to be read next."""
    low, high = (_sum(b, plane, own) for own in zip(*words, strict=True))
    return Op("add_mod", Op("shift_left", high, 8), low)


def _sum(b: Build, plane: Plane, rows: Sequence[Vec]) -> Operand:
    slot = b.mxm.new_slot(plane)
    for i, row in enumerate(rows[:-1]):
        b.mxm.activate(plane, row, slot, clear=i == 0, emit=False)
    return b.mxm.sums(plane, rows[-1], slot, clear=len(rows) == 1)
