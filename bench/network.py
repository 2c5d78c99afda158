"""Sizes in; the bandwidth of collectives on a node, and of one transfer over one route and over several, out.

``python bench/network.py``: a Markdown table of programs on the system ``node``; GB/s are bytes that a chip gives, by
the time from the first dispatch to the last result.
"""

from __future__ import annotations

import argparse

from openlpu._base import units
from openlpu.arch.system import load_system
from openlpu.schedule.collective import Collective, all_gather, all_reduce, swap

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


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
