"""The rows of a table in; the stretches of it that fit in a slice out, and the names of what lies there and reaches it.

A table that a gather reads by row number lies in one slice, a large one in stretches over many.  A row's number is an
address in one of them and no address in the others, whose gathers give zeros: the parts are added, and no bit is lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from openlpu.arch.chip import Chip
from openlpu.arch.isa import NO_ADDRESS

LARGE = 4  # a table that leaves less than a quarter of a slice is cut into stretches
STRETCH = 8  # of an eighth of a slice: they fit into what weights leave
_PART = re.compile(r"(?P<kind>[a-z]+)(?P<start>\d+)n(?P<count>\d+)")


@dataclass(frozen=True)
class Stretch:
    """Rows ``start`` to ``start + count`` of a table; ``whole``: these are all."""

    start: int
    count: int
    whole: bool

    def home(self, table: str) -> str:
        """Name of where they lie."""
        return table if self.whole else f"{table}.rows{self.start}"

    def map(self, kind: str) -> str:
        """Name of the host's row that says which of them is read: by ``token`` or ``position``."""
        return kind if self.whole else f"{kind}{self.start}n{self.count}"


def large(rows: int, chip: Chip) -> bool:
    """Whether a table takes a quarter of a slice, or more."""
    return rows >= chip.words_per_slice // LARGE


def folds(rows: int, chip: Chip) -> bool:
    """Whether numbers by row, each in all lanes of four planes, would take half of a chip: then each has one lane."""
    return 2 * 4 * rows > chip.slices * chip.words_per_slice


def stretches(rows: int, chip: Chip) -> list[Stretch]:
    """A table cut to what slices hold."""
    whole = rows <= chip.words_per_slice - chip.words_per_slice // LARGE
    most = rows if whole else chip.words_per_slice // STRETCH
    return [Stretch(start, min(most, rows - start), whole) for start in range(0, rows, most)]


def address(name: str, number: int) -> int | None:
    """What a host's row of addresses says for row ``number`` of its table; None if ``name`` is no stretch's."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    at = number - int(found["start"])
    return at if 0 <= at < int(found["count"]) else NO_ADDRESS
