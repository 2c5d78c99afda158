"""The options that spread a model over several chips, and what is printed of such a program."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from openlpu import cli_prefill, cli_tables
from openlpu._base import units
from openlpu._base.errors import BadRequest

if TYPE_CHECKING:
    from openlpu.arch.system import System
    from openlpu.schedule.program import SystemProgram
    from openlpu.schedule.search import Choice, Found, Wanted

AIMS = ("latency", "throughput", "chips")
ONLY = ("chips", "tensor", "stages", "exchange", "aim", "latency_limit")  # of use with --system alone

def add_options(parser: argparse.ArgumentParser) -> None:
    """The system, and what is wanted of the split."""
    add = parser.add_argument
    add("--system", metavar="NAME", help="spread the model over the chips of a system (`openlpu systems`, or a .toml "
        "file)")
    add("--chips", type=int, metavar="N", help="chips of the system (default: all)")
    add("--tensor", type=int, choices=(1, 2, 4, 8, 16), help="chips that share each layer (default: search "
        "up to 8)")
    add("--stages", type=int, metavar="N", help="pipeline stages (default: search)")
    add("--exchange", choices=("values", "codes", "sums"), help="what the chips of a stage send each other (default: "
        "search)")
    add("--aim", choices=AIMS, help="of the search: the shortest token (default), most tokens a second with the "
        "pipeline full, or the fewest chips")
    add("--latency-limit", type=milliseconds, metavar="MS", help="of the search: only splits of which no token, "
        "whatever its context, takes longer (default: no limit)")


def milliseconds(text: str) -> float:
    """The value of ``--latency-limit``."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of milliseconds above 0")
    return number


