"""Requests for rows in; slices and addresses out, or a report of what does not fit.

What stays for the life of the program (weights, constants, KV cache) grows from address 0 up; what lives inside
a token (one quad per temporary) grows from the last address down.
"""

from __future__ import annotations

from collections import Counter

from openlpu._base.errors import DoesNotFit
from openlpu.arch.chip import Chip


class Sram:
    """Free rows of every slice of one chip."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.bottom = [0] * chip.slices
        self.top = [chip.words_per_slice] * chip.slices
        self.lowest = list(self.top)  # where the temporaries of finished segments reached down to
        self.used: Counter[str] = Counter()

    def keep(self, slices: tuple[int, ...], rows: int, what: str) -> int:
        """``rows`` consecutive addresses, the same in all ``slices``, for the program's life; the first."""
        address = max(self.bottom[s] for s in slices)
        self._check(slices, address + rows, what)
        for s in slices:
            self.bottom[s] = address + rows
        self.used[what] += rows * len(slices)
        return address

    def temporary(self, slices: tuple[int, ...]) -> int:
        """One address, the same in all ``slices``, for a value inside a token."""
        address = min(self.top[s] for s in slices) - 1
        if any(address < self.bottom[s] for s in slices):
            self._check(slices, self.chip.words_per_slice + 1, "temporaries")
        for s in slices:
            self.top[s] = address
        self.used["temporaries"] += len(slices)
        return address

    def clear(self) -> None:
        """Give back all temporaries: the next segment starts with none; what is kept must stay below all of them."""
        self.lowest = [min(a, b) for a, b in zip(self.lowest, self.top, strict=True)]
        self.top = [self.chip.words_per_slice] * self.chip.slices

    def room(self, slices: tuple[int, ...]) -> int:
        """Rows left between both ends, in the fullest of the slices."""
        return min(min(self.top[s], self.lowest[s]) for s in slices) - max(self.bottom[s] for s in slices)

    def _check(self, slices: tuple[int, ...], end: int, what: str) -> None:
        limit = min(min(self.top[s], self.lowest[s]) for s in slices)
        if end <= limit:
            return
        total = self.chip.slices * self.chip.words_per_slice
        parts = ", ".join(f"{name} {rows / total:.0%}" for name, rows in self.used.most_common())
        raise DoesNotFit(
            f"{what} needs {end - limit} more rows in slices {slices[0]}-{slices[-1]} "
            f"({limit} rows of {self.chip.lanes} bytes each are left there); SRAM so far: {parts or 'empty'}",
            where=f"chip {self.chip.name}",
            fix="use a larger chip, a shorter context (--context) or a smaller model",
        )
