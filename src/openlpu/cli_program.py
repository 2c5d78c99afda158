"""The commands on chip programs: compile a model into a folder, show where its room and cycles go, verify it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu import cli_options
from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress

if TYPE_CHECKING:
    from openlpu.compile import Compiled
    from openlpu.graph.ir import Graph
    from openlpu.schedule.program import Program, Segment

Bars = Callable[[], AbstractContextManager[Progress]]
JSON = "print one JSON object"


def add_commands(commands: Any, bars: Bars, model_help: str) -> None:
    """Add compile, show and verify to a parser's commands; ``bars`` gives each its progress."""
    one = commands.add_parser("compile", help="make a program for a chip or this processor, and report or write it")
    one.set_defaults(command=lambda args: compile_program(args, bars))
    one.add_argument("model", metavar="MODEL", help=model_help)
    one.add_argument("-o", "--output", type=Path, metavar="DIR", help="write the compiled model here (default: report)")
    one.add_argument("--target", choices=("chip", "cpu"), default="chip", help="chip (default), or cpu: a folder from "
                     "which `openlpu run DIR` starts at once on this kind of processor")
    one.add_argument("--chip", default="lpu-v1", metavar="NAME", help="lpu-v1 (default), tiny, or a .toml file")
    one.add_argument("--context", type=int, metavar="N", help="positions of KV cache (default: the model's own)")
    one.add_argument("--kv-bits", type=int, choices=(4, 8, 16), default=8, help="width of KV codes (default 8)")
    cli_options.add_bits(one)
    one.add_argument("--dump", type=Path, metavar="DIR", help="write what each pass of the pipeline returned as text")
    one.add_argument("--json", action="store_true", help=JSON)
    one = commands.add_parser("show", help="placement, use of each unit and critical path of a compiled model")
    one.set_defaults(command=show)
    one.add_argument("folder", metavar="DIR", type=Path, help="what `openlpu compile MODEL -o DIR` wrote")
    one.add_argument("--json", action="store_true", help=JSON)
    one = commands.add_parser("verify", help="run a compiled model on the chip model against the reference")
    one.set_defaults(command=lambda args: verify(args, bars))
    one.add_argument("folder", metavar="DIR", type=Path, help="what `openlpu compile MODEL -o DIR` wrote")
    one.add_argument("--tokens", type=int, default=4, metavar="N", help="tokens to compare (default 4)")
    one.add_argument("--json", action="store_true", help=JSON)


def compile_program(args: argparse.Namespace, bars: Bars) -> int:
    """Compile for a chip, or for this processor; without ``-o`` nothing is written."""
    from openlpu import compile as pipeline

    if args.target == "cpu" and not args.output:
        raise BadRequest("target 'cpu' writes a folder", where="output", fix="say where to: -o DIR")

    scheme = cli_options.scheme(args)
    with bars() as progress:
        compiled = pipeline.compile(args.model, scheme=scheme, context=args.context, dump=args.dump, progress=progress)
        if args.target == "cpu":
            pipeline.store(compiled, args.output, progress=progress)
            result = {"model": args.model, "output": str(args.output), "target": "cpu"}
            result["bytes"] = sum(path.stat().st_size for path in args.output.iterdir())
        else:
            result = _compile_chip(args, compiled, progress)
    print(json.dumps(result) if args.json else "\n".join(_summary(result)))
    return 0


def _compile_chip(args: argparse.Namespace, compiled: Compiled, progress: Progress) -> dict[str, Any]:
    from openlpu import compile as pipeline
    from openlpu.schedule import bundle

    program = pipeline.program(compiled, args.chip, dump=args.dump, progress=progress)
    if args.output:
        scheme, texts = str(compiled.options.scheme), compiled.checkpoint.texts()
        bundle.save(args.output, compiled.graph, program, model=args.model, scheme=scheme, texts=texts)
    result = {"model": args.model, "output": str(args.output) if args.output else None}
    return result | _report(compiled.graph, program)


def show(args: argparse.Namespace) -> int:
    """Where the room and the cycles of a compiled model go."""
    from openlpu.schedule import bundle

    made = bundle.load(args.folder)
    result = {"model": made.manifest["model"]} | _report(made.graph, made.program)
    print(json.dumps(result) if args.json else "\n".join([*_summary(result), *_details(result)]))
    return 0


