"""``--bits`` on the command line: what it reaches, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openlpu import cli_options
from openlpu.cli import main


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def model(models: Path) -> str:
    return str(models / "smollm")


def test_run_has_other_weights_at_other_bits(capsys: pytest.CaptureFixture[str], model: str) -> None:
    run = ["run", model, "a", "--max-tokens", "3"]
    eight, default, few = (output(capsys, *run, *bits) for bits in (["--bits", "8"], [], ["--bits", "4.5"]))
    assert eight["fingerprint"] == default["fingerprint"] != few["fingerprint"]
    assert eight["logits_sha256"] == default["logits_sha256"] != few["logits_sha256"]


def test_every_target_has_the_same_bits_in_blocks(capsys: pytest.CaptureFixture[str], model: str) -> None:
    run = ["run", model, "a", "--max-tokens", "3", "--bits", "4.5"]
    assert len({output(capsys, *run, "--target", target)["logits_sha256"] for target in ("ref", "cpu", "chip")}) == 1


def test_accuracy_says_how_many_bits_a_format_takes(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat " * 20, "utf-8")
    made = output(capsys, "accuracy", model, str(text), "--windows", "1", "--bits", "4.5", "--bits", "6")["formats"]
    assert [f["format"][:5] for f in made[:2]] == ["w4.5a", "w6a8-"] and made[2]["format"].startswith("w8a8")
    assert 4.5 < made[0]["bits"] < made[1]["bits"] <= 6 < 8 < made[2]["bits"]


def test_a_budget_below_the_least_is_refused_with_the_least(capsys: pytest.CaptureFixture[str], model: str) -> None:
    assert main(["run", model, "a", "--bits", "4.51"]) == 2
    assert "bits at least" in capsys.readouterr().err


@pytest.mark.parametrize("bits", ["3", "8.5", "four", "nan"])
def test_other_bits_are_refused(capsys: pytest.CaptureFixture[str], bits: str) -> None:
    with pytest.raises(SystemExit):
        main(["run", "demo", "a", "--bits", bits])
    assert "is not a number from 4.5 to 8" in capsys.readouterr().err


def test_a_compiled_model_keeps_its_format(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    """Asked for another, it says so; asked for its own, it runs, with the same logits."""
    folder = str(tmp_path / "made")
    output(capsys, "compile", model, "--target", "cpu", "-o", folder, "--bits", "4.5")
    run = ["a", "--max-tokens", "3"]
    made, same = output(capsys, "run", folder, *run), output(capsys, "run", folder, *run, "--bits", "4.5")
    fresh = output(capsys, "run", model, *run, "--bits", "4.5")
    assert made["logits_sha256"] == same["logits_sha256"] == fresh["logits_sha256"]
    assert main(["run", folder, *run, "--bits", "8"]) == 2
    assert "was compiled as w4.5a8" in capsys.readouterr().err


def test_no_options_leave_the_format_to_the_model() -> None:
    import argparse

    assert cli_options.scheme(argparse.Namespace(bits=None)) is None
