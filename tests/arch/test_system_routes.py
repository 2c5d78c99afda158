"""Routes are minimal and share no wire; a tensor is spread only where that is faster."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu.arch import published
from openlpu.arch.routes import Route, bisection, distances, route, routes, spread, worst_cycles
from openlpu.arch.system import System, load_system

NAMES = ("node", "dragonfly", "rack", "groqrack", "quadfour", "tiny-ring")
SYSTEMS = {name: load_system(name) for name in NAMES} | {"racks": load_system("scale-out", 144)}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SYSTEMS)), st.data())
def test_a_route_is_connected_and_minimal(name: str, data: st.DataObject) -> None:
    system = SYSTEMS[name]
    a, b = (data.draw(st.integers(0, system.chips - 1)) for _ in "ab")
    way = route(system, a, b)
    _connected(system, way, a, b)
    assert len(way.ports) == distances(system.wires, b)[a] == distances(system.wires, a)[b]
    assert way == route(system, a, b)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SYSTEMS)), st.data())
def test_routes_used_together_share_no_wire(name: str, data: st.DataObject) -> None:
    system = SYSTEMS[name]
    a, b = (data.draw(st.integers(0, system.chips - 1)) for _ in "ab")
    ways = routes(system, a, b)
    used = [step for way in ways for step in zip(way.chips, way.ports, strict=False)]
    assert len(used) == len(set(used))
    for way in ways:
        _connected(system, way, a, b)
    if a != b:
        assert ways[0] == route(system, a, b)


def _connected(system: System, way: Route, a: int, b: int) -> None:
    assert (way.chips[0], way.chips[-1]) == (a, b) and len(set(way.chips)) == len(way.chips) == len(way.ports) + 1
    for here, port, there in zip(way.chips, way.ports, way.chips[1:], strict=False):
        assert system.wires.peer[here, port] == there


def test_a_node_has_one_route_of_one_hop_and_six_of_two() -> None:
    assert [len(way.ports) for way in routes(SYSTEMS["node"], 2, 5)] == [1, 2, 2, 2, 2, 2, 2]


def test_all_distances_at_once_are_those_of_one_chip_after_the_other() -> None:
    for system in SYSTEMS.values():
        every = np.concatenate([distances(system.wires, chip) for chip in range(system.chips)])
        assert system.wires.hop_counts == np.bincount(every).tolist()


def test_the_worst_time_of_racks_is_that_of_their_first_rack() -> None:
    system = load_system("scale-out", 144)
    every = System(system.spec, system.built, system.physical, frozenset([-1]))  # not taken to be all alike
    assert worst_cycles(system) == worst_cycles(every)


@pytest.mark.parametrize(("name", "links"), [("node", 16), ("tiny-line", 1), ("tiny-ring", 2), ("single", 0)])
def test_bisections(name: str, links: int) -> None:
    assert sum(bisection(load_system(name))) == links


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200_000), st.data())
def test_no_other_split_is_faster(size: int, data: st.DataObject) -> None:
    ways = routes(SYSTEMS["node"], 0, 3)
    best = spread(ways, size, 320)
    vectors = -(-size // 320)
    assert sum(best.vectors) == vectors
    assert best.cycles == max(way.time(n) for way, n in zip(best.routes, best.vectors, strict=True))
    cuts = sorted(data.draw(st.lists(st.integers(0, vectors), min_size=6, max_size=6)))
    other = np.diff([0, *cuts, vectors]).tolist()
    assert best.cycles <= max(way.time(n) for way, n in zip(ways, other, strict=True))


def test_the_crossover_is_where_spreading_begins() -> None:
    node = SYSTEMS["node"]
    ways, size = routes(node, 0, 1), published.crossover_bytes(node)
    below, above = spread(ways, size - 320, 320), spread(ways, size, 320)
    assert below.routes == (ways[0],) and below.cycles == ways[0].time(below.vectors[0])
    assert len(above.routes) == 2 and above.cycles < ways[0].time(size // 320)
    large = spread(ways, 10**7, 320)
    assert len(large.routes) == 7 and 6.9 < ways[0].time(31_250) / large.cycles < 7
