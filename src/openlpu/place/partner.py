"""The lanes of heads side by side in; which of their partners a product can make, and by what order of loads, out.

RoPE adds to each lane its partner, the lane half a head away.  The rows of a weight tile can be loaded in another
order: any 16 that lie at one address as any group, and among themselves in any order, because a read may go to any
stream.  So the same tile, on the plane beside, makes the partners, and nothing is turned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.place.lanes import HeadLanes, around

I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Order:
    """Group g of the array takes group ``groups[g]`` of the tile, row i of it that of slice ``rows[i]``."""

    groups: tuple[int, ...]
    rows: tuple[int, ...]


def swapped(heads: HeadLanes, chip: Chip) -> I32:
    """The partner of each lane; itself where no head is."""
    lane, dim = np.arange(chip.lanes, dtype=np.int32), heads.dim
    return np.where(lane < heads.per_vector * dim, around(lane, dim // 2, dim), lane).astype(np.int32)


def order(heads: HeadLanes, chip: Chip) -> Order | None:
    """The loads that make partners; None where partners of 16 rows are not 16 rows, or a hemisphere has one plane."""
    width = chip.weight_streams
    group, row = np.divmod(swapped(heads, chip).reshape(-1, width), width)
    if (group != group[:, :1]).any() or (row != row[0]).any() or chip.mxm_planes_per_hemisphere < 2:
        return None
    return Order(tuple(group[:, 0].tolist()), tuple(row[0].tolist()))


def beside(plane: int, chip: Chip) -> int:
    """The plane that takes the weights of ``plane`` in another order: the next one of its hemisphere."""
    return (plane + 2) % (2 * chip.mxm_planes_per_hemisphere)
