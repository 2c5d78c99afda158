"""What every arrow after the float graph returns for one tiny model on the tiny chip, as golden text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from openlpu._base.text import dump
from openlpu.arch.chip import load_chip
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.place.layout import place
from openlpu.schedule.step import schedule


@pytest.mark.parametrize("arrow", ["numerics", "place", "schedule"])
def test_arrow(arrow: str, models: Path, golden: Callable[[str], None]) -> None:
    graph = lower(build(load(models / "smollm")).truncate(1), Scheme())
    layout = place(graph, load_chip("tiny"))
    homes = dump(layout.homes.homes)  # before the scheduler adds its constants
    results = {"numerics": lambda: dump(graph), "place": lambda: homes,
               "schedule": lambda: dump(schedule(graph, layout, [layout.context]))}
    golden(results[arrow]())
