"""A model on several chips of the chip model in; cycles, this machine's time and memory, and real clocks out.

``python bench/chips.py [MODEL [TENSOR [STAGES [STEPS]]]]`` (``demo``, 8, 1, 4): on a node of ``lpu-v1``, all claims
compared.
"""

from __future__ import annotations

import resource
import sys
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
    given = sys.argv[1:]
    main(given[0] if given else "demo", *(int(given[i]) if i < len(given) else n for i, n in ((1, 8), (2, 1), (3, 4))))
