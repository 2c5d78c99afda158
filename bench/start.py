"""Time from the start of a process to its first token, and what is in its memory then and later.

    python bench/start.py llama-3.2-1b [BITS]

Draws random weights of the shape (``demo``: takes the embedded model), compiles them for this processor into a
temporary folder, then starts processes that say one token, the file cache warm, and prints the times and where they
go.  Two further processes print their memory: one runs that folder until its weights are copied onto huge pages and
the file map is dropped, the other packs the model itself.  Linux counts what is resident, in pages.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from openlpu import compile as pipeline
from openlpu._base import units
from openlpu.checkpoint.folder import load as read_checkpoint
from openlpu.graph import shapes
from openlpu.numerics.draw import draw
from openlpu.numerics.scheme import Scheme
from openlpu.target.cpu.run import CpuExecutable

CONTEXT = 2048  # positions of the cache
FILL = 60  # in every byte of it, so that all of it is there
PACK = "pack"  # what the child that packs the model itself is given for a folder


def compiled(name: str, bits: float) -> pipeline.Compiled:
    """The model, not stored yet."""
    scheme = Scheme(weight_bits=bits)
    if name == "demo":
        return pipeline.compile("demo", scheme=scheme)
    graph = draw(shapes.shape(name, CONTEXT), scheme)
    return pipeline.Compiled(name, read_checkpoint("demo"), graph, pipeline.Options(scheme), "drawn")


def resident() -> dict[str, int]:
    """Bytes of this process in memory, of them anonymous and mapped from files, and the most there ever were."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE))
    return {name: int(found[name]) << 10 for name in ("VmRSS", "RssAnon", "RssFile", "VmHWM")}


def child(name: str, bits: float, folder: str) -> None:
    """Run a token, wait until nothing is moved any more, fill the cache; print what is in memory each time."""
    before = resident()
    made = compiled(name, bits) if folder == PACK else pipeline.compile(folder)
    with pipeline.start(made, "cpu") as model:
        del made  # as `openlpu run` does
        executable = model.executable
        assert isinstance(executable, CpuExecutable)
        model.generate((1,), max_tokens=1).finish()
        first = resident()
        while executable.moving:
            model.generate((1,), max_tokens=1).finish()
        executable.layout.cache.bytes[:] = FILL
        image, cache = executable.layout.image, executable.layout.cache
        weights = len(image.streamed) + sum(table.nbytes for table in image.looked_up.values())
        said = {"before": before, "first": first, "last": resident(), "weights": weights, "kv": len(cache.bytes)}
    print(json.dumps(said))


def memory(name: str, bits: float, folder: str) -> str:
    """The line of one child."""
    command = [sys.executable, __file__, name, str(bits), "--child", folder]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    last = said["last"]
    rest = last["VmRSS"] - said["weights"] - said["kv"]
    size = units.size
    return (f"{size(last['VmRSS'])} resident: weights {size(said['weights'])}, KV of all positions {size(said['kv'])}, "
            f"rest {size(rest)} (Python and its libraries before: {size(said['before']['VmRSS'])}); "
            f"after the first token {size(said['first']['VmRSS'])}, at its peak {size(last['VmHWM'])}")


def main() -> None:
    """Print the times, then the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b")
    parser.add_argument("bits", nargs="?", type=float, default=8)
    parser.add_argument("--runs", type=int, default=7, help="processes that are timed")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.shape, args.bits, args.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model"
        pipeline.store(compiled(args.shape, args.bits), made)
        size = sum(path.stat().st_size for path in made.iterdir())
        walls, firsts = [], []
        for _ in range(args.runs):
            begin = time.perf_counter()
            command = [sys.executable, "-m", "openlpu", "run", str(made), "--max-tokens", "1", "--json"]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            walls.append(time.perf_counter() - begin)
            firsts.append(json.loads(out)["measured"]["first_token_s"])
        print(f"{args.shape}, {args.bits:g} bits: {size / 1e9:.2f} GB, process from start to end "
              f"{statistics.median(walls):.2f} s ({min(walls):.2f} to {max(walls):.2f}), of it prompt and first token "
              f"{statistics.median(firsts):.2f} s")
        print(f"from the folder: {memory(args.shape, args.bits, str(made))}")
    print(f"packed in the same process: {memory(args.shape, args.bits, PACK)}")


if __name__ == "__main__":
    main()
