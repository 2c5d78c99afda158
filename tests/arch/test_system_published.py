"""Published numbers of networks: what follows exactly, and what is predicted within a factor."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from openlpu import cli
from openlpu.arch import published
from openlpu.arch.system import load_system


def test_links_and_packets() -> None:
    node = load_system("node")
    assert published.link_latency_ns(node) == pytest.approx(241, abs=0.5)  # N1
    assert published.hop_ns(node) == 300  # N4
    assert published.packet_efficiency(node) == pytest.approx(0.9756, abs=1e-4)  # N5
    assert published.startup_epochs(node) == 1  # N2: 217 cycles are less than an epoch
    assert published.startup_epochs(load_system("scale-out")) == 8  # 7 links, one of them longer than an epoch


def test_published_bandwidths_of_the_deployed_system() -> None:
    """N9: all of them follow from 10.67 GB/s and the count of links."""
    partition = load_system("quadfour", 72)
    assert published.link_bandwidth(partition) == pytest.approx(10.67e9, rel=1e-3)
    assert published.bisection_bandwidth(partition) == pytest.approx(853e9, rel=1e-3)
    assert published.chip_bandwidth(partition) == pytest.approx(235e9, rel=2e-3)
    skips = [published.skip_bandwidth(partition, dead) / 1e9 for dead in range(5)]
    assert skips == pytest.approx([427, 256, 128, 43, 0], rel=1e-2)


def test_bandwidths_are_those_of_each_class_of_cable(tmp_path: Path) -> None:
    """With cables between nodes at half the rate: 9 nodes of the ring have 80 of them between halves, a chip has 4."""
    text = (files("openlpu.arch") / "systems" / "quadfour.toml").read_text("utf-8")
    inside, between = text.split("[links.rack]")
    between = between.replace("cycles = 27", "cycles = 54")
    (tmp_path / "slow.toml").write_text(f"{inside}[links.rack]{between}", "utf-8")
    slow, local = load_system(str(tmp_path / "slow.toml"), 72), 320 * 900e6 / 27
    assert published.bisection_bandwidth(slow) == pytest.approx(80 * local / 2)
    assert published.skip_bandwidth(slow, 0) == pytest.approx(40 * local / 2)
    assert published.chip_bandwidth(slow) == pytest.approx(2 * (7 * local + 4 * local / 2))


@pytest.mark.parametrize(("name", "chips", "hops", "routers"), [
    ("node", 8, 1, 1), ("dragonfly", 264, 3, 3), ("quadfour", 72, 3, 3),
    ("quadfour", 136, 5, 4), ("groqrack", 64, 3, 3), ("scale-out", 72, 3, 3), ("scale-out", 576, 5, 4),
    ("rack", 576, 37, 37), ("lpx", 256, 3, 3),
])
def test_distances(name: str, chips: int, hops: int, routers: int) -> None:
    """N11: the paper's 5 hops of racks count a node that is passed through as one router."""
    system = load_system(name, chips)
    assert (published.hops(system), published.router_hops(system)) == (hops, routers)


def test_the_largest_system() -> None:
    system = load_system("scale-out")
    assert published.router_hops(system) == 5 and published.hops(system) == 7
    assert published.end_to_end_ns(system) < 3000  # N11


def test_the_third_generation_is_as_far_as_published() -> None:
    """500 MB, 1.2 PFLOPS and 2.5 TB/s of links a chip, 128 GB in all; what is chosen is in the files."""
    rack = load_system("lpx")
    chip = rack.chip
    assert rack.sram_bytes == pytest.approx(128e9, rel=0.01) and rack.chips == 256
    macs = 2 * chip.mxm_planes_per_hemisphere * chip.lanes**2
    assert 2 * macs * chip.clock_hz == pytest.approx(1.2e15, rel=1e-3)
    assert published.chip_bandwidth(rack) == pytest.approx(2.5e12, rel=0.07)


def test_the_crossover_of_routing() -> None:
    """N6: 8 kB follow from the paper's own hop of 722 ns; with a hop of 300 ns it would be half."""
    node = load_system("node")
    assert 8000 < published.crossover_bytes(node, hop_cycles=650) < 9500
    assert 4000 < published.crossover_bytes(node) < 4500


def test_predictions_that_are_low() -> None:
    """N3, N10: pure transit and one addition; the published times hold more, which nobody has itemised."""
    assert 0.4 < published.all_reduce_ns(load_system("dragonfly", 256)) / 2166 < 0.7
    assert published.all_reduce_hop_ns(load_system("dragonfly", 256)) * 3 == pytest.approx(
        published.all_reduce_ns(load_system("dragonfly", 256)))
    assert 0.5 < published.end_to_end_ns(load_system("groqrack")) / 1600 < 0.8


def test_all_reduce_bandwidth_saturates_early() -> None:
    """N7: half of what it ends at with some hundred kilobytes."""
    node = load_system("node")
    sizes = [320 * 2**k for k in range(0, 20, 2)]
    rates = [published.all_reduce_bandwidth(node, size) for size in sizes]
    assert rates == sorted(rates) and rates[5] > rates[-1] / 2


def test_the_command_lists_and_describes(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    assert cli.main(["systems"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("groqrack", "scale-out", "10,440", "lpx"))
    assert cli.main(["systems", "scale-out", "--chips", "576", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chips"] == 576 and sum(found["pairs_by_hops"]) == 576**2
    assert [link["wires"] for link in found["links"]] == [576 * 7 // 2, 576, 560]
    assert cli.main(["systems", "groqrack"]) == 0
    said = capsys.readouterr().out
    assert "64 chips lpu-v1, 8 more stand by" in said and "328 bytes with its framing" in said
    named = said.split("file         ")[1].partition(":")[0]
    assert cli.main(["systems", named]) == 0 and capsys.readouterr().out == said, "what it names is its file"
    assert cli.main(["systems", "--chips", "8"]) == 2 and "of which system?" in capsys.readouterr().err
    assert cli.main(["systems", str(tmp_path / "none.toml")]) == 2
