"""The command that measures speed: the native target beside this machine's bounds, and beside a peer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu import __version__, cli_options, cli_promise
from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress

if TYPE_CHECKING:
    from openlpu.graph.ir import Graph
    from openlpu.numerics.scheme import Scheme

Bars = Callable[[], AbstractContextManager[Progress]]
JSON = "print one JSON object"
CONTEXT = 4096  # positions of a shape, unless more are asked for
WORKS = {"prefill": "prefill {tokens:,}", "decode": "decode", "decode_at_context": "decode at {context:,}"}
KINDS = {"memory": "reading", "integer": "multiplying"}


def add_commands(commands: Any, bars: Bars, positive: Callable[[str], int], model_help: str) -> None:
    """Add bench to a parser's commands; ``bars`` gives it its progress."""
    one = commands.add_parser("bench", help="measure the native target's speed, alone or against a peer")
    one.set_defaults(command=lambda args: bench(args, bars))
    add = one.add_argument
    either = one.add_mutually_exclusive_group()
    either.add_argument("model", metavar="MODEL", nargs="?", default="demo", help=f"{model_help} (default)")
    either.add_argument("--shape", metavar="NAME", help="random codes in the shape of a known model: smollm2-135m, "
                        "qwen2.5-0.5b, llama-3.2-1b, llama-2-7b, mistral-7b, "
                        "mixtral-8x7b")
    add("--threads", type=int, default=0, metavar="N", help="threads (default: all cores, or one for a small model)")
    cli_options.add_bits(one)
    add("--at-context", type=positive, default=0, metavar="N", help="also decode behind N tokens")
    add("--pairs", type=positive, default=5, metavar="N", help="blocks of ours, and of a peer, in turns (default 5)")
    add("--against", metavar="PEER", help="run in turns with llama-bench=PATH (options may follow the path), "
        "openvino=PYTHON:MODEL or ctranslate2=PYTHON:MODEL")
    add("--peer-model", type=Path, metavar="FILE", help="the GGUF file that llama-bench runs (default: MODEL, if "
        "it is one)")
    add("--json", action="store_true", help=JSON)


def bench(args: argparse.Namespace, bars: Bars) -> int:
    """Speeds of the native target on a model, or on random codes of a known shape."""
    from openlpu.target.cpu.run import MOST_THREADS
    from openlpu.tokens import bench as benchmark
    from openlpu.tokens.peers import peer

    if not 0 <= args.threads <= MOST_THREADS:
        raise BadRequest(f"{args.threads} is out of range", where="threads",
                         fix=f"threads is 0 (all cores) to {MOST_THREADS}")
    if args.peer_model and not (args.against or "").startswith("llama-bench"):
        raise BadRequest("this is what llama-bench runs", where="peer-model", fix="add --against llama-bench=PATH, or "
                         "leave it out")
    own = Path(args.model) if not args.shape and args.model.endswith(".gguf") else None
    peers = [peer(args.against, args.peer_model or own)] if args.against else []
    scheme = cli_options.scheme(args)
    with bars() as progress:
        graph = _graph(args, scheme, progress)
        if scheme and scheme.prune:
            unpruned = _graph(args, replace(scheme, prune=""), progress)
            peers.append(benchmark.Other(unpruned, __version__, "unpruned"))
        todo = benchmark.works(graph.config.context, args.at_context)
        promise = cli_promise.before_bench(graph, args.threads, todo, quiet=args.json)
        speeds = benchmark.bench(graph, threads=args.threads, at_context=args.at_context,
                                 pairs=args.pairs, peers=peers, progress=progress)
    asked = {"model": args.shape or args.model, "bits": args.bits or 8, "prune": args.prune, "pairs": args.pairs}
    result = asked | speeds.to_json() | {"promise": promise}
    print(json.dumps(result) if args.json else "\n".join(_summary(result)))
    return 0


def _graph(args: argparse.Namespace, scheme: Scheme | None, progress: Progress) -> Graph:
    from openlpu import compile as pipeline
    from openlpu.graph.shapes import shape
    from openlpu.numerics.draw import draw
    from openlpu.tokens.bench import ANSWER

    if args.shape:
        return draw(shape(args.shape, max(CONTEXT, args.at_context + 2 * ANSWER)), scheme)
    return pipeline.compile(args.model, scheme=scheme, progress=progress).graph


def _summary(result: dict[str, Any]) -> Iterator[str]:
    machine, measured, threads = result["machine"], result["measured"], result["threads"]
    pruned = f", pruned {result['prune']}," if result["prune"] else ""
    yield (f"{result['model']} at {result['bits']:g} bits{pruned} on {threads} thread{'s' * (threads > 1)}, "
           f"vector path {result['path']}, {units.size(result['weight_bytes'])} of weights a token")
    yield (f"the machine in the same run: reads {units.size(machine['read_bytes_per_s'])}/s, multiplies "
           f"{machine['products_per_s'] / 1e9:,.0f} billion codes/s\n")
    yield f"{'':18}{'tokens/s':>9}  {'median':>12}  {'p99':>12}  {'bound':>12}  share"
    yield from (_row(name, measured[name]) for name in WORKS if name in measured)
    if promise := result["promise"]:
        yield ""
        yield from (cli_promise.beside(WORKS[name].format(**measured[name]), promise[name], measured[name])
                    for name in WORKS if name in measured)
    for peer in result["against"]:
        yield f"\nagainst {peer['peer']} {peer['version']}, {peer['model']}, {result['pairs']} pairs of blocks"
        for name, theirs in peer["measured"].items():
            ratio, title = theirs["ratio"], WORKS[name].format(**measured[name])
            yield (f"{title:18}{_rate(theirs['tokens_per_s']):>9}  ours is {ratio['median']:.2f} times as fast "
                   f"({ratio['low']:.2f} to {ratio['high']:.2f})")


def _row(name: str, one: dict[str, Any]) -> str:
    kind, bound = max(one["bound_s"].items(), key=lambda item: item[1])
    cached = " (the weights stay in cache)" if kind == "memory" and one["share"] > 1 else ""
    share = f"{one['share']:.0%} {KINDS[kind]}{cached}"
    times = "  ".join(f"{units.wall(seconds):>12}" for seconds in (one["p50_s"], one["p99_s"], bound))
    return f"{WORKS[name].format(**one):18}{_rate(one['tokens_per_s']):>9}  {times}  {share}"


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 1000 else f"{tokens_per_s:.3g}"
