"""Chunks of a prompt in; cycles of a step and of a token, instruction bytes and processor seconds out.

``python bench/prefill.py``: a Markdown table of segments for 256 positions on ``lpu-v1``, of the shape of the demo and
of a layer of Llama-2-7B as eight chips share it; nothing has weights.
"""

from __future__ import annotations

import argparse
import time

from compile import ROWS

from openlpu._base import units
from openlpu._base.errors import OpenLpuError
from openlpu.arch.chip import load_chip
from openlpu.arch.encoding import instruction_bytes
from openlpu.checkpoint.config import ModelConfig
from openlpu.checkpoint.folder import DEMO
from openlpu.compile import outlined
from openlpu.numerics.outline import outline
from openlpu.place.layout import place
from openlpu.schedule.step import schedule

CONTEXT = 256


def cells(config: ModelConfig, chunk: int) -> str:
    """One segment, scheduled beside that of one token."""
    graph, chip = outline(config), load_chip("lpu-v1")
    start = time.process_time()
    try:
        program = schedule(graph, place(graph, chip), [CONTEXT], [chunk] if chunk > 1 else [])
    except OpenLpuError as error:
        return f"{error.what} | | | "
    segment, spent = program.segments[-1], time.process_time() - start
    size = units.size(instruction_bytes(segment.queues))
    return f"{segment.cycles:,} | {segment.cycles / chunk:,.0f} | {size} | {spent:.1f} s"


def main() -> None:
    """The table."""
    shapes = {"demo": outlined(str(DEMO)).config, "llama-2-7b": ROWS["llama-2-7b, a layer of 8 chips"][0]}
    print("| tokens a step | " + " | ".join(f"{name} | a token | bytes | s" for name in shapes) + " |")
    for chunk in (1, 2, 4, 8, 16):
        print(f"| {chunk} | " + " | ".join(cells(config, chunk) for config in shapes.values()) + " |", flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
