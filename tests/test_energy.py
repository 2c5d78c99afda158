"""Energy by instruction: counts by hand, dense work against the published chip powers, idling near static power."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest

from openlpu.arch.chip import Chip, load_chip
from openlpu.arch.energy import Counts, count, dynamic, load_constants, static
from openlpu.arch.isa import ALU, BY_NAME, BYTE, QUAD
from openlpu.schedule.joules import energy
from openlpu.schedule.program import queue_dtype
from openlpu.schedule.tracks import ChipRun

TINY, LPU = load_chip("tiny"), load_chip("lpu-v1")
CYCLES = 200


def queue(name: str, op: str, cycles, **fields) -> dict[str, np.ndarray]:
    rows = np.zeros(len(cycles), queue_dtype(name))
    rows["cycle"], rows["op"] = cycles, BY_NAME[op].opcode
    for field, value in fields.items():
        rows[field] = value
    return {name: rows}


def instructions(queues) -> int:
    """Bytes times tiles that instructions themselves move."""
    from openlpu.arch.encoding import SIZES
    return TINY.superlanes * sum(int(SIZES[rows["op"]].sum()) for rows in queues.values())


@pytest.mark.parametrize("slice_, stream, registers", [(0, 0, 13), (0, 32, 3), (39, 0, 3), (39, 63, 13), (19, 5, 9)])
def test_a_value_flows_to_the_edge(slice_: int, stream: int, registers: int) -> None:
    """The tiny chip has 15 registers; slice 0 stands at the third."""
    queues = queue(f"mem{slice_}", "read", [7], stream=stream)
    assert TINY.positions == 15
    assert count(TINY, queues) == Counts(sram_bytes=256, stream_hops=256 * registers + instructions(queues))


def test_a_value_that_replaces_another_ends_its_way() -> None:
    """Slice 0 posts at register 2 in cycle 10, slice 4 at register 3 one cycle later: the same diagonal."""
    both = queue("mem0", "read", [7], stream=1) | queue("mem4", "read", [8], stream=1)
    later = queue("mem0", "read", [7], stream=1) | queue("mem4", "read", [9], stream=1)
    assert count(TINY, both).stream_hops == 256 * (1 + 12) + instructions(both)
    assert count(TINY, later).stream_hops == 256 * (13 + 12) + instructions(later)


@pytest.mark.parametrize("name, op, fields, streams", [
    ("vxm3", "add", {"dst_kind": QUAD, "dst": 4}, 4), ("vxm3", "add", {"dst_kind": BYTE, "dst": 4}, 1),
    ("vxm3", "add", {"dst_kind": ALU}, 0), ("mxmw0.accumulate", "accumulate", {"emit": 1}, 4),
    ("mxmw0.accumulate", "accumulate", {"emit": 0}, 0), ("sxmw.permute", "permute", {"count": 4}, 4),
    ("sxmw.distribute", "distribute", {"count": 4}, 4),
    ("sxmw.rotate", "rotate", {"size": 3}, 9), ("sxmw.transpose0", "transpose", {}, 16),
    ("c2cw0", "receive", {"stream": 2}, 1), ("mem3", "gather", {"stream": 2}, 1), ("mem3", "write", {"stream": 2}, 0),
])
def test_each_result_flows_on_its_streams(name: str, op: str, fields: dict[str, int], streams: int) -> None:
    queues = queue(name, op, [3], **fields)
    position = TINY.queue_position(name)
    hops = streams * (TINY.positions - position) * 256 + instructions(queues)
    if name.startswith("sxm"):
        hops += streams * TINY.latency[op] * 256
    assert count(TINY, queues).stream_hops == hops


def test_work_is_counted_by_instruction() -> None:
    queues = (
        queue("mxmw0.activations", "activate", [1, 2]) | queue("vxm0", "add", [1, 2, 3], dst_kind=ALU)
        | queue("vxm1", "exp", [4], dst_kind=ALU) | queue("c2cw0", "send", [1, 30, 60])
        | queue("mem1", "write", [4, 5]) | queue("mem2", "scatter", [4])
    )
    assert count(TINY, queues, packet_bytes=264) == Counts(
        sram_bytes=3 * 256, stream_hops=instructions(queues), int8_macs=2 * 256**2, alu_operations=3 * 256,
        alu_specials=256, link_bits=3 * 8 * 264,
    )


def test_a_chip_that_sends_has_packets() -> None:
    with pytest.raises(AssertionError, match="has links"):
        count(TINY, queue("c2cw0", "send", [1]))


def test_installing_weights_moves_them_twice() -> None:
    queues = queue("mxmw0.weights", "load_weights", range(16), group=np.arange(16))
    both = queues | queue("mxmw1.weights", "install_weights", [20])
    assert count(TINY, queues).stream_hops == 256**2 + instructions(queues)
    assert count(TINY, both).stream_hops == 2 * 256**2 + instructions(both)


def dense(chip: Chip, links: bool) -> dict[str, np.ndarray]:
    """Every cycle: all planes multiply and emit sums, all ALUs work, 64 slices fill all streams from their beginning.

    ``links``: all SRAM ports and links as well, which no published average means."""
    every = np.arange(CYCLES)
    out: dict[str, np.ndarray] = {}
    for i in range(chip.vxm_alus):
        out |= queue(f"vxm{i}", "add", every, dst_kind=ALU)
    for side in "we":
        for plane in range(chip.mxm_planes_per_hemisphere):
            first = 4 * plane + (0 if side == "w" else 32)  # results flow inward
            out |= queue(f"mxm{side}{plane}.activations", "activate", every)
            out |= queue(f"mxm{side}{plane}.accumulate", "accumulate", every, emit=1, stream=first)
    for slice_ in range(chip.slices):
        stream = slice_ if slice_ < 32 else 32 + chip.slices - 1 - slice_
        if slice_ < 32 or slice_ >= chip.slices - 32:
            out |= queue(f"mem{slice_}", "read", every, stream=stream)
        if links:
            more = [queue(f"mem{slice_}", op, every, stream=stream)[f"mem{slice_}"] for op in ("read", "write")]
            out[f"mem{slice_}"] = np.concatenate(more)
    if links:
        for i in range(chip.c2c_links // 2):
            out |= queue(f"c2cw{i}", "send", every[::24]) | queue(f"c2ce{i}", "send", every[::24])
    return out


def watts(chip: Chip, queues: dict[str, np.ndarray]) -> float:
    return energy([ChipRun("chip", chip, 0, CYCLES, queues, ((0, "work"),), packet_bytes=328)]).watts_alone


def test_dense_work_takes_between_average_and_design_power() -> None:
    """Published for the first LPU: 185 W on average, 215 W by design, 300 W at most, at 900 MHz."""
    assert LPU.clock_hz == 900_000_000
    assert 185 < watts(LPU, dense(LPU, links=False)) < 215
    assert 215 < watts(LPU, dense(LPU, links=True)) < 300


def test_idling_takes_static_power_and_little_more() -> None:
    of = load_constants()
    floor = of.static_mw_per_mib * 220 / 1000
    assert static(LPU, of, LPU.clock_hz) == of.static_mw_per_mib * 220 * 10**12
    assert watts(LPU, {}) == pytest.approx(floor)
    assert floor < watts(LPU, queue("mem0", "read", [0])) < 1.01 * floor


def test_every_kind_of_work_matters() -> None:
    """No constant is zero, and each kind of energy answers to one of the counts."""
    of = load_constants()
    assert all(value > 0 for name, value in vars(of).items() if name != "name")
    counts = count(LPU, dense(LPU, links=True) | queue("vxm0", "exp", [0], dst_kind=ALU), packet_bytes=328)
    assert all(vars(counts).values()) and all(dynamic(counts, of).values())
    assert dynamic(counts * 2, of) == {name: 2 * value for name, value in dynamic(counts, of).items()}


def test_every_constant_says_how_it_was_set() -> None:
    text = (files("openlpu.arch") / "energy.toml").read_text("utf-8")
    numbers = re.findall(r"^\w+ = \d+ +# (.*)", text, re.M)
    assert len(numbers) == 2 * (len(vars(load_constants())) - 1)
    assert all(comment.startswith(("chosen: ", "calibrated: ")) for comment in numbers)


def test_a_full_pipeline_shares_static_power() -> None:
    """Two chips one after the other: a request alone waits for both, a full pipeline for the longer one."""
    queues = queue("mem0", "read", [0])
    chips = [ChipRun("a", LPU, 0, 300, queues, ((0, "x"),)), ChipRun("b", LPU, 300, 500, queues, ((0, "x"),))]
    spent, of = energy(chips), load_constants()
    assert spent.static_alone == 2 * static(LPU, of, 800) and spent.static_full == 2 * static(LPU, of, 500)
    assert spent.counts == count(LPU, queues) * 2
    assert spent.full < spent.alone == spent.static_alone + sum(spent.dynamic.values())


def test_a_smaller_process_takes_less_of_everything_but_links() -> None:
    old, new = load_constants("lpu-v1"), load_constants("lp30")
    assert (old.name, new.name, load_constants()) == ("14 nm", "4 nm", old)
    ratios = {name: getattr(new, name) / getattr(old, name) for name in vars(old) if name != "name"}
    assert ratios.pop("link_bit") == 1 and all(0.4 < ratio < 0.6 for ratio in ratios.values())
    lp30 = load_chip("lp30")
    assert energy([ChipRun("a", lp30, 0, 300, queue("mem0", "read", [0]), ((0, "x"),))]).process == "4 nm"
