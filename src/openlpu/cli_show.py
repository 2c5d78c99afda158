"""``openlpu show``: where the room, cycles and joules of a compiled model go, and pictures of a token."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu import cli_encoder, cli_listing, cli_prefill, cli_program, cli_split, cli_tables
from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.manifest import new_file, require_file

if TYPE_CHECKING:
    from openlpu.schedule.bundle import Bundle
    from openlpu.schedule.tracks import Token


def add_commands(commands: Any) -> None:
    """Add show to a parser's commands."""
    one = commands.add_parser("show", help="placement, units, critical path and energy of a compiled model; pictures")
    one.set_defaults(command=show)
    one.add_argument("folder", metavar="DIR", type=Path, help="what `openlpu compile MODEL -o DIR` wrote")
    one.add_argument("--perfetto", type=Path, metavar="FILE", help="write a token as a trace for ui.perfetto.dev")
    one.add_argument("--html", type=Path, metavar="FILE", help="write a token as a page: map, timeline, SRAM, energy")
    cli_listing.add_options(one)
    one.add_argument("--context", type=int, metavar="N", help="positions the token of a picture or schedule sees, its "
                     "own among them, or of an encoder's sequence (default 1)")
    one.add_argument("--prompt", type=int, metavar="N", help="tokens of a prompt: the time to the first token behind "
                     "it (default: of a few lengths)")
    one.add_argument("--json", action="store_true", help="print one JSON object")


def show(args: argparse.Namespace) -> int:
    """Where the room and the cycles of a compiled model go."""
    from openlpu.schedule import bundle

    made = bundle.load(args.folder)
    _check(args)
    if args.chip is not None:
        return cli_listing.show(args, made)
    if made.encoder:
        return _encoder(args, made)
    asked: dict[str, Any] = {}
    if args.prompt is not None:
        program = made.found.program if made.found else made.program
        asked["first_token"] = cli_prefill.first_tokens(program, args.prompt)
    pictures = _pictures(args, made)
    about = cli_split.report(made.found) if made.found else cli_program.report(made.outline, made.program)
    result = {"model": made.manifest["model"], "weights": made.weights} | about | asked | pictures
    details = cli_split.details(result) if made.found else _details(result)
    print(json.dumps(result) if args.json else "\n".join([*cli_program.summary(result), *details]))
    return 0


def _encoder(args: argparse.Namespace, made: Bundle) -> int:
    """The report of an encoder's program."""
    if args.prompt is not None:
        raise BadRequest("an encoder has no first token", where="prompt", fix="leave it out")
    pictures = _pictures(args, made)
    result = {"model": made.manifest["model"], "weights": made.weights}
    result |= cli_encoder.report(made.outline, made.found or made.program) | pictures
    print(json.dumps(result) if args.json else "\n".join([*cli_program.summary(result), *cli_encoder.details(result)]))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    pictures = [path for path in (args.perfetto, args.html) if path is not None]
    for path in pictures:
        require_file(path)
    if len(pictures) == 2 and args.perfetto.resolve() == args.html.resolve():
        raise BadRequest("trace and page cannot be one file", where="html", fix="give each a name of its own")
    if args.chip is not None and (pictures or args.json):
        raise BadRequest("the schedule of a chip is text", where="chip", fix="leave out --json, --perfetto and --html")
    if args.chip is not None and args.prompt is not None:
        raise BadRequest("the schedule of a chip has no prompt", where="prompt", fix="leave one of both out")
    for name in ("unit", "cycles"):
        if getattr(args, name) is not None and args.chip is None:
            raise BadRequest("this is for the schedule of a chip", where=name, fix="add --chip N")
    if args.context is not None and not pictures and args.chip is None:
        raise BadRequest("this is for pictures and schedules", where="context",
                         fix="add --perfetto FILE, --html FILE or --chip N")


def _pictures(args: argparse.Namespace, made: Bundle) -> dict[str, Any]:
    """Write the pictures that were asked for; what was written, and how large."""
    if not args.perfetto and not args.html:
        return {}
    from openlpu.schedule import sequences
    from openlpu.schedule.tracks import of_chip, of_system

    positions = 1 if args.context is None else args.context
    program = made.found.program.stage(0).program if made.found else made.program
    context = made.serving(positions)
    about = {"title": f"{made.manifest['model']} on {program.chip.name}", "numerics": str(made.scheme)}
    about |= {"positions": positions} if made.encoder else {"context": f"up to {context}"}
    if not made.found:
        token = (sequences.of_sequence(program, positions) if made.encoder
                 else of_chip(program, program.segment(context - 1)))
        return {"written": _draw(args, token, about)}
    token = (sequences.of_system(made.found.program, positions) if made.encoder
             else of_system(made.found.program, program.segments.index(program.segment(context - 1))))
    split = made.found.program.split
    about |= {"title": f"{made.manifest['model']} on {split.chips} x {program.chip.name}",
              "split": f"{units.count(split.tensor, 'chip')} a stage, {units.count(split.stages, 'stage')}"}
    return {"written": _draw(args, token, about, () if made.encoder else cli_split.rows(made.found))}


def _draw(args: argparse.Namespace, token: Token, about: dict[str, Any],
          splits: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Write a token as the pictures that were asked for."""
    from openlpu.schedule import perfetto
    from openlpu.web import program_page

    written: dict[str, Any] = {}
    if args.perfetto:
        with new_file(args.perfetto) as made:
            spans = perfetto.write(made, token, about)
        written["perfetto"] = {"file": str(args.perfetto), "spans": spans, "bytes": args.perfetto.stat().st_size}
    if args.html:
        with new_file(args.html) as made:
            made.write_text(program_page.render(token, about, splits), "utf-8")
        written["html"] = {"file": str(args.html), "bytes": args.html.stat().st_size}
    return written


def _details(result: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield from cli_tables.sram(result)
    for s in result["segments"]:
        bound = s["bound"]
        yield ""
        yield (f"{cli_prefill.title(s)}: bounds{' of one' * (s['chunk'] > 1)} in cycles: weights {bound['weights']:,}, "
               f"{bound['issue_unit']} {bound['issue']:,}, longest path {bound['path']:,}")
        yield from cli_tables.accounted(s, cli_prefill.unit(s))
