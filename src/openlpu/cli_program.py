"""The commands on chip programs: compile a model into a folder, show where its room and cycles go, verify it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu import cli_options, cli_split
from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress

if TYPE_CHECKING:
    from openlpu.graph.ir import Graph
    from openlpu.numerics.scheme import Scheme
    from openlpu.schedule.bundle import Bundle
    from openlpu.schedule.program import Program, Segment
    from openlpu.schedule.search import Found
    from openlpu.schedule.tracks import Token

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
    one.add_argument("--chip", metavar="NAME", help="lpu-v1 (default), tiny, or a .toml file")
    cli_split.add_options(one)
    one.add_argument("--context", type=int, metavar="N", help="positions of KV cache (default: the model's own)")
    one.add_argument("--kv-bits", type=int, choices=(4, 8, 16), default=8, help="width of KV codes (default 8)")
    cli_options.add_bits(one)
    one.add_argument("--shapes-only", action="store_true", help="MODEL is a config.json or the name of a shape: report "
                     "the program of a model of these sizes, without its weights")
    one.add_argument("--dump", type=Path, metavar="DIR", help="write what each pass of the pipeline returned as text")
    one.add_argument("--json", action="store_true", help=JSON)
    one = commands.add_parser("show", help="placement, units, critical path and energy of a compiled model; pictures")
    one.set_defaults(command=show)
    one.add_argument("folder", metavar="DIR", type=Path, help="what `openlpu compile MODEL -o DIR` wrote")
    one.add_argument("--perfetto", type=Path, metavar="FILE", help="write a token as a trace for ui.perfetto.dev")
    one.add_argument("--html", type=Path, metavar="FILE", help="write a token as a page: map, timeline, SRAM, energy")
    one.add_argument("--context", type=int, metavar="N", help="positions the token of a picture sees, its own "
                     "among them (default 1)")
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
    cli_split.check(args)
    scheme = cli_options.scheme(args)
    with bars() as progress:
        if args.shapes_only:
            graph = pipeline.outlined(args.model, scheme=scheme, context=args.context)
            result = {"model": args.model, "output": None} | _compile_chip(args, graph, progress)[1]
        else:
            result = _with_weights(args, scheme, progress)
    print(json.dumps(result) if args.json else "\n".join(_summary(result)))
    return 0


def _with_weights(args: argparse.Namespace, scheme: Scheme | None, progress: Progress) -> dict[str, Any]:
    from openlpu import compile as pipeline
    from openlpu.schedule import bundle

    compiled = pipeline.compile(args.model, scheme=scheme, context=args.context, dump=args.dump, progress=progress)
    if args.target == "cpu":
        pipeline.store(compiled, args.output, progress=progress)
        size = sum(path.stat().st_size for path in args.output.iterdir())
        return {"model": args.model, "output": str(args.output), "target": "cpu", "bytes": size}
    made, about = _compile_chip(args, compiled.graph, progress)
    if args.output:
        words, texts = str(compiled.options.scheme), compiled.checkpoint.texts()
        bundle.save(args.output, compiled.graph, made, model=args.model, scheme=words, texts=texts)
    return {"model": args.model, "output": str(args.output) if args.output else None} | about


def _compile_chip(
    args: argparse.Namespace, graph: Graph, progress: Progress
) -> tuple[Program | Found, dict[str, Any]]:
    """The program of one chip or several, and what there is to say about it."""
    from openlpu import compile as pipeline

    if args.system:
        wanted = cli_split.wanted(args)
        made = pipeline.programs(graph, cli_split.system(args), wanted, dump=args.dump, progress=progress)
        return made, cli_split.report(made)
    program = pipeline.program(graph, args.chip or "lpu-v1", dump=args.dump, progress=progress)
    return program, _report(graph, program)


def show(args: argparse.Namespace) -> int:
    """Where the room and the cycles of a compiled model go."""
    from openlpu.schedule import bundle

    made = bundle.load(args.folder)
    pictures = _pictures(args, made)
    about = cli_split.report(made.found) if made.found else _report(made.graph, made.program)
    result = {"model": made.manifest["model"]} | about | pictures
    details = cli_split.details(result) if made.found else _details(result)
    print(json.dumps(result) if args.json else "\n".join([*_summary(result), *details]))
    return 0


def _pictures(args: argparse.Namespace, made: Bundle) -> dict[str, Any]:
    """Write the pictures that were asked for; what was written, and how large."""
    if not args.perfetto and not args.html:
        if args.context is not None:
            raise BadRequest("this is for pictures", where="context", fix="add --perfetto FILE or --html FILE")
        return {}
    from openlpu.schedule.tracks import of_chip, of_system

    program = made.found.program.stage(0).program if made.found else made.program
    context = 1 if args.context is None else args.context
    if not 1 <= context <= program.context:
        raise BadRequest(f"{context} is out of range", where="context", fix=f"use 1 to {program.context}")
    segment = program.segment(context - 1)
    about = {"title": f"{made.manifest['model']} on {program.chip.name}", "numerics": made.manifest["scheme"],
             "context": f"up to {segment.context}"}
    if not made.found:
        return {"written": _draw(args, of_chip(program, segment), about)}
    token = of_system(made.found.program, program.segments.index(segment))
    split = made.found.program.split
    about |= {"title": f"{made.manifest['model']} on {split.chips} x {program.chip.name}",
              "split": f"{split.tensor} chips a stage, {split.stages} stages"}
    return {"written": _draw(args, token, about, cli_split.rows(made.found))}


def _draw(args: argparse.Namespace, token: Token, about: dict[str, Any],
          splits: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Write a token as the pictures that were asked for."""
    from openlpu.schedule import perfetto
    from openlpu.web import program_page

    written: dict[str, Any] = {}
    if args.perfetto:
        spans = perfetto.write(args.perfetto, token, about)
        written["perfetto"] = {"file": str(args.perfetto), "spans": spans, "bytes": args.perfetto.stat().st_size}
    if args.html:
        args.html.write_text(program_page.render(token, about, splits), "utf-8")
        written["html"] = {"file": str(args.html), "bytes": args.html.stat().st_size}
    return written


