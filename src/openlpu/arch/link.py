"""A class of cable as data: how often it takes a vector, how long a vector is under way, what the compiler counts on.

In: the numbers of a system file.  Out: :class:`Link`, and the instruction queue that drives a port.  All times are
cycles of the chip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Link:
    """One class of cable; every wire of a system belongs to one.

    ``cycles``: from one vector to the next, in one direction.  ``packet_bytes``: a vector with its framing.
    ``mean``, ``sigma``, ``minimum``, ``maximum``: the latency that the hardware shows, which varies from vector to
    vector because the two clocks do.  ``align``: how far apart aligning one clock to the other over this wire can
    leave the two.  ``latency``: from dispatch of ``send`` to dispatch of the matching ``receive``, each counted on its
    own chip's clock; a constant of every program, so it exceeds ``maximum`` and any error of alignment.
    """

    name: str
    cycles: int
    packet_bytes: int
    mean: float
    sigma: float
    minimum: int
    maximum: int
    align: int
    latency: int

    def buffer(self, misaligned: int) -> int:
        """Vectors that the receiving end must hold: sent back to back and early, on clocks so far apart."""
        return -(-(self.latency - self.minimum + misaligned) // self.cycles)

    def bytes_per_second(self, vector_bytes: int, clock_hz: int) -> float:
        """Payload in one direction."""
        return vector_bytes * clock_hz / self.cycles


def together(links: Iterable[Link]) -> Link:
    """Cables that one program counts on alike: as late as the slowest, as early as the fastest."""
    every = tuple(links)
    slowest = max(every, key=lambda link: link.latency)
    return replace(slowest, cycles=max(link.cycles for link in every), minimum=min(link.minimum for link in every),
                   maximum=max(link.maximum for link in every))


def port_queue(port: int) -> str:
    """The instruction queue that drives a port; ports alternate between the hemispheres, so a node's load does too."""
    return f"c2c{'we'[port % 2]}{port // 2}"