def check(args: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    if args.shapes_only and args.target != "chip":
        raise BadRequest("a program without weights is for chips", where="target", fix="leave --target out")
    if args.system is not None:
        if args.chip is not None:
            raise BadRequest("the system's file names its chip", where="chip", fix="leave one of both out")
        if args.target != "chip":
            raise BadRequest("this is for chips", where="system", fix="leave --target out")
        return
    if args.chunk and args.target != "chip":
        raise BadRequest("this is for chips", where="chunk", fix="leave --target or --chunk out")
    if args.requests > 1 and args.target != "chip":
        raise BadRequest("this is for chips", where="requests", fix="leave --target or --requests out")
    if args.chip is not None and args.target != "chip":
        raise BadRequest("this is for chips", where="chip", fix="leave --target or --chip out")
    for name in ONLY:
        if getattr(args, name) is not None:
            raise BadRequest("this is for several chips", where=name.replace("_", "-"), fix="add --system NAME")


def system(args: argparse.Namespace) -> System:
    """The system that was asked for."""
    from openlpu.arch.system import load_system

    return load_system(args.system, args.chips)


def wanted(args: argparse.Namespace, clock_hz: int) -> Wanted:
    """What to search on chips of a clock; refuses fewer than one stage, and an exchange that nobody takes part in."""
    from openlpu.schedule.search import Wanted

    if args.stages is not None and args.stages < 1:
        raise BadRequest(f"{args.stages} is out of range", where="stages", fix="use 1 or more")
    if args.tensor == 1 and args.exchange:
        raise BadRequest("one chip a stage exchanges nothing", where="exchange", fix="leave --exchange out")
    limit = max(int(args.latency_limit * clock_hz / 1000), 1) if args.latency_limit else 0
    return Wanted(args.aim or AIMS[0], limit, args.tensor or 0, args.stages or 0, args.exchange or "")


def report(found: Found) -> dict[str, Any]:
    """Plain data for ``--json``."""
    program, chip = found.program, found.system.chip
    sram = [cli_tables.rooms(stage.program) for stage in program.programs]
    return {
        "system": found.system.name, "chip": chip.name, "clock": "cycles", "clock_hz": chip.clock_hz,
        "chips": program.split.chips, "split": vars(program.split), "choices": considered(found),
        "sram_rows": chip.slices * chip.words_per_slice, "sram_used": [sum(rooms.values()) for rooms in sram],
        "sram": [{"stages": [s for s, which in enumerate(program.stages) if which == i], "rows": rooms}
                 for i, rooms in enumerate(sram)],
        "segments": [_segment(program, i) for i in range(len(program.stage(0).program.segments))],
        "first_token": cli_prefill.first_tokens(program),
    }


def _segment(program: SystemProgram, i: int) -> dict[str, Any]:
    from openlpu.schedule.joules import energy
    from openlpu.schedule.report import totals
    from openlpu.schedule.tracks import of_system
    from openlpu.schedule.utilisation import links, units

    token, segment = of_system(program, i), program.stage(0).program.segments[i]
    return {
        "context": segment.context, "chunk": segment.chunk, "cycles": program.cycles(i),
        "interval": program.interval(i), "starts": list(program.starts(i)),
        "path": totals((piece.kind, piece.cycles) for piece in token.path),
        "operators": totals((piece.operator, piece.cycles) for piece in token.path),
        "units": {name: vars(use) for name, use in units(token.chips).items()},
        "links": {name: vars(use) for name, use in links(program, i).items()},
        "energy": cli_tables.joules(energy(token.chips)),
    }


def considered(found: Found) -> list[dict[str, Any]]:
    """Every split that was considered; the chosen one says so."""
    return [_row(choice, choice.split == found.program.split) for choice in found.choices]


def rows(found: Found) -> list[dict[str, Any]]:
    """The same, as the page of a program shows them."""
    few, many = folded(considered(found))
    shown = [{"chips": c["chips"], "tensor": c["tensor"], "stages": c["stages"], "half layers": c["halves"],
              "exchange": c["exchange"], "cycles per token": c["cycles"] or None,
              "cycles between tokens": c["interval"] or None, "bytes sent": c["moved"] if c["cycles"] else None,
              "why not": c["why"], "chosen": c["chosen"]} for c in few]
    return [*shown, *({**dict.fromkeys(shown[0]), "why not": line, "chosen": False} for line in many)]


def folded(choices: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Splits to show one by one; and a line for each reason that several of the others have in common, as far as it
    begins alike."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for choice in choices:
        alike.setdefault(choice["why"].partition(", and ")[0], []).append(choice)
    many = [those for reason, those in alike.items() if reason and len(those) > 1]
    hidden = {id(choice) for those in many for choice in those}
    lines = []
    for those in many:
        chips = sorted({choice["chips"] for choice in those})
        most = f" to {chips[-1]:,}" if len(chips) > 1 else ""
        last = max(those, key=lambda choice: choice["chips"])
        lines.append(f"{len(those)} splits of {chips[0]:,}{most} chips: {last['why']}")
    return [choice for choice in choices if id(choice) not in hidden], lines


def _row(choice: Choice, chosen: bool) -> dict[str, Any]:
    s = choice.split
    return {"chips": s.chips, "tensor": s.tensor, "stages": s.stages, "exchange": s.exchange, "halves": s.halves,
            "cycles": choice.cycles, "interval": choice.interval, "moved": choice.moved, "why": choice.why,
            "chosen": chosen}


def summary(result: dict[str, Any]) -> Iterator[str]:
    """The program, its times, and the splits that were considered."""
    split, clock = result["split"], result["clock_hz"]
    most = max(result["sram_used"]) / result["sram_rows"]
    yield (f"{result['model']} on {units.count(result['chips'], 'chip')} of {result['system']} ({result['chip']}): "
           f"{units.count(split['stages'], 'stage')} of {units.count(split['tensor'], 'chip')}; at most {most:.1%} of "
           "the SRAM")
    for s in result["segments"]:
        seconds, full = s["cycles"] / clock, s["chunk"] * clock / s["interval"]
        yield (f"context {s['context']:>6}  {units.cycles(s['cycles'])}, {units.duration(seconds)} "
               f"{cli_prefill.step(s)}: {s['chunk'] / seconds:,.0f} tokens/s for one request, "
               f"{full:,.0f} with the pipeline full")
    yield from cli_prefill.summary(result)
    yield ""
    yield ("splits considered: chips a stage, stages (h: of half layers), exchange, cycles per token and between "
           "tokens\n(the smallest context alone), bytes sent")
    few, many = folded(result["choices"])
    for c in few:
        mark = "*" if c["chosen"] else " "
        cost = c["why"] or f"{c['cycles']:>10,} {c['interval']:>10,} {c['moved']:>11,}"
        yield f"{mark} {c['tensor']:>2} {c['stages']:>4}{' h'[c['halves']]} {c['exchange']:<7} {cost}"
    yield from (f"  {line}" for line in many)


def rooms(result: dict[str, Any]) -> Iterator[str]:
    """What takes the room of each stage's chips."""
    yield "SRAM of a chip, rows of one vector:"
    for kind in result["sram"]:
        stages, used = kind["stages"], sum(kind["rows"].values())
        which = f"stage {stages[0]}" if len(stages) == 1 else f"{len(stages)} stages, {stages[0]} to {stages[-1]}"
        most = sorted(kind["rows"].items(), key=lambda item: -item[1])[:4]
        yield (f"  {which:<24} {used:>9,} {used / result['sram_rows']:7.2%}  "
               + ", ".join(f"{name} {rows:,}" for name, rows in most))


def details(result: dict[str, Any]) -> Iterator[str]:
    """Where the room, and a token's cycles and joules, go."""
    yield ""
    yield from rooms(result)
    for s in result["segments"]:
        yield ""
        yield (f"{cli_prefill.title(s)}: a {cli_prefill.unit(s)} every {units.cycles(s['interval'])} with the pipeline "
               "full")
        yield "  in use, of all that could be done:              alone      full   busiest"
        for what, uses in (("dispatches", s["units"]), ("vectors", s["links"])):
            for name, use in uses.items():
                yield (f"    {name:<18} {use['count']:>12,} {what:<10} {use['alone']:>8.2%} {use['full']:>9.2%} "
                       f"{use['most']:>9.2%}")
        yield "  critical path by what happens:"
        yield from cli_tables.shares(s["path"], s["cycles"])
        yield "  critical path by operator, over all layers:"
        yield from cli_tables.shares(cli_tables.over_layers(s["operators"]), s["cycles"])
        yield from cli_tables.energy(s["energy"], cli_prefill.unit(s))
