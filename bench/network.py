"""Sizes in; the bandwidth of collectives on a node, and of one transfer over one route and over several, out.

``python bench/network.py``: a Markdown table of programs on the system ``node``; GB/s are bytes that a chip gives, by
the time from the first dispatch to the last result.

``python bench/network.py --hand-overs``: what a chip hands to the next stage in some splits, how many wires lead there
from it, and the cycles from the first send to the last arrival over its own wire and over all of them, counted.
"""

from __future__ import annotations

import argparse

import numpy as np

from openlpu._base import units
from openlpu.arch.system import System, load_system
from openlpu.graph.shapes import shape
from openlpu.partition.split import Split
from openlpu.schedule.collective import Collective, all_gather, all_reduce, swap
from openlpu.schedule.search import lined_up
from openlpu.schedule.system import cables
from openlpu.schedule.units.c2c import PLANES

SIZES = (320, 1280, 5120, 10240, 20480, 40960, 81920, 163840, 327680, 1024000)


def cell(made: Collective) -> str:
    """Cycles and GB/s."""
    return f"{made.cycles:,} | {made.bandwidth / 1e9:.1f}"


def main() -> None:
    """The table."""
    node = load_system("node")
    lanes = node.chip.lanes
    print("| a chip gives | all-reduce, cycles | GB/s | all-gather | GB/s | swap, one route | GB/s | several | GB/s |")
    print("|---:|" + "---:|" * 8)
    for size in SIZES:
        count = size // lanes
        words = all_reduce(node, count // 4) if count >= 4 else None
        made = [all_gather(node, count), swap(node, count, direct=True), swap(node, count)]
        cells = [cell(words) if words else " | ", *map(cell, made)]
        print(f"| {units.size(size)} | " + " | ".join(cells) + " |", flush=True)


SPLITS = (
    ("llama-2-70b", "rack", Split(8, 72)), ("llama-2-70b", "rack", Split(4, 80)),
    ("gpt-oss-120b", "rack", Split(16, 36)), ("mistral-7b", "rack", Split(2, 32)),
    ("llama-2-7b", "rack", Split(1, 32)), ("smollm2-135m", "node", Split(4, 2)),
)
CHUNKS = (1, 16)


def hand_overs() -> None:
    """The table of hand-overs; of each split the hop from which most wires lead on."""
    print("| model | chips a stage, stages | tokens | a chip hands over | wires to the next stage | over one, cycles "
          "| over all |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, place, split in SPLITS:
        system = lined_up(load_system(place), split)
        hidden, lanes = shape(name).hidden, system.chip.lanes
        wires = max(_wires(system, split, s) for s in range(split.stages - 1))
        links = [hop.link for hop in cables(system, split)[1]]
        for tokens in CHUNKS:
            count = tokens * PLANES * -(-hidden // split.tensor // lanes)
            one, every = (_arrival(system, count, more, min(link.latency for link in links)) for more in (0, wires - 1))
            print(f"| {name} | {split.tensor}, {split.stages} | {tokens} | {units.size(count * lanes)} | {wires} | "
                  f"{one:,} | {every:,} |")


def _wires(system: System, split: Split, s: int) -> int:
    """Wires from a chip of stage ``s`` to chips of the next."""
    first = (s + 1) * split.tensor
    peers = system.wires.peer[first - split.tensor : first]
    return int(((peers >= first) & (peers < first + split.tensor)).sum(axis=1).max())


def _arrival(system: System, count: int, more: int, latency: int) -> int:
    """When the last of ``count`` vectors is there, each by the route that has it there first: its own wire, or one of
    ``more`` to other chips of the next stage, which send it on to where it belongs."""
    node, timing = system.links[0], system.chip.latency
    detour = latency + timing["c2c"] + timing["write"] + timing["read"] + node.latency
    takes, free = np.array([latency, *[detour] * more]), np.zeros(1 + more, np.int64)
    for _ in range(count):
        route = int((free + takes).argmin())
        free[route] += node.cycles
    return int((free + takes)[free > 0].max()) - node.cycles


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hand-overs", action="store_true", help="count those of stages instead")
    (hand_overs if parser.parse_args().hand_overs else main)()
