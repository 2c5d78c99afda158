"""Several prompts at once, and compiled programs, as a user runs them: answers, rates, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from openlpu.cli import main
from openlpu.schedule import bundle

MODEL = str(Path(__file__).resolve().parent / "golden" / "models" / "smollm")
PROMPTS = ["a", "bcd", "ef", "g"]
SHORT = ["--max-tokens", "5", "--json"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two stages, three requests."""
    folder = str(tmp_path_factory.mktemp("compiled") / "stages")
    options = ["--system", "tiny-node", "--chips", "2", "--tensor", "1", "--stages", "2", "--requests", "3"]
    assert main(["compile", MODEL, "-o", folder, *options]) == 0
    return folder


def test_prompts_on_the_stages_of_a_program_have_the_bits_of_each_alone(stages: str, capsys) -> None:
    capsys.readouterr()
    assert main(["run", stages, *PROMPTS, *SHORT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is True and found["target"] == "chip" and found["chips"]["requests"] == 3
    for prompt, answer in zip(PROMPTS, found["answers"], strict=True):
        assert main(["run", MODEL, prompt, "--target", "ref", *SHORT]) == 0
        alone = json.loads(capsys.readouterr().out)
        for word in ("text", "token_ids", "logits_sha256", "prompt_ids", "finish_reason"):
            assert alone[word] == answer[word], word
        assert alone["fingerprint"] == found["fingerprint"]
    assert main(["run", stages, *PROMPTS[:3], *SHORT]) == 0
    chips = json.loads(capsys.readouterr().out)["chips"]
    assert chips["together"]["cycles"] == chips["together"]["tokens"] * chips["interval"] > 0, "full"
    assert chips["interval"] in bundle.load(Path(stages)).manifest["cycles_between_tokens"].values()
    assert main(["run", stages, "--max-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 token on chip" in out and "bit for bit" in out and "of 1 request in" in out


def test_prompts_may_stand_behind_options(capsys) -> None:
    assert main(["run", MODEL, "a", *SHORT, "bcd"]) == 0
    assert len(json.loads(capsys.readouterr().out)["answers"]) == 2
    for wrong in (["run", MODEL, "a", "--nothing"], ["show", MODEL, "--json", "a"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
    assert capsys.readouterr().err.count("unrecognized arguments") == 2


def test_a_model_for_this_processor_is_no_program(tmp_path: Path, capsys) -> None:
    assert main(["compile", MODEL, "--target", "cpu", "-o", str(tmp_path / "made")]) == 0
    for command in (["show"], ["verify"], ["load-weights", MODEL]):
        assert main([command[0], str(tmp_path / "made"), *command[1:]]) == 2
        assert "compiled for a processor" in capsys.readouterr().err


def test_prompts_share_the_steps_of_this_processor(capsys) -> None:
    assert main(["run", MODEL, *PROMPTS, *SHORT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chips"] is None and "same" not in found and len(found["answers"]) == 4
    assert main(["run", MODEL, *PROMPTS, "--max-tokens", "5", "--target", "ref"]) == 0
    out = capsys.readouterr().out
    assert all(one["logits_sha256"][:16] in out for one in found["answers"])


@pytest.mark.parametrize("option", [["--bits", "5"], ["--context", "9"], ["--chunk", "2"], ["--no-speculate"],
                                    ["--threads", "2"], ["--target", "cpu"], ["--dump", "x"]], ids=lambda o: o[0])
def test_what_a_program_decides_is_refused(stages: str, option: list[str], capsys) -> None:
    assert main(["run", stages, "a", *option]) == 2
    assert option[0].lstrip("-").removeprefix("no-") in capsys.readouterr().err


def test_damaged_texts_are_found(stages: str, tmp_path: Path, capsys) -> None:


    shutil.copytree(stages, tmp_path / "copy")
    with (tmp_path / "copy" / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert main(["run", str(tmp_path / "copy"), "a"]) == 2
    assert "tokenizer.json" in capsys.readouterr().err
