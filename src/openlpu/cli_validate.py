"""``openlpu validate``: published results beside the model's, as text, JSON or the page of the documentation."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from openlpu._base.manifest import new_file, require_file
from openlpu._base.progress import Progress

Bars = Callable[[], AbstractContextManager[Progress]]


def add_commands(commands: Any, bars: Bars) -> None:
    """Add validate to a parser's commands; ``bars`` gives it its progress."""
    one = commands.add_parser("validate", help="what was published of LPUs, and what the model gives")
    one.set_defaults(command=lambda args: validate(args, bars))
    one.add_argument("--full", action="store_true", help="compute the rows that take minutes too")
    one.add_argument("--markdown", metavar="FILE", type=Path, help="write the table as a page instead")
    one.add_argument("--json", action="store_true", help="print one JSON object")


def validate(args: argparse.Namespace, bars: Bars) -> int:
    """Compare every row and print the table."""
    from openlpu._base.cores import usable_cores
    from openlpu.tradeoff import validate_page
    from openlpu.tradeoff.validate import compare_parts
    from openlpu.tradeoff.validate_sources import NOT_COMPARED, calibrated

    if args.markdown:
        require_file(args.markdown)  # before the minutes that the rows take
    with bars() as progress:
        tables = compare_parts(list(validate_page.PARTS.values()), full=args.full, processes=usable_cores(),
                               progress=progress)
    constants = calibrated()
    if args.markdown:
        with new_file(args.markdown) as made:
            made.write_text(validate_page.markdown(tables, constants, NOT_COMPARED), "utf-8")
    if args.json:
        print(json.dumps(validate_page.json(tables, constants, NOT_COMPARED)))
    elif not args.markdown:
        print(validate_page.text(tables, constants, NOT_COMPARED))
    return 0
