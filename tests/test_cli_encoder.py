"""The command line with an encoder: what it prints, one hash on both targets, clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from encoders import COMMON, write
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import openlpu
from openlpu import cli, cli_encoder
from openlpu._base.errors import Unsupported
from openlpu.checkpoint.folder import read_shape
from openlpu.graph import models

CONFIG = {"model_type": "bert", **COMMON, "num_hidden_layers": 1, "max_position_embeddings": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("encoder") / "bert"
    write(made, CONFIG, {})
    write(made, CONFIG, dict(models.shapes(read_shape(made))), "bert.")
    words = {word: i for i, word in enumerate(["[UNK]", "the", "cat", "sat", "on", "a", "mat", "and", "ran"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(made / "tokenizer.json"))
    return made


def ask(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    assert cli.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_run_gives_one_hash_on_both_targets(folder, capsys):
    texts = "the cat sat", "a mat"
    ref, chip = (ask(capsys, "run", folder, *texts, "--target", *target)["sequences"]
                 for target in (("ref",), ("chip", "--chunk", "2", "--context", "8")))
    assert [one["hidden"] for one in ref] == [[3, 32], [2, 32]] and ref[0]["token_ids"] == [1, 2, 3]
    assert [one["hidden_sha256"] for one in ref] == [one["hidden_sha256"] for one in chip]
    assert ref[0]["cycles"] is None and chip[0]["cycles"]["sequence"] == 2 * chip[1]["cycles"]["sequence"] > 0
    assert cli.main(["run", str(folder), "a mat", "--target", "ref"]) == 0
    assert "hidden states 2 x 32, sha256" in capsys.readouterr().out


def test_check_is_one_hash(folder, capsys, monkeypatch):
    monkeypatch.setattr(cli_encoder, "CHUNKS", (2,))
    monkeypatch.setattr(cli_encoder, "SPLITS", ({"tensor": 2}, {"stages": 2}))  # one layer makes one stage
    found = ask(capsys, "check", folder, "--splits")
    assert found["distinct"] == 1 and len(found["cases"]) == 3


def test_compile_show_and_verify(folder, capsys, tmp_path):
    out = tmp_path / "out"
    made = ask(capsys, "compile", folder, "--chunk", "2", "-o", out)
    assert [s["length"] for s in made["sequences"]] == [12] and len(made["sweeps"]) == 2
    shapes = ask(capsys, "compile", folder / "config.json", "--shapes-only", "--chunk", "2")
    assert shapes["sequences"] == made["sequences"]
    assert ask(capsys, "show", out)["sequences"] == made["sequences"]
    assert cli.main(["show", str(out)]) == 0
    said = capsys.readouterr().out
    assert "sequence of 12: 6 steps of each of 2 sweeps" in said and "critical path by what happens:" in said
    (longest,) = made["longest"]
    assert sum(longest["path"].values()) == longest["cycles"] == made["sequences"][0]["cycles"]
    assert "per sequence and" in said and longest["energy"]["femtojoules"] > longest["energy"]["static"] > 0
    assert ask(capsys, "verify", out)["same"] is True
    ref, chip = (ask(capsys, "run", *how) for how in ((folder, "a mat", "--target=ref"), (out, "a mat")))
    assert chip["sequences"][0]["hidden_sha256"] == ref["sequences"][0]["hidden_sha256"]
    assert ask(capsys, "load-weights", out, folder, "-o", tmp_path / "new")
    assert cli.main(["load-weights", str(out), "demo"]) == 2
    assert "these are weights of llama, the program is of bert" in capsys.readouterr().err


def test_pictures_and_the_schedule_of_a_sequence(folder, capsys, tmp_path):
    """Five positions in chunks of two: three steps of each sweep, one behind the other, as the report counts them."""
    out, page, trace = (tmp_path / name for name in ("out", "page.html", "trace.json"))
    ask(capsys, "compile", folder / "config.json", "--shapes-only", "--chunk", "2", "-o", out)
    made = ask(capsys, "show", out, "--html", page, "--perfetto", trace, "--context", "5")
    cycles, count = (3 * sum(s[word] for s in made["sweeps"]) for word in ("cycles", "instructions"))
    spans = [e for e in json.loads(trace.read_text("utf-8"))["traceEvents"] if e["ph"] == "X"]
    path = [e for e in spans if e["pid"] == 1]
    assert len(spans) - len(path) == count and sum(e["args"]["cycles"] for e in path) == cycles
    text = page.read_text("utf-8")
    assert f'"cycles":{cycles}' in text and '"what":"sequence"' in text and "Whole sequence" in text
    capsys.readouterr()
    assert cli.main(["show", str(out), "--chip", "0", "--context", "5"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == f"chip 0, a sequence of 5 positions, done in {cycles:,} cycles"
    assert len(rows) == 1 + count and int(rows[-1].split()[0]) < cycles
    assert cli.main(["show", str(out), "--chip", "0", "--context", "13"]) == 2
    assert "13 is out of range" in capsys.readouterr().err


def test_on_two_chips_it_is_compiled_shown_verified_and_run(folder, capsys, tmp_path):
    out, page = tmp_path / "out", tmp_path / "page.html"
    how = "--chunk", "2", "--system", "node", "--chips", "2", "--tensor", "2"
    made = ask(capsys, "compile", folder / "config.json", "--shapes-only", *how, "-o", out)
    assert made["chips"] == 2 and made["split"]["stages"] == 1 and not made["weights"]
    (longest,), (one,) = made["longest"], made["sequences"]
    assert sum(longest["path"].values()) == longest["cycles"] == one["cycles"]
    (stage,) = longest["stages"]
    assert (stage["layers"], stage["steps"], stage["start"], len(stage["sweeps"])) == (1, 12, 0, 2)
    assert stage["end"] == one["interval"] >= one["cycles"]
    found = ask(capsys, "verify", out, "--stage", "0")
    assert found["accepted"] and [part["chips"] for part in found["checked"]] == [2, 2]
    assert ask(capsys, "load-weights", out, folder) and ask(capsys, "verify", out)["same"] is True
    ref, chip = (ask(capsys, "run", *how) for how in ((folder, "a mat", "--target=ref"), (out, "a mat")))
    assert chip["sequences"][0]["hidden_sha256"] == ref["sequences"][0]["hidden_sha256"]
    assert cli.main(["show", str(out), "--html", str(page), "--context", "2"]) == 0
    said = capsys.readouterr().out
    assert "1 stage of 2 chips" in said and "stage  0, layers  0 to  0: cycles           0 to" in said
    assert f'"cycles":{chip["sequences"][0]["cycles"]["sequence"]}' in page.read_text("utf-8")
    assert cli.main(["show", str(out), "--chip", "1", "--unit", "c2c"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("chip 1 of 2: role 1 of stage 0, a sequence of 1 position: begins in cycle 0 of the ")
    assert "send            stream" in said and "to chip 0" in said


@pytest.mark.parametrize(("argv", "words"), [
    (["run", "the cat"], "an encoder on the cpu"),
    (["run", "the cat", "--target", "ref", "--temperature", "1"], "an encoder writes no text"),
    (["run", "the cat", "--target", "ref", "--chunk", "2"], "takes a sequence whole"),
    (["run", "the cat", " ".join(["cat"] * 13), "--target", "ref"], "prompt 2: the text has 13 tokens"),
    (["run", "the cat", "", "--target", "ref"], "prompt 2: the text has 0 tokens"),
    (["bench"], "an encoder on the cpu"),
    (["compile", "--system", "node", "--aim", "chips"], "the split of an encoder is not searched"),
    (["compile", "--system", "node", "--stages", "2"], "1 layers do not make 2 stages"),
    (["compile", "--system", "node", "--exchange", "codes"], "one chip a stage exchanges nothing"),
    (["compile", "--system", "node", "--chips", "2", "--tensor", "4"], "it has 2 chips and the split needs 4"),
    (["compile", "--requests", "2"], "one sequence at a time"),
    (["compile", "--chunk", "2,4"], "chunks of one size"),
    (["compile", "--bits", "5"], "an encoder of fewer weights or bits"),
    (["accuracy", "TEXT"], "an encoder has no perplexity"),
    (["compile", "--target", "cpu", "-o", "NEW"], "an encoder on the cpu"),
])
def test_errors(folder, capsys, tmp_path, argv, words):
    (tmp_path / "text").write_text("the cat")
    command, *rest = [str(tmp_path / word.lower()) if word in ("TEXT", "NEW") else word for word in argv]
    assert cli.main([command, str(folder), *rest]) == 2
    assert words in capsys.readouterr().err


def test_there_is_nothing_to_generate_with(folder):
    with pytest.raises(Unsupported, match="it writes no text"):
        openlpu.load(folder, target="ref")
