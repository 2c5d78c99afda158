"""The table of published results: its arithmetic by hand, its rules, its page, and what it measures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openlpu.arch.chip import load_chip
from openlpu.arch.isa import TABLE
from openlpu.cli import main
from openlpu.tradeoff import validate_page, validate_products, validate_programs
from openlpu.tradeoff.validate import Kind, Result, Row, compare
from openlpu.tradeoff.validate_sources import NOT_COMPARED, SOURCES, calibrated

PAGE = Path(__file__).resolve().parents[2] / "docs" / "validation.md"
LPU = load_chip("lpu-v1")


@pytest.fixture(scope="module")
def tables() -> list[list[Result]]:
    return [compare(part.rows()) for part in validate_page.PARTS.values()]


@pytest.fixture(scope="module")
def results(tables) -> dict[str, Result]:
    found = [result for table in tables for result in table if not result.row.long]
    assert len({result.row.id for result in found}) == len(found), "an id names one row"
    return {result.row.id: result for result in found}


# -- what each row says ------------------------------------------------------------------------------------------


def test_what_is_exact_is_exact(results):
    """Within the rounding of the published figure, or inside its bound."""
    exact = [r for r in results.values() if r.row.kind is Kind.EXACT]
    assert len(exact) > 15
    for r in exact:
        if r.row.high is None:
            assert r.ratio > 1, r.row
        else:
            assert r.ratio == pytest.approx(1, abs=0.004), r.row


@pytest.mark.parametrize("name, ours", [
    ("C1", 4 * 320 * 320 * 2 / 1000), ("C1.2", 4 * 320 * 320 * 2 * 0.9 / 1000), ("C1.3", 320 * 320 * 2 * 0.9 / 1000),
    ("N10.3", 64 * 0.73728), ("N10.4", 64 * 0.18432), ("L8.3", 576 * 0.23068672 - (
        36 * 128 * 3 * 2880**2 * 4.25 / 8 + 2 * 201_088 * 2880 + 36 * 2880 * (2 * 4096 + 2 * 512 + 128)
        + 73 * 2880) / 1e9),
    ("C2.2", 88 * 2 * 320),
    ("L8", 576 * 64 * 320 * 0.9e9 / 1e12), ("N4", 270 / 0.9), ("N5", 100 * 320 / 328), ("N9", 80 * 320 * 0.9 / 27),
    ("N9.2", 22 * 320 * 0.9 / 27), ("N9.6", 4 * 320 * 0.9 / 27), ("N9.7", 4 * 320 * 0.9 / 24),
    ("N9.8", 2 * 320 * 0.9 / 24), ("G4", 264 * 220 / 1024), ("X1", 31), ("X2", 50.688), ("X3", 0.23068672),
    ("X4", 300 * 184.32 / 2800), ("X5", 576 * 185 / 300), ("X6", 7),
])
def test_arithmetic_by_hand(results, name, ours):
    assert results[name].ours == pytest.approx(ours, rel=1e-6)


def test_predictions_that_are_wrong_stay(results):
    """Ratios of two digits; a change of the model that moves one must be looked at."""
    wrong = {name: round(r.ratio, 2) for name, r in results.items()
             if r.row.kind is Kind.PREDICTED and abs(r.ratio - 1) > 0.1
             and not (r.row.low is None and r.ratio < 1)}
    assert wrong == {"C3.2": 1.38, "N3": 0.7, "N3.2": 0.7, "N6": 0.52, "N6.2": 1.13, "N6.3": 0.56, "N9.8": 1.71,
                     "N10": 0.62, "N10.2": 0.21, "M3.2": 0.5}


def test_what_cannot_be_right_contradicts_and_says_why(results):
    claims = [r for r in results.values() if r.row.kind is Kind.WRONG]
    assert len(claims) == 6
    for r in claims:
        assert r.row.why and not r.row.constants and abs(r.ratio - 1) > 0.3, r.row
    assert all(not r.row.why for r in results.values() if r.row.kind is not Kind.WRONG)


def test_at_most_five_constants_are_calibrated_and_no_others(results):
    constants = calibrated()
    assert len(constants) <= 5
    named = {(c.name, row) for c in constants for row in c.rows}
    used = {(name, r.row.id) for r in results.values() for name in r.row.constants}
    assert named == used
    assert all(bool(r.row.constants) == (r.row.kind is Kind.CALIBRATED) for r in results.values())
    root = PAGE.parents[1] / "src" / "openlpu"
    for c in constants:
        field = c.name.rpartition(".")[2]
        lines = [line for path in root.glob(c.file) for line in path.read_text("utf-8").splitlines()]
        assert any(re.match(rf"{field} += {c.value:g}\b", line) for line in lines), c


def test_sources_are_listed(results):
    assert {r.row.source.split()[0].rstrip(",") for r in results.values()} == set(SOURCES)


# -- how agreement is measured -----------------------------------------------------------------------------------


@pytest.mark.parametrize("low, high, ours, ratio, shown", [
    (40, 40, 30, 0.75, "40"), (None, 40, 36, 0.9, "< 40"), (2, None, 3, 1.5, "> 2"), (185, 215, 200, 1, "185 to 215"),
    (185, 215, 92.5, 0.5, "185 to 215"), (185, 215, 430, 2, "185 to 215"),
])
def test_the_ratio(low, high, ours, ratio, shown):
    row = Row("R", "what", "where", low, high, "W", "T", lambda: ours, Kind.PREDICTED, missing="not modelled: wind")
    [result] = compare([row])
    assert result.ours == ours and result.ratio == ratio
    text = validate_page.text([[result], *[[] for _ in validate_page.TITLES[1:]]], [], ())
    assert f" {shown} " in text and "not modelled: wind" in text and "predicted" in text
    assert f"| {shown} W | {ours:g} W | {ratio:.2f} | predicted | not modelled: wind | [T] |" in validate_page.markdown(
        [[result], *[[] for _ in validate_page.TITLES[1:]]], [], ())


# -- what is measured --------------------------------------------------------------------------------------------


def test_every_weight_is_installed_once():
    """All 409,600 bytes are read, loaded and installed: 80 loads of 16 streams, an install of each plane."""
    trace = validate_programs.install(LPU, 1)
    names, counts = np.unique(trace.code.op, return_counts=True)
    assert {TABLE[op].name: n for op, n in zip(names.tolist(), counts.tolist(), strict=True)} == {
        "read": 409_600 // 320, "load_weights": 80, "install_weights": 4}
    assert trace.cycles == validate_programs.install_cycles(LPU) >= 20 + LPU.latency["read"] + LPU.latency["install"]


def test_the_measurement_answers_to_the_chip():
    """The calibrated latency moves it by as much as it grows; without its 4 cycles it would still be under 40."""
    slow = replace(LPU, latency={**LPU.latency, "install": 9})
    assert validate_programs.install_cycles(slow) == validate_programs.install_cycles(LPU) + 5


def test_a_longer_run_of_tiles_comes_nearer_to_the_peak():
    rates = [validate_programs.weight_rate(LPU, tiles) for tiles in (1, 10, 40)]
    assert rates == sorted(rates) and 0.9 * 20_480 < rates[-1] < 20_480


def test_dense_power_is_between_average_and_design():
    assert 185 < validate_programs.dense_watts(LPU) < 215
    assert validate_programs.dense_watts(LPU, everything=True) > 215
    slow = replace(LPU, clock_hz=LPU.clock_hz // 2)  # static power stays, the rest halves
    assert 0.5 < validate_programs.dense_watts(slow) / validate_programs.dense_watts(LPU) < 0.8


def test_a_network_has_the_products_that_are_known_of_it():
    """4.1 G products and 53 convolutions of ResNet-50, whose deeper sisters have more blocks and nothing else."""
    for depth, macs in ((50, 4.09e9), (101, 7.80e9), (152, 11.5e9)):
        shapes = validate_products.resnet(depth)
        assert sum(m * k * n * count for (m, k, n), count in shapes.items()) == pytest.approx(macs, rel=5e-3)
        assert sum(shapes.values()) == 3 * sum(validate_products.BLOCKS[depth]) + 4 + 1 + 1
    assert validate_products.cycles(validate_products.resnet(101) - validate_products.resnet(50)) == 17 * (
        validate_products._cycles(196, 1024, 256) + validate_products._cycles(196, 2304, 256)
        + validate_products._cycles(196, 256, 1024))


def test_rows_that_take_long_share_processes():
    """A part's long rows, here those of products that take no time, come back in their places."""
    from openlpu.tradeoff import validate

    def some():
        return [replace(row, long=row.id in ("C7", "M3")) for row in ROWS if row.id in ("C7", "C10", "M3")]

    ROWS, module = validate_products.rows(), type(validate_products)("part")
    module.rows, module.__name__ = some, validate_products.__name__
    wanted = [(row.id, row.ours()) for row in some()]
    for processes in (1, 2):
        [found] = validate.compare_parts([module], full=True, processes=processes)
        assert [(result.row.id, result.ours) for result in found] == wanted
    assert [result.row.id for result in validate.compare_parts([module])[0] if result.computed] == ["C10"]


