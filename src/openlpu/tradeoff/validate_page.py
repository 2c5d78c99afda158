"""Results in; the table as text for a terminal, as the Markdown page and as JSON out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from openlpu.tradeoff import validate_chip, validate_claims, validate_models, validate_network, validate_products
from openlpu.tradeoff.validate import Constant, Kind, Open, Result
from openlpu.tradeoff.validate_sources import SOURCES

PARTS = {
    "One chip": validate_chip, "Matrix products": validate_products, "Links and systems": validate_network,
    "Language models": validate_models, "Cannot be right": validate_claims,
}
TITLES = tuple(PARTS)
LATER = "--full"  # in place of a figure that was not computed
SHORT = {Kind.EXACT: "exact", Kind.PREDICTED: "predicted", Kind.CALIBRATED: "calibrated", Kind.WRONG: "impossible"}


def json(tables: Sequence[Sequence[Result]], constants: Sequence[Constant], missing: Sequence[Open]) -> dict[str, Any]:
    """Plain data."""
    return {
        "rows": [result.json() for table in tables for result in table],
        "calibrated_constants": [asdict(constant) for constant in constants],
        "not_compared": [asdict(one) for one in missing],
        "sources": SOURCES,
    }


def text(tables: Sequence[Sequence[Result]], constants: Sequence[Constant], missing: Sequence[Open]) -> str:
    """For a terminal."""
    return "\n".join(_text(tables, constants, missing))


def _text(
    tables: Sequence[Sequence[Result]], constants: Sequence[Constant], missing: Sequence[Open]
) -> Iterator[str]:
    for title, table in zip(TITLES, tables, strict=True):
        yield f"{title:<52}  {'published':>16}  {'ours':>8}  {'unit':<7}  {'ratio':>6}  agreement"
        for result in table:
            row = result.row
            ours = _number(result.ours) if result.computed else LATER
            yield (f"{row.id:<5} {row.what:<46}  {_published(result):>16}  {ours:>8}  "
                   f"{row.unit:<7}  {_ratio(result):>6}  {SHORT[row.kind]}")
            yield f"      {row.configuration}  [{row.source}]"
            if row.why or row.missing:
                yield f"      {row.why or row.missing}"
        yield ""
    if not all(result.computed for table in tables for result in table):
        yield f"{LATER}: these rows take minutes, `openlpu validate --full` computes them; docs/validation.md has them"
        yield ""
    yield "Calibrated: the chosen constants that rows were used to set; no others"
    for c in constants:
        yield f"      {c.name:<25} {_number(c.value):>5} {c.unit:<10} {', '.join(c.rows):<5}  {c.file}"
    yield ""
    yield "Not compared yet"
    for one in missing:
        yield f"      {one.ids:<12} {one.what}: {one.why}"


def markdown(tables: Sequence[Sequence[Result]], constants: Sequence[Constant], missing: Sequence[Open]) -> str:
    """The page of the documentation."""
    return "\n".join(_markdown(tables, constants, missing)) + "\n"


def _markdown(
    tables: Sequence[Sequence[Result]], constants: Sequence[Constant], missing: Sequence[Open]
) -> Iterator[str]:
    yield from HEAD
    for title, table in zip(TITLES, tables, strict=True):
        last = "arithmetic" if title == TITLES[-1] else "not modelled, or not known"
        yield from ["", f"## {title}", "",
                    f"| id | what | configuration | published | ours | ratio | agreement | {last} | source |",
                    "|---|---|---|--:|--:|--:|---|---|---|"]
        for result in filter(lambda result: result.computed, table):
            row = result.row
            kind = str(row.kind) + (": " + ", ".join(f"`{name}`" for name in row.constants) if row.constants else "")
            unit = f" {row.unit}" if row.unit else ""
            cells = (row.id + "+" * row.long, row.what, row.configuration, _published(result) + unit,
                     _number(result.ours) + unit, _ratio(result), kind, row.why or row.missing, f"[{row.source}]")
            yield f"| {' | '.join(cells)} |"
    yield from ["", "## Calibrated constants", "", "The chosen constants that rows were used to set; no others.", "",
                "| constant | value | set with | where |", "|---|--:|---|---|"]
    yield from (f"| `{c.name}` | {_number(c.value)} {c.unit} | {', '.join(c.rows)} | `{c.file}` |" for c in constants)
    yield from ["", "## Not compared yet", "", "| id | what | why |", "|---|---|---|"]
    yield from (f"| {one.ids} | {one.what} | {one.why} |" for one in missing)
    yield from ["", "## Sources", ""]
    yield from (f"* **[{key}]** {title}" for key, title in SOURCES.items())


HEAD = (
    "# What was published, and what the model gives",
    "",
    "Printed by `openlpu validate --full --markdown docs/validation.md`; do not edit. *Exact by construction* follows",
    "from published geometry, rates and formulas alone. *Predicted*: nothing was tuned on it. *Calibrated*: a chosen",
    "constant was set with it. The ratio is ours by the published value, by the bound where only that is given, by the",
    "nearer end of a span (1 inside). Predictions that are wrong stay in the table. Rows C, N, M and L are numbered as",
    "in the list of published results, G are facts of geometry, X figures that contradict others. Rows with a + behind",
    "their number take minutes and are left out without `--full`.",
)


def _published(result: Result) -> str:
    """``35``, ``< 40``, ``> 2``, ``185 to 215``."""
    low, high = result.row.low, result.row.high
    if low is None or high is None:
        return f"< {_number(high)}" if high is not None else f"> {_number(low or 0)}"
    return _number(low) if low == high else f"{_number(low)} to {_number(high)}"


def _ratio(result: Result) -> str:
    """Two decimals, or the inverse where they would show nothing; empty where there is none."""
    if not result.computed:
        return ""
    ratio = result.ratio
    return f"1/{1 / ratio:,.0f}" if 0 < ratio < 0.01 else f"{ratio:,.2f}" if ratio < 100 else f"{ratio:,.0f}"


def _number(value: float) -> str:
    """Whole numbers whole, others with four digits that count."""
    if value == int(value) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
