"""``openlpu load-weights``: the weights of another checkpoint into a program that exists, without scheduling."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from openlpu._base import units
from openlpu._base.errors import BadRequest, TooManyPositions
from openlpu._base.manifest import require_new
from openlpu._base.progress import Progress

Bars = Callable[[], AbstractContextManager[Progress]]


def add_commands(commands: Any, bars: Bars, model_help: str) -> None:
    """Add load-weights to a parser's commands; ``bars`` gives it its progress."""
    one = commands.add_parser("load-weights", help="put the weights of another checkpoint into a compiled model")
    one.set_defaults(command=lambda args: load_weights(args, bars))
    one.add_argument("folder", metavar="DIR", type=Path, help="what `openlpu compile MODEL -o DIR` wrote")
    one.add_argument("checkpoint", metavar="CHECKPOINT", help=f"of the same shape: {model_help}")
    one.add_argument("-o", "--output", type=Path, metavar="NEW", help="write here (default: in place of DIR)")
    one.add_argument("--json", action="store_true", help="print one JSON object")


def load_weights(args: argparse.Namespace, bars: Bars) -> int:
    """Read a checkpoint as the program's numerics ask for, and write it beside the program as it is."""
    from openlpu import compile as pipeline
    from openlpu.schedule import bundle

    start = time.perf_counter()
    stored = bundle.load(args.folder)
    if args.output:
        require_new(args.output)
        if args.folder.resolve() in args.output.resolve().parents:
            raise BadRequest("this lies inside the compiled model", where=str(args.output),
                             fix="name a folder elsewhere")
    else:
        bundle.require_own(stored)
    with bars() as progress:
        context = stored.outline.config.context
        try:
            compiled = pipeline.compile(args.checkpoint, scheme=stored.scheme, context=context, progress=progress)
        except TooManyPositions as error:
            what = f"the program is for {context} positions, these weights for {error.most} at most"
            raise BadRequest(what, where=error.where, fix=f"compile the program with --context {error.most}, or name "
                             "weights for as many") from error
        read = time.perf_counter()
        texts = compiled.checkpoint.texts()
        bundle.refill(stored, compiled.graph, model=args.checkpoint, texts=texts, folder=args.output)
    end = time.perf_counter()
    result = {"model": args.checkpoint, "output": str(args.output or args.folder),
              "weights": sum(array.nbytes for array in compiled.graph.params.values()),
              "clock": "wall", "read_s": read - start, "write_s": end - read}
    print(json.dumps(result) if args.json else
          f"{result['model']}: {units.size(result['weights'])} of parameters into {result['output']}; "
          f"read and rounded in {units.wall(read - start)}, written in {units.wall(end - read)}; nothing was scheduled")
    return 0