# -- the command -------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_tool_writes(tmp_path, capsys):
    """All but the rows that take minutes."""
    written = tmp_path / "validation.md"
    assert main(["validate", "--markdown", str(written)]) == 0 and capsys.readouterr().out == ""
    short = re.sub(r"(?m)^\| \S+\+ \|.*\n", "", PAGE.read_text("utf-8"))
    assert written.read_text("utf-8") == short, "openlpu validate --full --markdown docs/validation.md"


def test_the_command_prints_all_rows(results, capsys):
    assert main(["validate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = {line.split()[0] for line in lines if line and not line.startswith(" ")}
    assert set(results) <= starts and {"L1", "L2", "L4", "L5", "P1", "P2", "P3"} <= starts, "headlines too"
    assert any(re.match(r"L1 .* 300 +--full +tok/s", line) for line in lines)
    assert any("Not compared yet" in line for line in lines) and max(map(len, lines)) < 140


def test_json(results, capsys):
    assert main(["validate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in found["rows"] if row["ours"] is not None] == list(results)
    install = next(row for row in found["rows"] if row["id"] == "C3")
    assert install["published"] == {"low": None, "high": 40} and install["agreement"] == "calibrated"
    assert install["constants"] == ["latency.install"]
    assert len(found["calibrated_constants"]) == len(calibrated()) and len(found["not_compared"]) == len(NOT_COMPARED)
