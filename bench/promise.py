"""This machine's measurement in, the promise about wall time against what shapes it has not seen really take out.

``python bench/promise.py [--threads N] [--seconds S] [SHAPE ...]`` prints for every shape, at every context and prompt
length, the promised median, the measured one and their ratio, and the share of tokens within the promised limit; then
the same of answers as somebody reads them, the engine's own time included.  ``--runs N`` also starts N processes of
``openlpu run`` that answer with 200 tokens, from a stored model where SHAPE is none that is embedded: the time to
their first token, and whether each kept what it printed.  Run it on an otherwise idle machine, after
``openlpu calibrate --threads N``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from openlpu import compile as pipeline
from openlpu._base import units
from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.graph import shapes
from openlpu.numerics.draw import draw
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.cpu import cost, machine
from openlpu.target.cpu.path import choose
from openlpu.target.cpu.run import load
from openlpu.tokens.promise import Forecast, answers, limit

ANSWERED_S = 3.0  # of answers
CONTEXTS, PROMPTS = (16, 64, 256, 1024, 4096), (1, 7, 64, 200, 512, 1024)
FILL = 60  # in every byte of a cache, in place of a real prompt's codes
SMALL = {
    "stories260k": ("llama", 64, 5, 8, 4, 8, 172, 512),
    "demo": ("llama", 128, 4, 4, 2, 32, 384, 1024),
    "stories15m": ("llama", 288, 6, 6, 6, 48, 768, 32000),
}
Clock = Callable[[], float]


def config(name: str) -> ModelConfig:
    """A shape by name: those of ``openlpu bench`` and some small ones."""
    if name not in SMALL:
        return shapes.shape(name)
    family, hidden, layers, heads, kv, dim, intermediate, vocab = SMALL[name]
    return ModelConfig(family, hidden=hidden, layers=layers, heads=heads, kv_heads=kv, head_dim=dim,
                       intermediate=intermediate, vocab=vocab, context=4096, norm_eps=1e-5, rope=Rope(1e4), tied=True)


def measure(
    name: str, bits: float, known: machine.Machine, seconds: float, clock: Clock
) -> tuple[list[float], int, int]:
    """Print a shape's lines; returns the ratios promised / measured, tokens within the limit, tokens."""
    executable = load(draw(config(name), Scheme(weight_bits=bits)), threads=known.threads, path=known.path)
    executable.layout.cache.bytes[:] = FILL
    ratios, kept, count = [], 0, 0
    works = [("token", n, n - 1, n) for n in CONTEXTS] + [("prompt", n, 0, n) for n in PROMPTS]
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(3):
        for what, n, first, end in works:
            found = times.setdefault((what, n), [])
            spent, fresh = 0.0, True
            while spent < seconds / 3 / len(works) or len(found) < 3:
                start = clock()
                executable.run([Chunk(0, first, tuple(i % executable.vocab for i in range(end - first)))])
                took = clock() - start
                spent += took
                if not fresh or took > 0.1:  # the first one finds the caches full of others' data
                    found.append(took)
                fresh = False
    for what, n, first, end in works:
        steps = [cost.decode(n)] if what == "token" else cost.prefill(first, end)
        promised = sum(known.seconds(executable.plan, step) for step in steps)
        found = times[what, n]
        middle = units.percentile(found, 50)
        bound = limit(known, promised)
        within = sum(t <= bound.limit for t in found)
        ratios.append(promised / middle)
        if what == "token":
            kept, count = kept + within, count + len(found)
        print(f"{name:14} {bits:3g} bits  {what:6} {n:5}  promised {units.wall(promised):>14}  "
              f"measured {units.wall(middle):>14}  ratio {promised / middle:5.3f}  "
              f"{within / len(found):6.1%} of {len(found):4} below {units.wall(bound.limit)}, "
              f"{bound.percent} promised", flush=True)
    executable.close()
    return ratios, kept, count


