"""Collectives bring every chip's contribution to every chip exactly once, over wires that exist."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu._base.errors import Unsupported
from openlpu.arch import collectives
from openlpu.arch.collectives import OWN, Plan
from openlpu.arch.system import load_system

SIZES = [("single", 1), *(("node", n) for n in (1, 2, 4, 8)), *(("dragonfly", 8 * n) for n in (1, 2, 3, 5, 9, 33)),
         ("scale-out", 24), ("scale-out", 72), ("scale-out", 144), ("scale-out", 216), ("rack", 8),
         ("groqrack", 64), ("quadfour", 72),
         ("tiny-line", 1), ("tiny-line", 5), ("tiny-ring", 2), ("tiny-ring", 6), ("tiny-ring", 7)]


def contributions(plan: Plan, holders: list[int]) -> np.ndarray:
    """Carry a plan out with a count for each chip that contributes: [chips, parts, holders]."""
    system = plan.system
    own = np.zeros((system.chips, plan.parts, len(holders)), np.int64)
    own[holders, :, np.arange(len(holders))] = 1
    received, final = {OWN: own}, {}
    for number, r in enumerate(plan.rounds):
        assert all(plan.rounds[k].step < r.step for k in r.adds if k >= 0), "sent only after it was received"
        peer = system.wires.peer[r.chip, r.port]
        assert (peer >= 0).all() and (system.wires.level[r.chip, r.port] == r.level).all()
        sent = np.sum([received[k] for k in r.adds], axis=0)[r.chip, r.part]
        assert np.array_equal(sent.sum(axis=1), r.pieces)
        received[number] = np.zeros_like(own)
        np.add.at(received[number], (peer, r.part), sent)
        if r.replaces:
            final |= {(int(c), int(p)): v for c, p, v in zip(peer, r.part, sent, strict=True)}
    result = np.sum([v for k, v in received.items() if k == OWN or not plan.rounds[k].replaces], axis=0)
    for (chip, part), value in final.items():
        result[chip, part] = value
    return result


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SIZES), st.integers(1, 9))
def test_every_chip_gets_every_contribution_exactly_once(size: tuple[str, int], parts: int) -> None:
    system = load_system(*size)
    plan = collectives.exchange(system, parts)
    assert (contributions(plan, list(range(system.chips))) == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SIZES), st.integers(1, 9), st.data())
def test_a_broadcast_reaches_every_chip_exactly_once(size: tuple[str, int], parts: int, data: st.DataObject) -> None:
    system = load_system(*size)
    root = data.draw(st.integers(0, system.chips - 1))
    assert (contributions(collectives.broadcast(system, root, parts), [root]) == 1).all()


@pytest.mark.parametrize("chips", [2, 4, 8])
def test_the_scattered_all_reduce_of_a_node(chips: int) -> None:
    plan = collectives.scattered(load_system("node", chips))
    assert (contributions(plan, list(range(chips))) == 1).all()


def test_hops_of_the_published_hierarchies() -> None:
    systems = load_system("dragonfly"), load_system("scale-out", 576)
    levels = {system.name: [r.level for r in collectives.exchange(system).rounds] for system in systems}
    assert levels == {"dragonfly": [0, 1, 0], "scale-out": [0, 1, 0, 2, 0, 1, 0]}


def test_parallel_wires_share_a_tensor() -> None:
    system = load_system("dragonfly", 40)
    assert collectives.parallel(system) == 8
    one, many = collectives.exchange(system, 1), collectives.exchange(system, 8)
    assert many.cycles(800) < one.cycles(800) and many.cycles(1) == one.cycles(1)


def test_closed_forms_by_hand() -> None:
    node = load_system("node")
    hop, add, slot = node.hop(0), collectives.addition(node), node.links[0].cycles
    plan = collectives.exchange(node)
    assert plan.cycles(1) == plan.pipelined(1) == hop + add
    assert plan.cycles(10) == hop + add + 9 * slot and plan.cycles(10, gather=True) == hop + 9 * slot
    assert collectives.scattered(node).cycles(80) == 2 * (hop + add) + 2 * 9 * slot
    dragonfly = load_system("dragonfly")
    local, far = dragonfly.hop(0) + add, dragonfly.hop(1) + add
    assert collectives.exchange(dragonfly).cycles(10) == 2 * local + far + 3 * 9 * slot
    assert collectives.exchange(dragonfly).pipelined(10) == 2 * local + far + 19 * slot  # 20 on each local wire
    gathered = collectives.exchange(dragonfly).cycles(1, gather=True)
    assert gathered == sum(dragonfly.hop(k) for k in (0, 1, 0)) + (8 - 1 + 4 * 8 - 1) * slot


def test_few_vectors_take_one_hop_and_many_take_little_volume() -> None:
    node = load_system("node")
    assert len(collectives.all_reduce(node, 1).rounds) == 1 and len(collectives.all_reduce(node, 1000).rounds) == 2


@pytest.mark.parametrize("name", ["quadfour", "rack"])
def test_nodes_that_are_not_all_joined_are_refused(name: str) -> None:
    with pytest.raises(Unsupported, match="not every node is joined to every other"):
        collectives.exchange(load_system(name))


def test_faults_keep_the_plan_of_a_rack() -> None:
    rack = load_system("groqrack").without([20])
    assert (contributions(collectives.exchange(rack, 4), list(range(64))) == 1).all()


def test_the_largest_system_is_planned() -> None:
    plan = collectives.exchange(load_system("scale-out"))
    reached = np.zeros(10_440, np.int64)
    for r in plan.rounds:
        np.add.at(reached, plan.system.wires.peer[r.chip, r.port], r.pieces)
    assert (reached == 10_439).all()
