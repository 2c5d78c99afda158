"""``openlpu verify``: a program on the chip model, against the reference or, without values, against its claims."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress

if TYPE_CHECKING:
    from openlpu.schedule.bundle import Bundle
    from openlpu.schedule.program import Program
    from openlpu.schedule.search import Found
    from openlpu.target.chip.value_free import Checked

Bars = Callable[[], AbstractContextManager[Progress]]
TOKENS = 4


def add_commands(commands: Any, bars: Bars) -> None:
    """Add verify to a parser's commands; ``bars`` gives it its progress."""
    one = commands.add_parser("verify", help="run a compiled model on the chip model against the reference")
    one.set_defaults(command=lambda args: verify(args, bars))
    one.add_argument("folder", metavar="DIR", type=Path, help="what `openlpu compile MODEL -o DIR` wrote; of a program "
                     "without weights everything is checked that does not depend on values")
    one.add_argument("--tokens", type=int, metavar="N", help=f"tokens to compare (default {TOKENS})")
    one.add_argument("--stage", type=int, metavar="N", help="check one pipeline stage and its links, without values")
    one.add_argument("--context", type=int, metavar="N", help="without values: only the segment for so many positions "
                     "(default: every segment)")
    one.add_argument("--dead", type=numbers, default=(), metavar="CHIP[,CHIP]", help="of several chips: these of the "
                     "machine do not work, and spare nodes take the place of theirs")
    one.add_argument("--json", action="store_true", help="print one JSON object")


def numbers(text: str) -> tuple[int, ...]:
    """The value of ``--dead``."""
    if not all(part.isascii() and part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a chip, or several with commas")
    return tuple(map(int, text.split(",")))


def verify(args: argparse.Namespace, bars: Bars) -> int:
    """Compare every fp32 tensor of the first tokens with the reference; exit status 1 if one differs."""
    from openlpu.schedule import bundle
    from openlpu.schedule.program import Program
    from openlpu.tokens.verify import verify as compare

    made = bundle.load(args.folder)
    if args.stage is not None or not made.weights:
        return _value_free(args, made, bars)
    if args.context is not None:
        raise BadRequest("this is for a check without values", where="context", fix="add --stage N")
    program = _moved(made, args.dead)
    chips = [0] if isinstance(program, Program) else program.system.physical[: program.program.split.chips].tolist()
    with bars() as progress:
        tokens = TOKENS if args.tokens is None else args.tokens
        verdict = compare(made.graph, program, tokens, progress)
    if args.json:
        print(json.dumps({"same": not verdict.difference, **vars(verdict), "physical": chips}))
    elif verdict.difference:
        print(verdict.difference)
    else:
        each = f" of each of {verdict.requests} requests" if verdict.requests > 1 else ""
        print(f"{units.count(verdict.tokens, 'token')}{each}, {units.count(verdict.tensors, 'tensor')}: the "
              "reference's bits; every claim holds")
        if args.dead:
            print(f"on chips {_runs(chips)} of the machine")
    return 1 if verdict.difference else 0


def _moved(made: Bundle, dead: Sequence[int]) -> Program | Found:
    """What was compiled, on the chips that are left."""
    if not dead:
        return made.found or made.program
    if not made.found:
        raise BadRequest("this is for several chips", where="dead", fix="leave it out")
    from openlpu.schedule.search import lined_up

    return replace(made.found, system=lined_up(made.found.system.without(dead), made.found.program.split))


def _runs(chips: Sequence[int]) -> str:
    """``8 to 15, 24 to 31``."""
    starts = [i for i, chip in enumerate(chips) if not i or chip != chips[i - 1] + 1]
    ends = [*(i - 1 for i in starts[1:]), len(chips) - 1]
    return ", ".join(f"{chips[a]} to {chips[b]}" if a < b else f"{chips[a]}" for a, b in zip(starts, ends, strict=True))


def _value_free(args: argparse.Namespace, made: Bundle, bars: Bars) -> int:
    """What the referee finds without values; exit status 2 and its error if it refuses the program."""
    if args.dead:
        raise BadRequest("without values nothing runs on chips", where="dead", fix="leave it out")
    if args.tokens is not None:
        raise BadRequest("without values no token runs", where="tokens",
                         fix="leave out --tokens" if made.weights else "openlpu load-weights DIR CHECKPOINT")
    start, found = time.perf_counter(), []
    with bars() as progress:
        for checked in _checks(args, made, progress):
            found.append(checked)
            if not args.json:
                print(_line(checked), flush=True)
    wall_s = time.perf_counter() - start
    if args.json:
        print(json.dumps({"values": False, "accepted": True, "wall_s": wall_s, "checked": [vars(c) for c in found]}))
        return 0
    print(f"accepted without values in {units.wall(wall_s)}: {sum(c.instructions for c in found):,} instructions, "
          f"{sum(c.operands for c in found):,} operands as claimed; links neither over- nor underflow")
    return 0


def _checks(args: argparse.Namespace, made: Bundle, progress: Progress) -> Iterator[Checked]:
    from openlpu.target.chip.encoders import check_sweeps
    from openlpu.target.chip.value_free import check_chip, check_system

    contexts = made.contexts if args.context is None else [made.serving(args.context)]
    if not made.several:
        if args.stage:
            raise BadRequest(f"there is no stage {args.stage}", where="stage", fix="one chip is stage 0")
        yield from check_chip(made.program, contexts)
        return
    if made.encoder and made.found:
        yield from check_sweeps(made.found.system, made.found.program, _stages(args, made.found.program.split.stages),
                                contexts)
        return
    for done, context in enumerate(contexts):
        progress(f"context {context}", done, len(contexts))
        count = len(made.manifest["stage_starts"][str(context)])
        stages = _stages(args, count)
        beside = {s + d for s in stages for d in (-1, 0, 1)} & {*range(count)}
        part = made.part(beside, (context,))
        for i, segment in enumerate(part.program.stage(stages[0]).program.segments):
            starts, interval = (made.manifest[word][segment.name] for word in ("stage_starts", "cycles_between_tokens"))
            yield from check_system(part.system, part.program, stages, i, starts, interval)


def _stages(args: argparse.Namespace, count: int) -> Sequence[int]:
    """Those to check, of so many."""
    if args.stage is not None and not 0 <= args.stage < count:
        raise BadRequest(f"there is no stage {args.stage}", where="stage", fix=f"use 0 to {count - 1}")
    return range(count) if args.stage is None else (args.stage,)


def _line(c: Checked) -> str:
    first, last, count = c.stages[0], c.stages[-1], len(c.stages)
    which = f"stage {first}" if count == 1 else f"{count} equal stages, {first} to {last}"
    links = f"{c.exchanged:,} vectors exchanged, {c.arriving:,} arriving, {c.handed:,} handed on; " if c.chips > 1 \
        or c.arriving or c.handed else ""
    together = f", {c.chunk} tokens" if c.chunk > 1 else ""
    return (f"context {c.context:>6}{together}  {which}, {units.count(c.chips, 'chip')}: "
            f"{c.instructions:,} instructions, {c.operands:,} operands as claimed; {links}"
            f"{units.cycles(c.cycles)}; {units.wall(c.wall_s)}")
