"""The fp16 mode of the MXM: products and their sum are exact, the sum is rounded once to fp32.

The one idea: an fp16 number times 2**24 is an integer below 2**40.  In two limbs of 20 bits, sums of limb products are
integers below 2**53, which float64 adds exactly in any order; their total, below 2**88, is rounded once.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError

F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LIMB = 20  # bits
POINT = 24  # an fp16 number is a multiple of 2**-24
LONGEST = 4096  # products of one exact sum: limb products stay below 2**53


def dot(a: F16, w: F16) -> F32:
    """Dot products fp32 [m, n] of finite rows [m, k] and [n, k], k at most :data:`LONGEST`: exact, rounded once to
    nearest even; an exact zero is +0.

    Raises :class:`NumericsError` where a number is not finite.
    """
    assert a.shape[1] == w.shape[1] <= LONGEST, "one exact sum is no longer than that"
    (ah, al), (wh, wl) = _limbs(a), _limbs(w)
    high, low = ah @ wh.T, al @ wl.T
    middle = ah @ wl.T + al @ wh.T
    return _rounded(*(part.astype(np.int64) for part in (high, middle, low)))


def product(a: F16, w: F16, chunk: int, sections: int = 1) -> F32:
    """The product fp32 [m, n] of [m, k] and [k, n] as the MXM makes it.

    Each ``chunk`` products (160 on lpu-v1) are one :func:`dot`.  The chunks fall into ``sections`` of equal length, the
    last ones shorter or empty; inside a section sums are added in fp32 in ascending order, then neighbouring totals,
    neighbouring sums of those and so on: a binary tree over the number of the section.  ``sections`` belongs to the
    definition: it is what a split of k over chips may use.
    """
    starts = range(0, a.shape[1], chunk)
    length = -(-len(starts) // sections)
    totals = []
    for first in range(0, len(starts), length):
        sums = [dot(a[:, k : k + chunk], w[k : k + chunk].T) for k in starts[first : first + length]]
        totals.append(reduce(np.add, sums))
    while len(totals) > 1:
        totals = [reduce(np.add, totals[i : i + 2]) for i in range(0, len(totals), 2)]
    return totals[0]


def _limbs(x: F16) -> tuple[F64, F64]:
    """The two limbs of ``x`` times 2**24, high and low, of one sign."""
    if not np.isfinite(x).all():
        raise NumericsError("a NaN or an infinity reached the MXM")
    whole = np.ldexp(x.astype(np.float64), POINT)
    high = np.trunc(np.ldexp(whole, -LIMB))
    return high, whole - np.ldexp(high, LIMB)


def _rounded(high: I64, middle: I64, low: I64) -> F32:
    """fp32 nearest to (high * 2**40 + middle * 2**20 + low) * 2**-48, ties to even.

    In float64 the sum is rounded to odd: of its two neighbours to the one whose last bit is 1.  What is left to round
    to fp32 is then neither taken for a tie nor misses one.
    """
    middle = middle + (low >> LIMB)
    high, rest = high + (middle >> LIMB), (middle & (1 << LIMB) - 1) << LIMB | low & (1 << LIMB) - 1
    upper, lower = np.ldexp(high.astype(np.float64), 2 * LIMB), rest.astype(np.float64)
    total = upper + lower
    back = total - upper  # two-sum: what the addition lost
    lost = (upper - (total - back)) + (lower - back)
    bits = total.view(np.int64)
    toward = np.where((lost > 0) == (total > 0), 1, -1)
    odd = np.where((lost != 0) & (bits & 1 == 0), bits + toward, bits).view(np.float64)
    return np.ldexp(odd, -2 * POINT).astype(np.float32)
