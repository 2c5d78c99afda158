"""Decode steps of a model on the chip model in, steps a second of this machine out.

``python bench/chip.py [MODEL [STEPS]]`` (``demo``, 16): median and slowest step, claims compared.  For one core:
``OMP_NUM_THREADS=1 taskset -c 0 python bench/chip.py``.
"""

from __future__ import annotations

import argparse
import time

from openlpu import compile as pipeline
from openlpu._base import units
from openlpu.target.base import Chunk
from openlpu.target.chip.run import ChipExecutable


def main(model: str, steps: int) -> None:
    """Compile, run ``steps`` tokens, print."""
    compiled = pipeline.compile(model)
    start = time.perf_counter()
    program = pipeline.program(compiled.graph)
    scheduled = time.perf_counter() - start
    executable = ChipExecutable(program, compiled.graph.params)
    executable.run([Chunk(0, 0, (1,))])  # resolves the program once
    seconds = []
    for position in range(1, steps + 1):
        start = time.perf_counter()
        executable.run([Chunk(0, position, (position,))])
        seconds.append(time.perf_counter() - start)
    median = units.percentile(seconds, 50)
    print(f"{model} on {program.chip.name}: {units.cycles(executable.cycles)} per token")
    print(f"placed and scheduled in {units.wall(scheduled)}")
    print(f"{1 / median:.2f} steps a second: {units.wall(median)} median, {units.wall(max(seconds))} slowest")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("steps", nargs="?", type=int, default=16, choices=range(1, 257), metavar="1..256")
    given = parser.parse_args()
    main(given.model, given.steps)
