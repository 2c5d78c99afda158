"""``openlpu show DIR --chip N``: the schedule of one chip, an instruction a line, printed as it is read."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from openlpu._base import units
from openlpu._base.errors import BadRequest

if TYPE_CHECKING:
    from openlpu.schedule.bundle import Bundle
    from openlpu.schedule.tracks import ChipRun


def add_options(parser: argparse.ArgumentParser) -> None:
    """The chip, and which part of its schedule."""
    parser.add_argument("--chip", type=int, metavar="N", help="print the schedule of a chip (from 0) instead")
    parser.add_argument("--unit", metavar="QUEUE", help="of it one queue (mem3, mxmw0.weights) or unit (mem, vxm)")
    parser.add_argument("--cycles", type=_range, metavar="A:B", help="of it cycles A to B, B not included")


def show(args: argparse.Namespace, made: Bundle) -> int:
    """Print the schedule."""
    from openlpu.schedule import listing

    run, where = _run(made, args.chip, 1 if args.context is None else args.context)
    queues = listing.select(run, args.unit)
    first, end = args.cycles or (0, None)
    if first >= run.cycles:
        raise BadRequest(f"it is done in {units.cycles(run.cycles)}", where="cycles", fix="begin with an earlier one")
    print(f"{where}, done in {units.cycles(run.cycles)}\n\n{listing.HEAD}")
    for line in listing.lines(run, queues, first, end):
        print(line)
    return 0


def _run(made: Bundle, chip: int, positions: int) -> tuple[ChipRun, str]:
    """The chip of that number in a token that sees so many positions, or a sequence of so many, read alone; and its
    name."""
    from openlpu.schedule import sequences
    from openlpu.schedule.tracks import of_role, single

    context = made.serving(positions)

    count = made.manifest["chips"]
    if not 0 <= chip < count:
        known = f"0 to {count - 1}" if count > 1 else "0"
        raise BadRequest(f"there is no chip {chip}", where="chip", fix=f"use {known}")
    if made.encoder:
        length = f"a sequence of {units.count(positions, 'position')}"
        if not made.found:
            return sequences.sequence(made.program, positions), f"chip 0, {length}"
        program = made.found.program
        s, role = divmod(chip, program.split.tensor)
        run = [*sequences.stage(program, s, positions)][role]
        where = f"chip {chip} of {count}: role {role} of stage {s}, {length}"
        return run, f"{where}: begins in cycle {run.start:,} of the sequence"
    if not made.several:
        program = made.program
        return single(program, program.segment(context - 1)), f"chip 0, {_when(context, 0)}"
    starts = made.manifest["stage_starts"][str(context)]
    tensor = count // len(starts)
    s, role = divmod(chip, tensor)
    program = made.part((s,), (context,)).program
    run = of_role(program, s, role, 0, starts[s])
    return replace(run, resident=()), f"chip {chip} of {count}: role {role} of stage {s}, {_when(context, starts[s])}"


def _when(context: int, start: int) -> str:
    return f"contexts up to {context}: begins in cycle {start:,} of the token"


def _range(text: str) -> tuple[int, int | None]:
    """``A:B`` as numbers; either may be left out."""
    first, colon, end = text.partition(":")
    if not colon or not all(part.isascii() and part.isdigit() for part in (first, end) if part):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, two cycles of which either may be left out")
    if end and int(end) <= int(first or 0):
        raise argparse.ArgumentTypeError(f"{text!r} has no cycle: B is behind the last")
    return int(first or 0), int(end) if end else None
