"""A shape in, how steady its time per token is out: on an idle machine, and beside a busy process.

``python bench/steadiness.py [--shape NAME] [--tokens N] [--threads N] [--busy] [--peer LLAMA_BENCH --gguf FILE]``

Without ``--busy``: N tokens in alternation with a loop that reads as many bytes.  Each time is divided by the time
predicted for its context, a line through the medians of the two halves, so that a growing context does not count.
With ``--busy``: tokens/s of N threads and of one in alternation, idle and while a child process spins on one core.
``--peer`` does the same to ``llama-bench`` with a model file of that shape.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from openlpu.graph.shapes import SHAPES, shape
from openlpu.numerics.draw import draw
from openlpu.target.base import Chunk
from openlpu.target.cpu.bandwidth import ReadLoop
from openlpu.target.cpu.run import CpuExecutable, load

BLOCK = 50  # tokens, then as many passes of the loop
REST = 0.002  # seconds after which the workers of one have gone to sleep and leave the cores to the other's
WINDOWS, WINDOW = 8, 0.8  # alternations of the busy part, seconds each
PEER_TOKENS = 64
SPIN = "import os\nos.sched_setaffinity(0, {%d})\nwhile os.getppid() != 1: pass"


def timed(work: Callable[[int], object], first: int, count: int) -> list[float]:
    """Seconds of each of ``count`` calls, after one that wakes the workers."""
    time.sleep(REST)
    work(first)
    seconds = []
    for i in range(first, first + count):
        start = time.perf_counter()
        work(i)
        seconds.append(time.perf_counter() - start)
    return seconds


def relative(seconds: list[float]) -> list[float]:
    """Each time over the one predicted for its place, ascending."""
    half = len(seconds) // 2
    early, late = median(seconds[:half]), median(seconds[half:])
    slope = (late - early) / half
    return sorted(s / (early + slope * (i - half / 2)) for i, s in enumerate(seconds))


def tail(seconds: list[float]) -> tuple[float, float]:
    """p99 and p99.9 over the median."""
    ratios = relative(seconds)
    middle = median(ratios)
    return ratios[int(0.99 * len(ratios))] / middle, ratios[int(0.999 * len(ratios))] / middle


def show(name: str, seconds: list[float]) -> tuple[float, float]:
    """One line of the first table."""
    p99, p999 = tail(seconds)
    print(f"{name:12} p50 {1e3 * median(seconds):8.3f} ms   p99/p50 {p99:6.3f}   p99.9/p50 {p999:6.3f}", flush=True)
    return p99, p999


def steadiness(executable: CpuExecutable, tokens: int) -> None:
    """Decode and the read loop in alternation, and by how much decode's tail is longer."""
    loop = ReadLoop(executable.threads, executable.layout.image.weight_bytes)
    decode, read = [], []
    for first in range(0, tokens, BLOCK):
        count = min(BLOCK, tokens - first)
        decode += timed(lambda i: executable.run([Chunk(0, i, (i % executable.vocab,))]), first, count)
        read += timed(lambda _: loop.measure(), 0, count)
    loop.close()
    ours, plain = show("decode", decode), show("read loop", read)
    print(f"decode over read loop: p99/p50 {ours[0] / plain[0]:.3f}, p99.9/p50 {ours[1] / plain[1]:.3f}; "
          f"speed {median(read) / median(decode):.3f} of the loop's", flush=True)


def rate(executable: CpuExecutable, seconds: float) -> float:
    """Tokens/s at one and the same context."""
    time.sleep(REST)
    tokens, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        executable.run([Chunk(0, 16, (5,))])
        tokens += 1
    return tokens / (now - start)


@contextmanager
def busy_core() -> Iterator[None]:
    """One of this process's cores, the last, is taken by a child that spins."""
    child = subprocess.Popen([sys.executable, "-S", "-c", SPIN % max(os.sched_getaffinity(0))])
    try:
        time.sleep(0.2)
        yield
    finally:
        child.kill()
        child.wait()


def compare(name: str, many: Callable[[], float], one: Callable[[], float], windows: int = WINDOWS) -> None:
    """The ratio of two rates in alternation, with its spread."""
    pairs = [(many(), one()) for _ in range(windows)]
    ratios = sorted(a / b for a, b in pairs)
    all_threads, one_thread = (median(rates) for rates in zip(*pairs, strict=True))
    print(f"{name:24} all threads {all_threads:7.1f} tokens/s   one {one_thread:7.1f}   "
          f"ratio {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})", flush=True)


def peer_rate(program: str, gguf: str, threads: int, context: int = 0) -> list[float]:
    """Seconds per token of llama-bench: one run of many tokens, or (``context`` > 0) as many runs of one."""
    runs = ["-n", "1", "-r", str(context)] if context else ["-n", str(PEER_TOKENS), "-r", "1"]
    command = [program, "-m", gguf, "-p", "0", "-t", str(threads), "-o", "json", *runs]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]
    return [ns / 1e9 / found["n_gen"] for ns in found["samples_ns"]]


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=0, help="0: all usable cores")
    parser.add_argument("--busy", action="store_true", help="beside a spinning process instead")
    parser.add_argument("--peer", metavar="LLAMA_BENCH", help="llama.cpp's program of that name")
    parser.add_argument("--gguf", metavar="FILE", help="the model it runs")
    args = parser.parse_args()
    if args.peer and not args.gguf:
        parser.error("--peer needs --gguf")
    graph = draw(shape(args.shape, context=max(64, args.tokens)))
    many = load(graph, threads=args.threads)
    print(f"{args.shape}, {many.threads} threads, {many.path.name}", flush=True)
    if not args.busy:
        steadiness(many, args.tokens)
        if args.peer:
            show("peer", peer_rate(args.peer, args.gguf, many.threads, args.tokens))
        return
    one = load(graph, threads=1)

    def both(when: str) -> None:
        compare(f"openlpu, {when}", lambda: rate(many, WINDOW), lambda: rate(one, WINDOW))
        if args.peer:
            compare(f"peer, {when}", *(lambda n=n: 1 / peer_rate(args.peer, args.gguf, n)[0]
                                       for n in (many.threads, 1)), windows=3)

    both("idle")
    with busy_core():
        both("one core busy")


if __name__ == "__main__":
    main()
