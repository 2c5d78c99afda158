"""``--bits`` and ``--prune`` on the command line: what they reach, and what they refuse."""

from __future__ import annotations

import argparse
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
    assert cli_options.scheme(argparse.Namespace(bits=None, prune=None)) is None


@pytest.mark.parametrize("how", ["2:4", "blocks:0.5"])
def test_every_target_has_the_same_bits_when_pruned(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path, how: str
) -> None:
    folder = str(tmp_path / "made")
    run = ["a", "--max-tokens", "3"]
    plain = output(capsys, "run", model, *run)
    output(capsys, "compile", model, "--target", "cpu", "-o", folder, "--prune", how)
    made = [output(capsys, "run", folder, *run)["logits_sha256"]]
    made += [output(capsys, "run", model, *run, "--prune", how, "--target", target)["logits_sha256"]
             for target in ("ref", "cpu", "chip")]
    assert len(set(made)) == 1 and made[0] != plain["logits_sha256"]


def test_accuracy_compares_ways_to_prune(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat " * 20, "utf-8")
    asked = ["--prune", "blocks:0.5", "--prune", "2:4", "--prune", "blocks"]
    made = output(capsys, "accuracy", model, str(text), "--windows", "1", *asked)["formats"]
    ends = ("-blocks:0.5", "-2:4", "-blocks:0.25", "-outliers0.03125")
    assert all(one["format"].endswith(end) for one, end in zip(made, ends, strict=False))
    assert max(made[0]["bits"], made[1]["bits"]) < made[3]["bits"]


def test_bench_sets_a_pruned_model_beside_itself(capsys: pytest.CaptureFixture[str], model: str) -> None:
    result = output(capsys, "bench", model, "--prune", "blocks:0.5", "--threads", "1", "--pairs", "1")
    (other,) = result["against"]
    assert result["prune"] == "blocks:0.5" and other["peer"] == "openlpu" and other["model"] == "unpruned"
    assert all(one["ratio"]["median"] > 0 for one in other["measured"].values())


@pytest.mark.parametrize("how", ["4:8", "blocks:1", "blocks:x", "half"])
def test_other_ways_to_prune_are_refused(capsys: pytest.CaptureFixture[str], how: str) -> None:
    with pytest.raises(SystemExit):
        main(["run", "demo", "a", "--prune", how])
    assert "is not 2:4, blocks, or blocks:SHARE" in capsys.readouterr().err


def test_pruned_weights_have_eight_bits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo", "a", "--prune", "2:4", "--bits", "4.5"]) == 2
    assert "pruned weights have 8 bits" in capsys.readouterr().err
