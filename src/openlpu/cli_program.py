"""``openlpu compile``: a model into a folder or a report, and what there is to say of a program of one chip."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu import cli_encoder, cli_options, cli_prefill, cli_split, cli_tables, cli_workload
from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.manifest import require_new
from openlpu._base.progress import Progress

if TYPE_CHECKING:
    from openlpu.graph.ir import Graph
    from openlpu.numerics.scheme import Scheme
    from openlpu.schedule.program import Program, Segment
    from openlpu.schedule.search import Found

Bars = Callable[[], AbstractContextManager[Progress]]
JSON = "print one JSON object"
BROWSER = 500_000_000  # bytes of a trace; ui.perfetto.dev holds what it made of them in 4 GB at most


def add_commands(commands: Any, bars: Bars, model_help: str) -> None:
    """Add compile to a parser's commands; ``bars`` gives it its progress."""
    one = commands.add_parser("compile", help="make a program for a chip or this processor, and report or write it")
    one.set_defaults(command=lambda args: compile_program(args, bars))
    one.add_argument("model", metavar="MODEL", nargs="?", help=model_help)
    cli_workload.add_options(one)
    one.add_argument("-o", "--output", type=Path, metavar="DIR", help="write the compiled model here (default: report)")
    one.add_argument("--target", choices=("chip", "cpu"), help="chip (default), or cpu: a folder from "
                     "which `openlpu run DIR` starts at once on this kind of processor")
    one.add_argument("--chip", metavar="NAME", help="lpu-v1 (default), lp30, tiny, or a .toml file")
    cli_split.add_options(one)
    one.add_argument("--context", type=int, metavar="N", help="positions of KV cache (default: the model's own)")
    one.add_argument("--kv-bits", type=int, choices=(4, 8, 16), help="width of KV codes (default 8)")
    cli_prefill.add_option(one)
    one.add_argument("--requests", type=cli_prefill.requests, metavar="N", help="of chips: N requests under "
                     "way at once, each with its own KV cache (default 1)")
    cli_options.add_bits(one)
    one.add_argument("--shapes-only", action="store_true", help="MODEL is a config.json or the name of a shape: make "
                     "the program of a model of these sizes, without weights")
    one.add_argument("--dump", type=Path, metavar="DIR", help="write what each pass of the pipeline returned as text")
    one.add_argument("--json", action="store_true", help=JSON)


def compile_program(args: argparse.Namespace, bars: Bars) -> int:
    """Compile for a chip, or for this processor; without ``-o`` nothing is written."""
    if args.workload is not None:
        return cli_workload.compile_workload(args)
    args.target, args.requests = args.target or "chip", args.requests or 1
    if not args.model:
        raise BadRequest("there is nothing to compile", where="model", fix="name a model, or a --workload")
    if args.target == "cpu" and not args.output:
        raise BadRequest("target 'cpu' writes a folder", where="output", fix="say where to: -o DIR")
    cli_split.check(args)
    if args.output:
        require_new(args.output)  # before the minutes that a large model takes
    scheme = cli_options.scheme(args)
    with bars() as progress:
        result = (_from_shapes if args.shapes_only else _with_weights)(args, scheme, progress)
    print(json.dumps(result) if args.json else "\n".join(summary(result)))
    return 0


def _from_shapes(args: argparse.Namespace, scheme: Scheme | None, progress: Progress) -> dict[str, Any]:
    from openlpu import compile as pipeline

    graph = pipeline.outlined(args.model, scheme=scheme, context=args.context)
    made, about = _compile_chip(args, graph, progress)
    return _written(args, graph, made, scheme, None) | about


def _with_weights(args: argparse.Namespace, scheme: Scheme | None, progress: Progress) -> dict[str, Any]:
    from openlpu import compile as pipeline

    compiled = pipeline.compile(args.model, scheme=scheme, context=args.context, dump=args.dump, progress=progress)
    if args.target == "cpu":
        pipeline.store(compiled, args.output, progress=progress)
        size = sum(path.stat().st_size for path in args.output.iterdir())
        return {"model": args.model, "output": str(args.output), "target": "cpu", "bytes": size}
    made, about = _compile_chip(args, compiled.graph, progress)
    return _written(args, compiled.graph, made, compiled.options.scheme, compiled.checkpoint.texts()) | about


