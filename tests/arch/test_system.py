"""Systems: every wire has two ends, labels inside a node are XOR, published sizes and distances, spares."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlpu._base.errors import DoesNotFit, Unsupported
from openlpu.arch.link import port_queue
from openlpu.arch.routes import distances
from openlpu.arch.system import System, load_system
from openlpu.arch.system_file import system_names
from openlpu.arch.topology import Shape, wires
from openlpu.target.chip.clocks import DRIFT

SMALL = [name for name in system_names() if name != "scale-out"]
SHAPES = st.one_of(
    st.builds(Shape, kind=st.just("node"), chips=st.sampled_from([1, 2, 4, 8])),
    st.builds(Shape, kind=st.sampled_from(["line", "ring"]), chips=st.integers(2, 20)),
    st.builds(Shape, kind=st.just("dragonfly"), nodes=st.integers(1, 33), ports=st.just(4)),
    st.builds(Shape, kind=st.just("rotational"), nodes=st.integers(1, 20), ports=st.just(4)),
    st.builds(Shape, kind=st.just("racks"), nodes=st.integers(1, 9), racks=st.integers(1, 4), ports=st.just(4)),
)


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_every_wire_has_two_ends_and_a_port_one_wire(shape: Shape) -> None:
    made = wires(shape)
    chip, port = made.ends
    peer, arrival = made.peer[chip, port], made.arrival[chip, port]
    assert (peer != chip).all()
    assert np.array_equal(made.peer[peer, arrival], chip) and np.array_equal(made.arrival[peer, arrival], port)
    assert np.array_equal(made.level[peer, arrival], made.level[chip, port])
    assert len(set(zip(peer.tolist(), arrival.tolist(), strict=True))) == len(chip)
    assert (made.peer[:, 0] < 0).all()


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_all_chips_are_connected(shape: Shape) -> None:
    assert (distances(wires(shape), 0) >= 0).all()


@pytest.mark.parametrize("name", SMALL)
def test_inside_a_node_port_p_leads_to_i_xor_p(name: str) -> None:
    system = load_system(name)
    shape = system.spec.shape
    if shape.kind in ("line", "ring"):
        return
    for port in range(1, shape.chips):
        chip = np.arange(system.chips)
        assert np.array_equal(system.wires.peer[:, port], chip ^ port)
        assert (system.wires.arrival[:, port] == port).all() and (system.wires.level[:, port] == 0).all()


def test_links_of_every_system_are_scheduled_later_than_any_vector_arrives() -> None:
    for name in SMALL:
        system = load_system(name)
        for level, link in enumerate(system.links):
            assert link.latency > link.maximum + system.misaligned[level] and system.slack(level) >= 0
            jitter = max(link.mean - link.minimum, link.maximum - link.mean)
            assert jitter + 0.5 + 2 * DRIFT * system.epoch <= link.align, "what an alignment can be off"


def test_clocks_of_neighbours_are_aligned_over_few_links() -> None:
    racks, line = load_system("scale-out"), load_system("rack")
    assert racks.misaligned == (24, 72, 168) and racks.tree.depth.max() == 7
    for numbered in (line, *(line.lined_up(stage) for stage in (1, 2, 4, 8))):  # in whatever order chips are
        assert numbered.misaligned == (24, 48, 48) and numbered.tree.depth.max() == 72


def test_the_largest_system_is_the_published_one() -> None:
    system = load_system("scale-out")
    assert system.chips == 10_440 and system.sram_bytes > 2e12
    counts = np.bincount(system.wires.level[system.wires.peer >= 0])
    assert counts.tolist() == [10_440 * 7, 10_440 * 2, 10_440 * 2]
    racks = system.wires.peer[:, 10:] // 72  # every rack is joined to every other exactly once
    pairs = np.arange(10_440)[:, None] // 72 * 145 + racks
    assert len(np.unique(pairs)) == 145 * 144 == pairs.size


def test_nodes_of_a_rack_are_joined_twice_and_of_the_dragonfly_once() -> None:
    for name, chips, ports, count in (("scale-out", 72, slice(8, 10), 2), ("dragonfly", None, slice(8, 12), 1)):
        system = load_system(name, chips)
        peer = system.wires.peer[:, ports]
        pair = np.broadcast_to(np.arange(system.chips)[:, None] // 8 * 1000, peer.shape) + peer // 8
        found = np.unique(pair[peer >= 0], return_counts=True)[1]
        assert len(found) == system.chips // 8 * (system.chips // 8 - 1) and set(found) == {count}


def test_a_node_has_the_published_number_of_cables() -> None:
    assert len(load_system("node").wires.ends[0]) == 2 * 28  # "28 internal cables", ISCA 2022


@pytest.mark.parametrize(("name", "chips", "racks"), [
    ("rack", 576, 8), ("rack", 72, 1), ("rack", 24, 1), ("rack", 144, 2), ("rack", 4, 1),
    ("scale-out", 576, 8), ("scale-out", 16, 1),
    ("dragonfly", 256, 1),
    ("dragonfly", 8, 1), ("groqrack", 16, 1), ("quadfour", 72, 1), ("node", 2, 1), ("tiny-ring", 7, 1),
])
def test_a_system_is_built_in_other_sizes(name: str, chips: int, racks: int) -> None:
    system = load_system(name, chips)
    assert system.chips == chips and system.spec.shape.racks == racks


@pytest.mark.parametrize(("name", "chips", "says"), [
    ("rack", 100, "racks of 72"), ("rack", 12, "whole nodes"), ("node", 3, "1, 2, 4 or 8"), ("single", 2, "one chip"),
    ("dragonfly", 272, "34 groups need 33 ports each, and have 32"), ("rack", 0, "cannot have 0 chips"),
    ("scale-out", 72 * 146, "146 groups"), ("tiny-ring", 1, "2 chips or more"),
])
def test_other_numbers_of_chips_are_refused(name: str, chips: int, says: str) -> None:
    with pytest.raises(Unsupported, match=says):
        load_system(name, chips)


def test_ports_alternate_between_the_hemispheres() -> None:
    queues = [port_queue(port) for port in range(1, 12)]
    assert queues[:4] == ["c2ce0", "c2cw1", "c2ce1", "c2cw2"] and len(set(queues)) == 11
    for name in SMALL:
        system = load_system(name)
        assert all(port_queue(int(port)) in system.spec.chip.queues for port in np.unique(system.wires.ends[1]))


def test_the_spare_of_a_rack_takes_any_nodes_place_with_all_labels() -> None:
    rack = load_system("groqrack")
    assert rack.chips == 64 and rack.physical.tolist() == list(range(64))
    for dead in (0, 13, 40, 71):
        moved = rack.without([dead])
        assert moved.wires.same(rack.wires) and dead // 8 not in set(moved.physical // 8)
        assert len(set(moved.physical.tolist())) == 64
    with pytest.raises(DoesNotFit, match="64 chips asked for, 56 of 72 are in nodes without a dead chip"):
        rack.without([0]).without([8])


def test_a_dead_chip_without_a_spare_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="8 chips asked for, 0 of 8"):
        load_system("node").without([3])
    with pytest.raises(Unsupported, match="there is no chip 8"):
        load_system("node").without([8])


def test_a_dead_node_in_one_of_several_racks(tmp_path: Path) -> None:
    system = _with_spares(tmp_path, "scale_out", 1, 128)
    assert system.chips == 2 * 64
    moved = system.without([72 + 5])
    assert np.array_equal(moved.wires.peer[:, :10], system.wires.peer[:, :10]), "a rack's own labels stay"
    assert 9 not in set(moved.physical // 8) and 17 in set(moved.physical // 8)


def test_the_shortest_stretch_of_healthy_nodes_is_taken(tmp_path: Path) -> None:
    system = _with_spares(tmp_path, "quadfour", 3)
    moved = system.without([0, 16])  # nodes 0 and 2: the stretch from 3 to 16 needs to pass neither
    assert (moved.physical[::8] // 8).tolist() == list(range(3, 17))
    assert moved.wires.same(system.wires)


def test_a_pipeline_joins_counterparts_and_passes_over_a_dead_node(tmp_path: Path) -> None:
    system = _with_spares(tmp_path, "rack", 1, 128)
    assert system.physical[::8].tolist() == [8 * n for n in range(16)]
    chip = np.arange(120)
    port = 8 + 2 * (chip // 8 % 2)  # of both ends of a wire to the next node
    assert np.array_equal(system.wires.peer[chip, port], chip + 8) and (system.wires.arrival[chip, port] == port).all()
    moved = system.without([5 * 8 + 3])
    assert moved.chips == 128 and 5 not in set(moved.physical // 8)
    for node in range(15):  # past the dead node, which was the sixth, by another port of the same hemisphere
        port = 12 if node == 4 else 8 + 2 * ((node + (node > 4)) % 2)
        assert (moved.wires.peer[8 * node : 8 * node + 8, port] == chip[:8] + 8 * node + 8).all()
    with pytest.raises(DoesNotFit, match="no wire is left"):
        system.without([40, 48])


@pytest.mark.parametrize("stage", [1, 2, 4, 8])
def test_stages_of_part_of_a_node_follow_each_other(stage: int) -> None:
    system = load_system("rack").lined_up(stage)
    for first in range(0, system.chips - stage, stage):
        for role in range(stage):
            assert first + stage + role in system.wires.peer[first + role]
            assert all(system.wires.peer[first + role, port] == first + (role ^ port) for port in range(1, stage))


def _with_spares(folder: Path, name: str, spares: int, chips: int | None = None) -> System:
    text = (files("openlpu.arch") / "systems" / f"{name}.toml").read_text("utf-8")
    lines = [f"spares = {spares}" if entry.startswith("spares") else entry for entry in text.splitlines()]
    (folder / "own.toml").write_text("\n".join(lines), "utf-8")
    return load_system(str(folder / "own.toml"), chips)
