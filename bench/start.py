"""Time from the start of a process to its first token, for a model that was compiled into a folder.

    python bench/start.py llama-3.2-1b

Draws random weights of the shape, compiles them for this processor into a temporary folder, then starts processes
that say one token, the file cache warm, and prints the times and where they go.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from openlpu import compile as pipeline
from openlpu.graph import shapes
from openlpu.numerics.draw import draw
from openlpu.numerics.scheme import Scheme

RUNS = 7


def main(shape: str, bits: float) -> None:
    scheme = Scheme(weight_bits=bits)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model"
        demo = pipeline.compile("demo")
        graph = draw(shapes.shape(shape, 2048), scheme=scheme)
        compiled = pipeline.Compiled(shape, demo.checkpoint, graph, pipeline.Options(scheme), "drawn")
        pipeline.store(compiled, made)
        size = sum(path.stat().st_size for path in made.iterdir())
        walls, firsts = [], []
        for _ in range(RUNS):
            begin = time.perf_counter()
            command = [sys.executable, "-m", "openlpu", "run", str(made), "--max-tokens", "1", "--json"]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            walls.append(time.perf_counter() - begin)
            firsts.append(json.loads(out)["measured"]["first_token_s"])
    print(f"{shape}, {bits:g} bits: {size / 1e9:.2f} GB, process from start to end {statistics.median(walls):.2f} s "
          f"({min(walls):.2f} to {max(walls):.2f}), of it prompt and first token {statistics.median(firsts):.2f} s")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "llama-3.2-1b", float(sys.argv[2]) if len(sys.argv) > 2 else 8)
