"""Requests in, KV slots out: the ledger of which cache is owned and which is free."""

from __future__ import annotations

import heapq


class Slots:
    """``count`` caches of ``context`` positions; the lowest free slot is always given next."""

    def __init__(self, count: int, context: int) -> None:
        self.count, self.context = count, context
        self._free = list(range(count))
        self._owned: set[int] = set()

    def take(self) -> int | None:
        """A free slot, now owned; None when all are.  What it holds is dead and will be overwritten."""
        if not self._free:
            return None
        slot = heapq.heappop(self._free)
        self._owned.add(slot)
        return slot

    def give_back(self, slot: int) -> None:
        """Free an owned slot."""
        self._owned.remove(slot)
        heapq.heappush(self._free, slot)

    def check_integrity(self) -> None:
        """Every slot is owned or free, never both, never neither."""
        both = sorted([*self._free, *self._owned])
        assert both == list(range(self.count)), f"the slot ledger lost or doubled a slot: {both}"
