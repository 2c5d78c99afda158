"""A system in; out come the numbers that have been published of networks of LPUs, each named after its row.

Rows N1 to N11 are those of the table of published results.  Times are nanoseconds of the chip's clock, bandwidths
bytes per second of payload.
"""

from __future__ import annotations

import numpy as np

from openlpu.arch import alignment, collectives, routes
from openlpu.arch.system import System
from openlpu.arch.topology import Join


def link_latency_ns(system: System) -> float:
    """N1: mean latency of a link inside a node; published 216.3 to 217.4 cycles, 241 ns."""
    return system.seconds(system.links[0].mean) * 1e9


def startup_epochs(system: System) -> int:
    """N2: epochs of the hardware aligned counter until all chips run; published (floor(L / 252) + 1) per level."""
    return alignment.startup_epochs(system.tree, [link.mean for link in system.links], system.epoch)


def all_reduce_ns(system: System) -> float:
    """N3: all-reduce of one vector per chip; published 2,166 ns over 3 hops of a dragonfly of 256 chips."""
    return system.seconds(collectives.exchange(system).cycles(1)) * 1e9


def all_reduce_hop_ns(system: System) -> float:
    """N3: a hop of that with its addition; published 722 ns."""
    return all_reduce_ns(system) / len(collectives.exchange(system).rounds)


def hop_ns(system: System) -> float:
    """N4: dispatch of a send to dispatch of its receive; published 300 ns."""
    return system.seconds(system.links[0].latency) * 1e9


def packet_efficiency(system: System) -> float:
    """N5: bytes of a vector by bytes of its packet; published 97.5 %."""
    return system.chip.lanes / system.links[0].packet_bytes


def crossover_bytes(system: System, hop_cycles: int | None = None) -> int:
    """N6: the least tensor between two chips of a node that spreading over several routes makes faster.

    One vector moves to a route of two hops when it is there before it could be over one: when the minimal route would
    take longer than a second hop.  Published: no benefit below 8 kB.  ``hop_cycles`` replaces the system's own hop, for
    instance by the 722 ns of N3.
    """
    hop = system.hop(0) if hop_cycles is None else hop_cycles
    return (hop // system.links[0].cycles + 2) * system.chip.lanes


def all_reduce_bandwidth(system: System, size: int) -> float:
    """N7: bytes per second at which a tensor of ``size`` bytes is reduced over a node; published as a curve."""
    vectors = -(-size // system.chip.lanes)
    return size / system.seconds(collectives.all_reduce(system, vectors).cycles(vectors))


def link_bandwidth(system: System, level: int = 0) -> float:
    """N9: payload of a link in one direction; the published 235, 853 and 427 GB/s are multiples of 10.67 GB/s."""
    return system.links[level].bytes_per_second(system.chip.lanes, system.chip.clock_hz)


def chip_bandwidth(system: System) -> float:
    """N9: payload of all wired links of a chip in both directions; published 235 GB/s."""
    wired = [(system.wires.level == level).sum(axis=1) * link_bandwidth(system, level)
             for level in range(len(system.links))]
    return 2 * float(sum(wired, np.zeros(system.chips)).max())


def bisection_bandwidth(system: System) -> float:
    """N9: payload between two halves in one direction; published 853 GB/s for 72 chips."""
    return sum(count * link_bandwidth(system, level) for level, count in enumerate(routes.bisection(system)))


def skip_bandwidth(system: System, dead: int) -> float:
    """N9: payload that goes forward past so many dead nodes in a row; published 427, 256, 128, 43 GB/s for 0 to 3."""
    join: Join = system.spec.shape.joins[0]
    forward = [step for step in join.steps if step > 0]
    return sum(max(0, step - dead) for step in forward) * join.parallel * link_bandwidth(system, 1)


def end_to_end_ns(system: System) -> float:
    """N10, N11: one vector between the chips farthest apart; published 1.6 us in a rack, < 3 us for 10,440 chips."""
    return system.seconds(routes.worst_cycles(system)) * 1e9


def hops(system: System) -> int:
    """N11: most hops from chip to chip; published 3 for 264 chips, 3 for 72 and 5 for 136 rotational ones."""
    return len(system.wires.hop_counts) - 1


def router_hops(system: System) -> int:
    """N11: most hops with every node counted as one router; published 5 for 10,440 chips: 2 + 1 + 2.

    The first and last hop may be inside a node, but one that only leads from a node's entrance to its exit is free.
    """
    if len(system.sizes) == 1:
        return hops(system)
    nodes = len(routes.contracted(system.wires, system.sizes[1]).hop_counts) - 1
    return min(nodes + 2, hops(system)) if nodes else hops(system)
