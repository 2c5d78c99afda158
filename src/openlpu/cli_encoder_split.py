"""An encoder over the chips of a system: the options of the split, and what is printed of its programs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from openlpu import cli_split, cli_tables
from openlpu._base import units
from openlpu._base.errors import BadRequest

if TYPE_CHECKING:
    from openlpu._base.progress import Progress
    from openlpu.graph.ir import Graph
    from openlpu.schedule.search import Found

LENGTHS = (16, 64, 128, 384, 512)  # of sequences that reports print


def lengths(context: int) -> list[int]:
    """Those of sequences that a program takes, the longest last."""
    return sorted({n for n in LENGTHS if n < context} | {context})


def compile_chips(args: argparse.Namespace, graph: Graph, progress: Progress) -> Found:
    """The programs of the split that was asked for: one chip a stage and as many stages as chips or layers, if nothing
    is said; no other is tried."""
    from openlpu import compile as pipeline

    for name in ("aim", "latency_limit"):
        if getattr(args, name) is not None:
            raise BadRequest("the split of an encoder is not searched", where=name.replace("_", "-"),
                             fix="name it: --tensor N --stages N --exchange WHAT")
    system = cli_split.system(args)
    wanted = cli_split.wanted(args, system.chip.clock_hz)
    return pipeline.programs(graph, system, wanted, args.chunk, dump=args.dump, progress=progress)


def report(found: Found) -> dict[str, Any]:
    """Plain data for ``--json``."""
    program, chip = found.program, found.system.chip
    room = [cli_tables.rooms(stage.program) for stage in program.programs]
    segments = program.stage(0).program.segments
    return {
        "system": found.system.name, "chip": chip.name, "clock": "cycles", "clock_hz": chip.clock_hz,
        "chips": program.split.chips, "split": vars(program.split), "chunk": segments[0].chunk,
        "sram_rows": chip.slices * chip.words_per_slice, "sram_used": [sum(rows.values()) for rows in room],
        "sram": [{"stages": [s for s, which in enumerate(program.stages) if which == i], "rows": rows}
                 for i, rows in enumerate(room)],
        "sequences": [_times(found, n) for n in lengths(segments[-1].context)],
        "longest": [_longest(found, context) for context in sorted({s.context for s in segments})],
    }


def _times(found: Found, length: int) -> dict[str, int]:
    from openlpu.schedule.encoders import interval, passage

    return {"length": length, "cycles": passage(found.program, length).cycles,
            "interval": interval(found.program, length)}


def _longest(found: Found, context: int) -> dict[str, Any]:
    """Where the cycles of the longest sequence of a context bucket go."""
    from openlpu.schedule.sequences import account

    use, spent = account(found.program, context)
    times = _times(found, context) | {"instructions": use.instructions}
    return times | {"stages": [*_stages(found, context)]} | cli_tables.account(use, spent)


def _stages(found: Found, length: int) -> Iterator[dict[str, Any]]:
    """What each stage does of a sequence, and when."""
    from openlpu.schedule.encoders import busy, passage

    program, way = found.program, passage(found.program, length)
    for s in range(program.split.stages):
        stage, own = program.stage(s), way.of(s)
        parts = [stage.program.segments[number] for number in dict.fromkeys(turn.segment for turn in own)]
        end = own[-1].start + busy(program, own[-1])
        yield {"first_layer": program.first[s], "layers": len(parts) - 1, "start": own[0].start, "end": end,
               "steps": len(own), "sweeps": [part.cycles for part in parts]}


def summary(result: dict[str, Any]) -> Iterator[str]:
    """The programs in a few lines."""
    split, clock = result["split"], result["clock_hz"]
    most = max(result["sram_used"]) / result["sram_rows"]
    yield (f"{result['model']} on {units.count(result['chips'], 'chip')} of {result['system']} ({result['chip']}): "
           f"{units.count(split['stages'], 'stage')} of {units.count(split['tensor'], 'chip')}; at most {most:.1%} of "
           f"the SRAM; sequences of up to {result['sequences'][-1]['length']}, {result['chunk']} positions a step")
    for s in result["sequences"]:
        seconds, full = s["cycles"] / clock, clock / s["interval"]
        yield (f"sequence of {s['length']:>5}  {units.cycles(s['cycles'])}, {units.duration(seconds)}: "
               f"{1 / seconds:,.0f} sequences/s one at a time, {full:,.0f} with the pipeline full")


def details(result: dict[str, Any]) -> Iterator[str]:
    """What ``openlpu show`` adds: the room, each stage, and where the longest sequences' cycles and joules go."""
    yield ""
    yield from cli_split.rooms(result)
    for of in result["longest"]:
        yield ""
        yield (f"sequence of {of['length']}: {units.cycles(of['cycles'])}, another every "
               f"{units.cycles(of['interval'])} with the pipeline full")
        yield "  stages, from their first step to the end of their last:"
        for s, stage in enumerate(of["stages"]):
            last = stage["first_layer"] + stage["layers"] - 1
            yield (f"    stage {s:>2}, layers {stage['first_layer']:>2} to {last:>2}: cycles {stage['start']:>11,} to "
                   f"{stage['end']:>11,}, {units.count(stage['steps'], 'step')} of "
                   f"{units.count(len(stage['sweeps']), 'sweep')}")
        yield from cli_tables.accounted(of, "sequence")