def verify(args: argparse.Namespace, bars: Bars) -> int:
    """Compare every fp32 tensor of the first tokens with the reference; exit status 1 if one differs."""
    from openlpu.schedule import bundle
    from openlpu.tokens.verify import verify as compare

    made = bundle.load(args.folder)
    with bars() as progress:
        verdict = compare(made.graph, made.program, args.tokens, progress)
    if args.json:
        print(json.dumps({"same": not verdict.difference, **vars(verdict)}))
    elif verdict.difference:
        print(verdict.difference)
    else:
        print(f"{verdict.tokens} tokens, {verdict.tensors} tensors: the reference's bits; every claim holds")
    return 1 if verdict.difference else 0


def _report(graph: Graph, program: Program) -> dict[str, Any]:
    chip = program.chip
    total = chip.slices * chip.words_per_slice
    room: dict[str, int] = {}
    for item in program.resident:
        kind = item.name.split(".")[0]
        room[kind] = room.get(kind, 0) + item.slices.size
    return {
        "chip": chip.name, "clock": "cycles", "clock_hz": chip.clock_hz,
        "sram_rows": total, "sram": dict(sorted(room.items(), key=lambda item: -item[1])),
        "segments": [_segment(graph, program, segment) for segment in program.segments],
    }


def _segment(graph: Graph, program: Program, segment: Segment) -> dict[str, Any]:
    from openlpu.arch.encoding import instruction_bytes
    from openlpu.place.bound import bound
    from openlpu.schedule.report import report

    limit, use = bound(graph, program.chip, segment.context), report(program.chip, segment)
    return {
        "context": segment.context, "cycles": segment.cycles, "instructions": use.instructions,
        "instruction_bytes": instruction_bytes(segment.queues),
        "bound": {"cycles": limit.cycles, "limit": limit.limit, "weights": limit.weights, "issue": limit.issue,
                  "issue_unit": limit.issue_unit, "path": limit.path},
        "busy": {unit: {"dispatches": count, "share": share} for unit, (count, share) in use.busy.items() if count},
        "path": use.path, "operators": use.operators,
    }


def _summary(result: dict[str, Any]) -> Iterator[str]:
    if result.get("target") == "cpu":
        yield f"{result['model']}: {units.size(result['bytes'])} in {result['output']}"
        return
    used = sum(result["sram"].values())
    yield f"{result['model']} on {result['chip']}: {used / result['sram_rows']:.1%} of SRAM"
    for s in result["segments"]:
        bound = s["bound"]
        yield (f"context {s['context']:>6}  {units.cycles(s['cycles'])} per token, {s['cycles'] / bound['cycles']:.2f} "
               f"times the bound of {units.cycles(bound['cycles'])} ({bound['limit']}); "
               f"{s['instructions']:,} instructions in {units.size(s['instruction_bytes'])}")
    if result.get("output"):
        yield f"written to {result['output']}"


def _details(result: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "SRAM, rows of one vector:"
    for kind, rows in result["sram"].items():
        yield f"  {kind:<14} {rows:>9,}  {rows / result['sram_rows']:7.2%}"
    for s in result["segments"]:
        bound = s["bound"]
        yield ""
        yield (f"context {s['context']}: bounds in cycles: weights {bound['weights']:,}, "
               f"{bound['issue_unit']} {bound['issue']:,}, longest path {bound['path']:,}")
        yield "  units in use:"
        for unit, use in s["busy"].items():
            yield f"    {unit:<16} {use['dispatches']:>9,} dispatches {use['share']:7.2%} of its slots"
        yield "  critical path by what happens:"
        yield from _shares(s["path"], s["cycles"])
        yield "  critical path by operator, over all layers:"
        yield from _shares(_over_layers(s["operators"]), s["cycles"])


def _shares(parts: dict[str, int], total: int) -> Iterator[str]:
    for name, cycles in sorted(parts.items(), key=lambda item: -item[1]):
        yield f"    {name:<24} {cycles:>9,} cycles {cycles / total:7.2%}"


def _over_layers(operators: dict[str, int]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name, cycles in operators.items():
        parts = name.split(".")
        short = ".".join(parts[2:]) if parts[0] == "layers" else name
        out[short] = out.get(short, 0) + cycles
    return out
