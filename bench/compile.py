"""Shapes of growing size in, processor seconds and memory to compile them out, and cycles beside the weights' bound.

``python bench/compile.py [NAME …]``: one row per shape, each in a process of its own.  Nothing has weights: codes are
one zero seen from everywhere.  *streams*: from the third tile of each plane on (two can wait in front of the first
activation), in how many cycles of the largest linear the planes load.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from openlpu._base import units
from openlpu.arch.chip import Chip, load_chip
from openlpu.arch.encoding import instruction_bytes
from openlpu.arch.isa import BY_NAME
from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.graph.ir import Graph
from openlpu.graph.shapes import SHAPES
from openlpu.numerics.outline import outline
from openlpu.place.bound import bound
from openlpu.place.layout import place
from openlpu.schedule.program import Segment
from openlpu.schedule.step import schedule

STORIES = ModelConfig("llama", 64, 5, 8, 4, 8, 172, 512, 512, 1e-5, Rope(10000.0), tied=True)
SMOL = replace(SHAPES["smollm2-135m"], vocab=2048, context=512)
LARGE = ModelConfig("llama", 8192, 1, 8, 1, 128, 28672 // 8, 320, 4096, 1e-5, Rope(10000.0), tied=False)
ROWS: dict[str, tuple[ModelConfig, int]] = {  # and the context that is compiled
    "stories260k": (STORIES, 256),
    "smollm2-135m, 4 layers": (replace(SMOL, layers=4), 256),
    "smollm2-135m, 30 layers": (SMOL, 256),
    "llama-2-7b, a layer of 8 chips": (replace(LARGE, hidden=4096, heads=4, kv_heads=4, intermediate=1376), 256),
    "llama-2-7b, 5 layers of 8 chips": (
        replace(LARGE, hidden=4096, layers=5, heads=4, kv_heads=4, intermediate=1376, context=256), 256,
    ),
    "llama-2-70b, a layer of 8 chips": (LARGE, 256),
    "llama-2-70b, context 4096": (LARGE, 4096),
}


def streams(graph: Graph, chip: Chip, segment: Segment) -> float:
    """Share of cycles in which the planes load during their part of the largest linear."""
    linears = {n.output: graph.params[n.params["codes"]].size for n in graph.nodes if n.op == "linear"}
    largest = max(linears, key=lambda name: linears[name])
    starts = [first for first, _ in segment.origin]
    k = next(i for i, (_, name) in enumerate(segment.origin) if name == largest)
    loads = there = 0
    for name, queue in segment.queues.items():
        if name.endswith(".weights"):
            own = queue[(queue["op"] == BY_NAME["load_weights"].opcode) & (queue["id"] >= starts[k])]
            cycles = own["cycle"][own["id"] < starts[k + 1]].astype(np.int64)
            cycles = cycles[2 * chip.superlanes :]
            loads += len(cycles)
            there += int(cycles[-1] - cycles[0]) + 1 if len(cycles) else 0
    return loads / there if there else 0.0


def row(name: str) -> dict[str, Any]:
    """Compile one shape."""
    config, context = ROWS[name]
    chip, graph = load_chip("lpu-v1"), outline(config)
    start = time.process_time()
    layout = place(graph, chip)
    placed = time.process_time()
    segment = schedule(graph, layout, [context]).segments[0]
    done = time.process_time()
    return {
        "instructions": sum(len(q) for q in segment.queues.values()), "bytes": instruction_bytes(segment.queues),
        "place": placed - start, "schedule": done - placed, "cycles": segment.cycles,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "weights": bound(graph, chip, context).weights, "streams": streams(graph, chip, segment),
    }


def main(names: list[str]) -> None:
    """The table."""
    print(f"{'shape':33}{'instructions':>13}{'bytes':>9}{'place':>9}{'schedule':>10}{'memory':>9}{'cycles':>9}"
          f"{'weights':>9}{'ratio':>7}{'streams':>9}")
    for name in names or ROWS:
        out = subprocess.run([sys.executable, __file__, "--row", name], stdout=subprocess.PIPE, check=True).stdout
        r = json.loads(out)
        print(f"{name:33}{r['instructions']:>13,}{units.size(r['bytes']):>9}{r['place']:>7.2f} s{r['schedule']:>8.2f} s"
              f"{units.size(r['memory']):>9}{r['cycles']:>9,}{r['weights']:>9,}{r['cycles'] / r['weights']:>7.2f}"
              f"{r['streams']:>9.1%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, metavar="SHAPE", help="only this one, as JSON, in this process")
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(ROWS))
    given = parser.parse_args()
    if unknown := [name for name in given.shapes if name not in ROWS]:
        parser.error(f"unknown shape {unknown[0]!r}: use {', '.join(ROWS)}")
    if given.row:
        print(json.dumps(row(given.row)))
    else:
        main(given.shapes)
