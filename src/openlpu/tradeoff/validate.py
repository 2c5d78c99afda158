"""Published results in; each beside what the model gives, with the kind of agreement, out.

A row that disagrees stays: the table says what the model is good for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from types import ModuleType
from typing import Any

from openlpu._base.processes import Workers
from openlpu._base.progress import Progress, silent


class Kind(StrEnum):
    """What it means when a row agrees, or does not."""

    EXACT = "exact by construction"  # follows from published geometry, rates and formulas alone
    PREDICTED = "predicted"  # nothing was tuned on it
    CALIBRATED = "calibrated"  # a chosen constant was set with it
    WRONG = "cannot be right"  # the published figure contradicts other published figures


@dataclass(frozen=True)
class Row:
    """One published result: ``low`` to ``high`` in ``unit``, equal for a single value, None where a side is open.

    ``ours`` computes the same quantity.  ``constants`` name those of :class:`Constant` that were set with a calibrated
    row.  ``why`` is the arithmetic of what cannot be right; ``missing`` what is not modelled, or not known of the row.
    ``long``: computing it takes longer than a few seconds; rows that ``share`` a name share what takes so long.
    """

    id: str
    what: str
    configuration: str
    low: float | None
    high: float | None
    unit: str
    source: str
    ours: Callable[[], float]
    kind: Kind
    constants: tuple[str, ...] = ()
    why: str = ""
    missing: str = ""
    long: bool = False
    share: str = ""


@dataclass(frozen=True)
class Constant:
    """A chosen number that rows of the table (their ids) were used to set."""

    name: str
    file: str
    value: float
    unit: str
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Open:
    """Published rows that nothing is compared with so far, and why."""

    ids: str
    what: str
    why: str


@dataclass(frozen=True)
class Result:
    """A row and what the model gives for it; nan where that was not computed, because it takes long."""

    row: Row
    ours: float

    @property
    def computed(self) -> bool:
        """Whether there is a figure of ours."""
        return not math.isnan(self.ours)

    @property
    def ratio(self) -> float:
        """Ours by what was published; by the nearer end of a span, 1 inside; by a bound where one side is open."""
        low, high = self.row.low, self.row.high
        if low is None or high is None:
            bound = high if low is None else low
            assert bound is not None, f"{self.row.id}: a row has a value or a bound"
            return self.ours / bound
        return self.ours / min(max(self.ours, low), high)

    def json(self) -> dict[str, Any]:
        """Plain data."""
        row = self.row
        return {
            "id": row.id, "what": row.what, "configuration": row.configuration,
            "published": {"low": row.low, "high": row.high}, "unit": row.unit, "source": row.source,
            "ours": self.ours if self.computed else None, "ratio": self.ratio if self.computed else None,
            "agreement": str(row.kind), "constants": list(row.constants), "why": row.why, "missing": row.missing,
        }


def compare(rows: Iterable[Row], *, full: bool = False) -> list[Result]:
    """What the model gives for each row; for those that take long only with ``full``."""
    return [Result(row, row.ours() if full or not row.long else math.nan) for row in rows]


def compare_parts(
    parts: Sequence[ModuleType], *, full: bool = False, processes: int = 1, progress: Progress = silent
) -> list[list[Result]]:
    """:func:`compare` of the ``rows()`` of each part, where ``processes`` share the rows that take long: the last part
    first, rows that share something together."""
    tables = [(part.__name__, part.rows()) for part in parts]
    pieces: dict[tuple[str, str], list[str]] = {}
    for name, rows in reversed(tables):
        for row in (row for row in rows if full and row.long):
            pieces.setdefault((name, row.share or row.id), []).append(row.id)
    works = [(name, tuple(ids)) for (name, _), ids in pieces.items()]
    found: dict[str, float] = {}
    with Workers(processes) as workers:
        for number, values in workers.as_done(computed, works):
            progress(f"rows {', '.join(works[number][1])}", len(found), sum(len(ids) for _, ids in works))
            found |= values
    return [[Result(row, found[row.id]) if row.id in found else result for row, result in zip(
        rows, compare(rows), strict=True)] for _, rows in tables]


def computed(work: tuple[str, tuple[str, ...]]) -> dict[str, float]:
    """What the model gives for the rows of a module with these ids."""
    name, ids = work
    rows = {row.id: row for row in import_module(name).rows()}
    return {one: rows[one].ours() for one in ids}
