"""Requests for rows in; slices and addresses out, or a report of what does not fit.

What stays for the life of the program (weights, constants, KV cache) grows from address 0 up; what lives inside
a token (one quad per temporary) grows from the last address down.  Rows to keep are given out past the end of a slice
too, and only counted: the report can then say what everything takes.
"""

from __future__ import annotations

from collections import Counter

from openlpu._base.errors import DoesNotFit
from openlpu._base.units import size
from openlpu.arch.chip import Chip

TEMPORARIES = "temporaries"


class Sram:
    """Free rows of every slice of one chip; ``levers`` are what its report proposes."""

    def __init__(self, chip: Chip, levers: tuple[str, ...]) -> None:
        self.chip, self.levers = chip, levers
        self.bottom = [0] * chip.slices
        self.top = [chip.words_per_slice] * chip.slices
        self.lowest = list(self.top)  # where the temporaries of finished segments reached down to
        self.used: Counter[str] = Counter()
        self.copies = 1  # how often the rows kept so far will be kept again beside them

    def keep(self, slices: tuple[int, ...], rows: int, what: str) -> int:
        """``rows`` consecutive addresses, the same in all ``slices``, for the program's life; the first."""
        address = max(self.bottom[s] for s in slices)
        self.keep_at(address, slices, rows, what)
        return address

    def keep_at(self, address: int, slices: tuple[int, ...], rows: int, what: str) -> None:
        """Likewise at an address that nothing kept lies at."""
        for s in slices:
            self.bottom[s] = max(self.bottom[s], address + rows)
        self.used[what] += rows * len(slices)

    def temporary(self, slices: tuple[int, ...]) -> int:
        """One address, the same in all ``slices`` (which have room), for a value inside a token."""
        address = self.next_temporary(slices)
        for s in slices:
            self.top[s] = address
        self.used[TEMPORARIES] += len(slices)
        return address

    def next_temporary(self, slices: tuple[int, ...]) -> int:
        """The address that :meth:`temporary` would give."""
        return min(self.top[s] for s in slices) - 1

    def has_temporary(self, slices: tuple[int, ...]) -> bool:
        """Whether it has one to give; rows that only finished segments had are free again."""
        return self.next_temporary(slices) >= max(self.bottom[s] for s in slices)

    def clear(self) -> None:
        """Give back all temporaries: the next segment starts with none; what is kept must stay below all of them."""
        self.lowest = [min(a, b) for a, b in zip(self.lowest, self.top, strict=True)]
        self.top = [self.chip.words_per_slice] * self.chip.slices
        del self.used[TEMPORARIES]

    def room(self, slices: tuple[int, ...]) -> int:
        """Rows left between both ends, in the fullest of the slices; negative where both ends overlap."""
        kept = self.copies * max(self.bottom[s] for s in slices)
        return min(min(self.top[s], self.lowest[s]) for s in slices) - kept

    def require_fit(self) -> None:
        """Raise :class:`DoesNotFit` with all that was asked for, if some of it lies past the end of a slice."""
        fullest = min(range(self.chip.slices), key=lambda s: self.room((s,)))
        if (left := self.room((fullest,))) < 0:
            words = self.chip.words_per_slice
            raise self.does_not_fit(f"slice {fullest} has {words:,} rows and would need {words - left:,}")

    def does_not_fit(self, gap: str) -> DoesNotFit:
        """The report: what was asked, what there is, the gap (in words), what takes the room, levers."""
        row, chip = self.chip.lanes, self.chip
        asked, there = self.used.total() * row, chip.slices * chip.words_per_slice * row
        parts = ", ".join(f"{name} {size(count * row)}" for name, count in self.used.most_common())
        return DoesNotFit(
            f"{size(asked)} are asked of {size(there)} of SRAM, and {gap}; what takes the room: {parts}",
            where=f"chip {chip.name}", fix="; or ".join(self.levers),
        )
