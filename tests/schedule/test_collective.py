"""Collectives as programs: the right bits on every chip, refused where wires do not allow them, faster as they grow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from openlpu._base.errors import Unsupported
from openlpu.arch.chip import load_chip
from openlpu.arch.group import Group
from openlpu.arch.system import System, load_system, of_spec
from openlpu.schedule.collective import Collective, all_gather, all_reduce, swap
from openlpu.target.chip import host, pipeline
from openlpu.target.chip.links import Ports
from openlpu.target.chip.machine import Machine, resolve
from openlpu.target.chip.mutants import OTHER, Subject, run_mutants

TINY = replace(load_chip("tiny"), c2c_links=16)


def system(name: str, chips: int, node: int = 8) -> System:
    """Chips that are tiny, in nodes of so many."""
    spec = load_system(name, 8).spec
    shape = replace(spec.shape, chips=node, nodes=chips // node, spares=0)
    return of_spec(replace(spec, chip=TINY, shape=shape))


NODE, FLY = system("node", 8), system("dragonfly", 18, node=2)  # 2 chips with 4 wires each to 8 other nodes


def links(made: Collective) -> Ports:
    return pipeline.inside(made.system, Group(made.ways, (), ()))


def filled(made: Collective, only: int | None = None) -> tuple[Machine, NDArray[np.uint8]]:
    """Chips with something to give [role, vector, plane, lane]; all, or one."""
    n, wide = made.system.chips, len(made.given[0].slices)
    data = np.random.default_rng(1).integers(0, 256, (n, len(made.given), wide, TINY.lanes), np.uint8)
    data[[r for r in range(n) if only not in (None, r)]] = 0
    machine = Machine(TINY, n, links(made))
    for role in range(n):
        host.fill(machine, made.resident, {}, role)
        for home, planes in zip(made.given, data[role], strict=True):
            machine.load(np.array(home.slices), np.full(wide, home.address), planes, role)
    return machine, data


def run(made: Collective, only: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What the chips gave and what they have [role, result, plane, lane], every claim kept."""
    machine, data = filled(made, only)
    machine.run(made.queues, made.claims)
    out = [[machine.peek(np.array(s), np.full(len(s), a), r) for s, a in made.made] for r in range(made.system.chips)]
    return data, np.array(out)


def words(planes: NDArray[np.uint8]) -> NDArray[np.int32]:
    return np.ascontiguousarray(np.moveaxis(planes, -2, -1)).view("<i4")[..., 0]


@pytest.mark.parametrize("wired", [NODE, FLY], ids=["node", "dragonfly"])
def test_every_chip_has_the_exact_sum(wired: System) -> None:
    data, out = run(all_reduce(wired, 2))
    assert (words(out) == words(data).sum(axis=0, dtype=np.int32)).all()
    data, out = run(all_reduce(wired, 1), only=3)
    assert (out == data[3]).all(), "a broadcast is a sum of which one chip has all"


def test_many_vectors_are_added_up_in_parts() -> None:
    made = all_reduce(NODE, 17)
    data, out = run(made)
    assert len(made.given) == 24, "filled up to what chips share evenly"
    given, roles = words(data).reshape(8, 3, 8, -1), np.arange(8)
    for role in roles:  # slot q of role r is the part of role r XOR q
        parts = np.stack([given[roles, :, roles ^ part].sum(axis=0, dtype=np.int32) for part in role ^ roles], axis=1)
        assert (words(out[role]).reshape(3, 8, -1) == parts).all()


@pytest.mark.parametrize("wired", [NODE, FLY], ids=["node", "dragonfly"])
def test_every_chip_has_what_all_have(wired: System) -> None:
    made = all_gather(wired, 2)
    data, out = run(made)
    got = out.reshape(wired.chips, 2, wired.chips, -1)
    for slot, source in enumerate(made.sources):
        assert np.array_equal(got[:, :, slot], data[source, :, 0])


@pytest.mark.parametrize("share", [0, 1])
def test_vectors_arrive_by_every_route(share: int) -> None:
    data, out = run(swap(NODE, 60, direct=share == 0))
    assert np.array_equal(out, data[np.arange(8) ^ 1])


def test_several_routes_pay_from_a_size_on() -> None:
    slow = [swap(NODE, n, direct=True).cycles - swap(NODE, n).cycles for n in (1, 8, 16, 40)]
    assert slow[0] == slow[1] == 0 < slow[2] < slow[3]


def test_a_dragonfly_of_264_chips_takes_three_hops() -> None:
    """The program of all chips keeps every rule of links; nothing needs values for that."""
    wide = load_system("dragonfly", 264)
    made = all_reduce(wide, 1)
    resolve(wide.chip, made.queues, made.claims, links(made))
    latency = 2 * wide.links[0].latency + wide.links[1].latency
    assert latency < made.cycles < 1.5 * latency
    assert len(made.sources) == 264


def test_wires_that_reach_some_twice_are_refused() -> None:
    for name, chips in (("dragonfly", 16), ("groqrack", 64), ("tiny-line", 4)):
        with pytest.raises(Unsupported, match="do not all reach each other once"):
            all_reduce(load_system(name, chips), 1)


@pytest.mark.parametrize("made", [
    all_reduce(system("node", 4, node=4), 1), all_reduce(NODE, 9), all_reduce(FLY, 1), all_gather(FLY, 1),
    swap(NODE, 20),
], ids=["sum", "sum in parts", "sum in three hops", "gather in three hops", "several routes"])
def test_no_mutant_ends_with_other_bits(made: Collective) -> None:
    """A sample of what ``bench/mutants.py`` counts."""
    subject = Subject(filled(made)[0], made.queues, made.claims, made.words)
    for among in ("", "c2c"):
        report = run_mutants(subject, 15, among=among)
        assert report.outcome(OTHER) == 0, report.escaped