def _written(
    args: argparse.Namespace, graph: Graph, made: Program | Found, scheme: Scheme | None,
    texts: Mapping[str, bytes] | None,
) -> dict[str, Any]:
    """Write the folder if one was asked for; ``texts`` as in :func:`openlpu.schedule.bundle.save`."""
    from openlpu.numerics.scheme import Scheme
    from openlpu.schedule import bundle

    if args.output:
        bundle.save(args.output, graph, made, model=args.model, scheme=scheme or Scheme(), texts=texts)
    return {"model": args.model, "output": str(args.output) if args.output else None, "weights": texts is not None}


def _compile_chip(
    args: argparse.Namespace, graph: Graph, progress: Progress
) -> tuple[Program | Found, dict[str, Any]]:
    """The program of one chip or several, and what there is to say about it."""
    from openlpu import compile as pipeline

    if pipeline.is_encoder(graph):
        return cli_encoder.compile_chip(args, graph, progress)
    if args.system is not None:
        system = cli_split.system(args)
        wanted = cli_split.wanted(args, system.chip.clock_hz)
        made = pipeline.programs(graph, system, wanted, args.chunk, dump=args.dump, progress=progress,
                                 requests=args.requests)
        return made, cli_split.report(made)
    program = pipeline.program(graph, "lpu-v1" if args.chip is None else args.chip, args.chunk, dump=args.dump,
                               progress=progress, requests=args.requests)
    return program, report(graph, program)


def report(graph: Graph, program: Program) -> dict[str, Any]:
    """Plain data for ``--json``."""
    from openlpu.schedule.sweeps import is_encoder

    if is_encoder(program):
        return cli_encoder.report(graph, program)
    chip = program.chip
    total = chip.slices * chip.words_per_slice
    return {
        "chip": chip.name, "clock": "cycles", "clock_hz": chip.clock_hz,
        "sram_rows": total, "sram": cli_tables.rooms(program),
        "segments": [_segment(graph, program, segment) for segment in program.segments],
        "first_token": cli_prefill.first_tokens(program),
    }


def _segment(graph: Graph, program: Program, segment: Segment) -> dict[str, Any]:
    from openlpu.arch.encoding import instruction_bytes
    from openlpu.place.bound import bound
    from openlpu.schedule.joules import energy
    from openlpu.schedule.report import report
    from openlpu.schedule.tracks import single

    limit, use = bound(graph, program.chip, segment.context), report(program.chip, segment)
    return {
        "context": segment.context, "chunk": segment.chunk, "cycles": segment.cycles, "instructions": use.instructions,
        "instruction_bytes": instruction_bytes(segment.queues),
        "bound": {"cycles": limit.cycles, "limit": limit.limit, "weights": limit.weights, "issue": limit.issue,
                  "issue_unit": limit.issue_unit, "path": limit.path},
    } | cli_tables.account(use, energy([single(program, segment)]))


def summary(result: dict[str, Any]) -> Iterator[str]:
    """A program in a few lines, and what was written of it."""
    if result.get("target") == "cpu":
        yield f"{result['model']}: {units.size(result['bytes'])} in {result['output']}"
        return
    if "sequences" in result or result.get("system"):
        yield from (cli_encoder if "sequences" in result else cli_split).summary(result)
        yield from _files(result)
        return
    used = sum(result["sram"].values())
    yield f"{result['model']} on {result['chip']}: {used / result['sram_rows']:.1%} of SRAM"
    for s in result["segments"]:
        bound, beside = s["bound"], ""
        seconds = s["cycles"] / result["clock_hz"]
        if s["chunk"] == 1:
            beside = (f", {s['cycles'] / bound['cycles']:.2f} times the bound of {units.cycles(bound['cycles'])} "
                      f"({bound['limit']})")
        yield (f"context {s['context']:>6}  {units.cycles(s['cycles'])}, {units.duration(seconds)} "
               f"{cli_prefill.step(s)}: {s['chunk'] / seconds:,.0f} tokens/s{beside}; "
               f"{s['instructions']:,} instructions in {units.size(s['instruction_bytes'])}")
    yield from cli_prefill.summary(result)
    yield from _files(result)


def _files(result: dict[str, Any]) -> Iterator[str]:
    if result.get("output"):
        yield f"written to {result['output']}{'' if result['weights'] else ', without weights'}"
    for what, made in result.get("written", {}).items():
        yield f"{what}: {units.size(made['bytes'])} in {made['file']}"
        if what == "perfetto" and made["bytes"] > BROWSER:
            yield ("  more than a browser reads well: Perfetto's `trace_processor --httpd FILE` reads it for "
                   "ui.perfetto.dev; `openlpu show DIR --chip N` prints one chip")