def verify(args: argparse.Namespace, bars: Bars) -> int:
    """Compare every fp32 tensor of the first tokens with the reference; exit status 1 if one differs."""
    from openlpu.schedule import bundle
    from openlpu.tokens.verify import verify as compare

    made = bundle.load(args.folder)
    with bars() as progress:
        verdict = compare(made.graph, made.found or made.program, args.tokens, progress)
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
    from openlpu.schedule.joules import energy
    from openlpu.schedule.report import report
    from openlpu.schedule.tracks import single

    limit, use = bound(graph, program.chip, segment.context), report(program.chip, segment)
    spent = energy([single(program, segment)])
    return {
        "context": segment.context, "cycles": segment.cycles, "instructions": use.instructions,
        "instruction_bytes": instruction_bytes(segment.queues),
        "bound": {"cycles": limit.cycles, "limit": limit.limit, "weights": limit.weights, "issue": limit.issue,
                  "issue_unit": limit.issue_unit, "path": limit.path},
        "busy": {unit: {"dispatches": count, "share": share} for unit, (count, share) in use.busy.items() if count},
        "path": use.path, "operators": use.operators,
        "energy": {"femtojoules": spent.alone, "femtojoules_full": spent.full, "static": spent.static_alone,
                   "dynamic": spent.dynamic, "watts": spent.watts_alone},
    }


def _summary(result: dict[str, Any]) -> Iterator[str]:
    if result.get("target") == "cpu":
        yield f"{result['model']}: {units.size(result['bytes'])} in {result['output']}"
        return
    if result.get("system"):
        yield from cli_split.summary(result)
        yield from _files(result)
        return
    used = sum(result["sram"].values())
    yield f"{result['model']} on {result['chip']}: {used / result['sram_rows']:.1%} of SRAM"
    for s in result["segments"]:
        bound = s["bound"]
        yield (f"context {s['context']:>6}  {units.cycles(s['cycles'])} per token, {s['cycles'] / bound['cycles']:.2f} "
               f"times the bound of {units.cycles(bound['cycles'])} ({bound['limit']}); "
               f"{s['instructions']:,} instructions in {units.size(s['instruction_bytes'])}")
    yield from _files(result)


def _files(result: dict[str, Any]) -> Iterator[str]:
    if result.get("output"):
        yield f"written to {result['output']}"
    for what, made in result.get("written", {}).items():
        yield f"{what}: {units.size(made['bytes'])} in {made['file']}"


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
        yield from _energy(s["energy"])


def _energy(spent: dict[str, Any]) -> Iterator[str]:
    yield (f"  energy: {units.joules(spent['femtojoules'])} per token for one request alone, "
           f"{units.joules(spent['femtojoules_full'])} with the pipeline full; {spent['watts']:.0f} W on average")
    for name, part in sorted({"static": spent["static"], **spent["dynamic"]}.items(), key=lambda item: -item[1]):
        yield f"    {name:<24} {units.joules(part):>9} {part / spent['femtojoules']:14.2%}"


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
