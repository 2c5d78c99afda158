"""A model on several chips of the chip model in; cycles, this machine's time and memory, and real clocks out.

``python bench/chips.py [MODEL [TENSOR [STAGES [STEPS]]]]`` (``demo``, 8, 1, 4): on a node of ``lpu-v1``, all claims
compared.
"""

from __future__ import annotations

import argparse
import resource
import time

from openlpu import compile as pipeline
from openlpu._base import units
from openlpu.partition.split import Split
from openlpu.target.base import Chunk
from openlpu.target.chip.system import load


def main(model: str, tensor: int, stages: int, steps: int) -> None:
    """Compile, run ``steps`` tokens, then a thousand draws of clocks and links."""
    start = time.perf_counter()
    executable = load(pipeline.compile(model).graph, system="node", split=Split(tensor, stages))
    print(f"{model}, {tensor} chips a stage, {stages} stages: compiled and loaded in "
          f"{units.wall(time.perf_counter() - start)}")
    start = time.perf_counter()
    count = sum(len(trace.code) for trace in executable.traces(0))
    print(f"{count:,} instructions checked in {units.wall(time.perf_counter() - start)}")
    executable.run([Chunk(0, 0, (1,))])
    seconds = []
    for position in range(1, steps + 1):
        start = time.perf_counter()
        executable.run([Chunk(0, position, (position,))])
        seconds.append(time.perf_counter() - start)
    print(f"{units.cycles(executable.cycles)} per token, {units.wall(units.percentile(seconds, 50))} median here")
    start = time.perf_counter()
    timing = executable.timing(0)
    print(f"1,000 draws in {units.wall(time.perf_counter() - start)}: vectors wait {timing.slack.min():.0f} cycles or "
          f"more, the end is {(timing.end - timing.cycles).max():.1f} late at most, stated are {timing.bound:.1f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("tensor", nargs="?", type=int, default=8, choices=(1, 2, 4, 8))
    parser.add_argument("stages", nargs="?", type=int, default=1, choices=range(1, 9))
    parser.add_argument("steps", nargs="?", type=int, default=4, choices=range(1, 257), metavar="1..256")
    given = parser.parse_args()
    if given.tensor * given.stages > 8:
        parser.error("a node has 8 chips")
    main(given.model, given.tensor, given.stages, given.steps)
