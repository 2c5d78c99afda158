"""What the scheduler passes around: vectors that lie, or will lie, in SRAM."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Vec:
    """One vector in SRAM: plane i at ``slices[i]``, same ``address``; 1 plane (bytes) or 4 (32-bit numbers).

    ``ready``: first cycle in which a read may be dispatched.  ``writers``: per plane the instruction whose value
    it is (0: resident).  ``or_resident``: rows of the KV cache, written in this token or an earlier one.  ``twin``: the
    same value elsewhere, for readers that are closer to it.
    """

    slices: tuple[int, ...]
    address: int
    ready: int = 0
    writers: tuple[int, ...] = (0, 0, 0, 0)
    or_resident: bool = False
    twin: Vec | None = None

    def plane(self, i: int) -> Vec:
        """Byte plane i as a vector of its own."""
        twin = self.twin.plane(i) if self.twin else None
        return replace(self, slices=(self.slices[i],), writers=(self.writers[i],), twin=twin)