def answered(name: str, bits: float, known: machine.Machine) -> None:
    """A line for answers of 64 tokens, likeliest and drawn."""
    executable = load(draw(config(name), Scheme(weight_bits=bits)), threads=known.threads, path=known.path)
    for drawn, way in ((False, "likeliest"), (True, "drawn")):
        bound = Forecast(known, executable.plan, drawn=drawn).token(32)
        found = answers(executable, drawn, ANSWERED_S)
        within, middle = sum(t <= bound.limit for t in found), units.percentile(found, 50)
        print(f"{name:14} {bits:3g} bits  answers, {way:9}  promised {units.wall(bound.median):>14}  "
              f"measured {units.wall(middle):>14}  ratio {bound.median / middle:5.3f}  "
              f"{within / len(found):6.1%} of {len(found):4} below {units.wall(bound.limit)} "
              f"({bound.limit / bound.median:.2f} times), {bound.percent} promised", flush=True)
    executable.close()


def runs(name: str, bits: float, threads: int, count: int) -> None:
    """Lines for so many processes: the first token, and whether the tokens kept what was promised."""
    with tempfile.TemporaryDirectory() as folder:
        source = name
        if name != "demo":
            options = pipeline.Options(Scheme(weight_bits=bits))
            source, demo = f"{folder}/model", pipeline.compile("demo")
            graph = draw(config(name), options.scheme)
            pipeline.store(pipeline.Compiled(name, demo.checkpoint, graph, options, "drawn"), Path(source),
                           threads=[threads])
        command = [sys.executable, "-m", "openlpu", "run", source, "--threads", str(threads), "--max-tokens", "200"]
        said = [json.loads(subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE).stdout)
                for _ in range(count)]
    made, took = [run["promise"] for run in said], [run["measured"] for run in said]
    firsts = [units.wall(m["first_token_s"]) for m in took]
    print(f"{name:14} first token promised {units.wall(made[0]['first_token_s'])}, at most "
          f"{units.wall(made[0]['first_token_limit_s'])}: measured {', '.join(firsts)}; "
          f"{sum(m['kept_first'] for m in made)} of {count} kept", flush=True)
    shares = ", ".join(f"{m['kept']:.1%}" for m in made)
    print(f"{name:14} per token {units.wall(made[0]['token_p50_s'])}, {made[0]['kept_percent']} in 100 below "
          f"{units.wall(made[0]['token_limit_s'])}: measured {units.wall(took[0]['token_p50_s'])}; {shares} kept",
          flush=True)


def main() -> None:
    """Print all shapes and a summary."""
    parser = argparse.ArgumentParser(description="The promise about wall time against what is measured.")
    parser.add_argument("shapes", nargs="*", default=[*SMALL, *shapes.SHAPES])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bits", type=float, default=8)
    parser.add_argument("--seconds", type=float, default=12, help="of measurement per shape")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="also start N processes of each shape")
    parser.add_argument("--machine", type=Path, help="a file that `openlpu calibrate` wrote (default: the user's)")
    parser.add_argument("--thread-clock", action="store_true", help="count only time on the core: for a busy machine")
    args = parser.parse_args()
    known = machine.parse(args.machine.read_text()) if args.machine else machine.load(choose("auto"), args.threads)
    clock = time.thread_time if args.thread_clock else time.perf_counter
    errors, kept, count = [], 0, 0
    for name in args.shapes:
        ratios, within, tokens = measure(name, args.bits, known, args.seconds, clock)
        errors += [abs(ratio - 1) for ratio in ratios]
        kept, count = kept + within, count + tokens
        answered(name, args.bits, known)
        if args.runs:
            runs(name, args.bits, args.threads, args.runs)
    print(f"error of the median: {units.percentile(errors, 50):.1%} median, {units.percentile(errors, 90):.1%} p90, "
          f"{max(errors):.1%} largest; {kept / count:.2%} of {count} tokens within their limit")


if __name__ == "__main__":
    main()
