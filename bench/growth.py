"""Models and systems of growing size in; what it takes to compile each out, in one Markdown table.

``python bench/growth.py [ROW …]`` (all rows if none is named), on Linux: `openlpu compile … -o DIR` of shapes in a
process of its own, all buckets up to 4,096 positions, the search included.  Processor time and memory are those of all
its processes, the memory as it is looked at four times a second.  Instructions are those of a token with 256 positions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openlpu._base import units
from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.shapes import SHAPES

LOOK = 0.25  # seconds from one look at the memory to the next
LLAMA_7B = SHAPES["llama-2-7b"]
LLAMA_13B = replace(LLAMA_7B, hidden=5120, layers=40, heads=40, kv_heads=40, intermediate=13824)


@dataclass(frozen=True)
class Row:
    """A model of these sizes on so many chips of a system."""

    model: str
    config: ModelConfig
    system: str
    chips: int


ROWS = (
    Row("Llama-2-7B, 1 of 32 layers", replace(LLAMA_7B, layers=1), "node", 8),
    Row("Llama-2-7B, 4 of 32 layers", replace(LLAMA_7B, layers=4), "rack", 16),
    Row("Llama-2-7B", LLAMA_7B, "rack", 144),
    Row("Llama-2-7B", LLAMA_7B, "rack", 288),
    Row("Llama-2-13B", LLAMA_13B, "rack", 288),
    Row("Llama-2-70B", SHAPES["llama-2-70b"], "rack", 576),
)
HEAD = ("model", "chips", "stages", "programs", "wall", "processor", "memory", "instructions", "a chip",
        "cycles, context 256", "context 4,096", "processor per program and bucket")


def hugging_face(config: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of a Llama of these sizes."""
    return {
        "model_type": "llama", "hidden_size": config.hidden, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "intermediate_size": config.intermediate, "vocab_size": config.vocab, "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.context, "rope_theta": config.rope.theta, "tie_word_embeddings": config.tied,
        "hidden_act": "silu", "torch_dtype": "float16",
    }


def resident(parent: int) -> int:
    """Bytes that a process and all below it have in memory now."""
    below, held = dict[int, list[int]](), dict[int, int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        number = int(path.parent.name)
        below.setdefault(int(fields[1]), []).append(number)
        held[number] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    found = [parent]
    for number in found:
        found += below.get(number, [])
    return sum(held.get(number, 0) for number in found)


def compiled(row: Row) -> dict[str, Any]:
    """What the command says, and ``wall``, ``processor`` seconds and ``memory`` of it and its processes."""
    with tempfile.TemporaryDirectory() as folder:
        shape = Path(folder) / "config.json"
        shape.write_text(json.dumps(hugging_face(row.config)))
        command = [sys.executable, "-m", "openlpu", "compile", str(shape), "--shapes-only", "--system", row.system,
                   "--chips", str(row.chips), "-o", str(Path(folder) / "program"), "--json"]
        with (Path(folder) / "said").open("w+") as said:
            begun, memory = time.perf_counter(), 0
            process = subprocess.Popen(command, stdout=said)
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                memory = max(memory, resident(process.pid))
                time.sleep(LOOK)
            wall, spent = time.perf_counter() - begun, ended[2]
            said.seek(0)
            assert not ended[1], f"{row.model}: {' '.join(command)} failed"
            return json.load(said) | {"wall": wall, "processor": spent.ru_utime + spent.ru_stime, "memory": memory}


def cells(row: Row, made: dict[str, Any]) -> Iterator[str]:
    """The table's line."""
    split, first, last = made["split"], made["segments"][0], made["segments"][-1]
    programs, instructions = len(made["sram"]), sum(use["count"] for use in first["units"].values())
    stages = f"{split['stages']} of {split['tensor']}, {split['exchange']}"
    yield from (row.model, f"{row.chips}", stages, f"{programs}")
    yield from (f"{made['wall']:.1f} s", f"{made['processor']:.1f} s", units.size(made["memory"]))
    yield from (f"{instructions:,}", f"{instructions // made['chips']:,}", f"{first['cycles']:,}")
    yield from (f"{last['cycles']:,}", f"{made['processor'] / programs / len(made['segments']):.1f} s")


def main(numbers: Sequence[int]) -> None:
    """The table, a line as soon as it is known."""
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for number in numbers:
        row = ROWS[number - 1]
        print(f"| {' | '.join(cells(row, compiled(row)))} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = range(1, len(ROWS) + 1)
    parser.add_argument("row", nargs="*", type=int, metavar="ROW", help=f"{every[0]} to {every[-1]} (default: all)")
    given = parser.parse_args().row or every
    if not set(given) <= set(every):
        parser.error(f"rows are {every[0]} to {every[-1]}")
    main(given)
