"""The command line: its JSON, its texts, its errors and its exit statuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

import openlpu
from openlpu.cli import main
from openlpu.numerics.scheme import Scheme

RUN = ["run", "demo", "KING", "--target", "ref", "--max-tokens", "6"]


def test_run_json_is_one_object_with_every_field(capsys):
    assert main([*RUN, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err == "" and out.count("\n") == 1
    with openlpu.load("demo", target="ref") as model:
        answer = model.generate("KING", max_tokens=6).finish()
        assert result["text"] == answer.text and result["token_ids"] == answer.token_ids
        assert result["logits_sha256"] == answer.logits_sha256
        assert result["fingerprint"] == model.fingerprint and len(model.fingerprint) == 64
    assert result["measured"]["clock"] == "wall" and result["cycles"] is None


def test_run_streams_the_text_and_ends_with_a_summary(capsys):
    assert main(RUN) == 0
    out, _ = capsys.readouterr()
    text, summary = out.split("\n\n6 tokens on ref")
    assert text.startswith("KING") and len(text) > 10
    assert summary.count(" wall") == 3 and "p99" in summary


def test_sampling_options_reach_the_sampler(capsys):
    def text(*options: str) -> str:
        assert main([*RUN, "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["text"]

    greedy, hot = text("--temperature", "0"), ["--temperature", "2", "--seed", "7"]
    assert text(*hot) == text(*hot) != greedy
    assert text("--temperature", "2", "--seed", "8") != text(*hot)
    for cold in (["--top-k", "1"], ["--top-p", "1e-9"], ["--min-p", "1"]):
        assert text(*hot, *cold) == greedy
    assert text("--temperature", "0", "--stop", greedy[2:4]) == greedy[:2]


@pytest.mark.parametrize(("argv", "words"), [
    (["run", "no/such/folder"], "no such folder"),
    (["run", ""], "the file is missing"),
    (["run", "demo", "x", "--threads", "-1"], "threads"),
    (["run", "demo", "", "--target", "ref"], "prompt is empty"),
    (["run", "demo", "x", "--target", "ref", "--top-p", "2"], "top_p"),
    (["run", "demo", "x", "--target", "ref", "--threads", "2"], "cannot run on 2 threads"),
    (["run", "demo", "x", "--target", "ref", "--chat"], "no chat template"),
    (["run", "demo", "x y z " * 20, "--target", "ref", "--context", "8"], "do not fit the context of 8"),
    (["run", "demo", "x", "--target", "ref", "--context", "9999"], "9999"),
    (["run", "demo", "x", "--target", "ref", "--dump", __file__], "this is a file, not a folder"),
])
def test_wrong_input_is_one_message_and_status_2(argv, words, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert words in err and err.startswith("openlpu run: ") and "Traceback" not in err
    assert out == "" and err.count("\n") <= 2


def test_unknown_words_are_refused_by_the_parser(capsys):
    for argv in ([], ["fly"], ["run", "--target", "abacus"]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
    assert "abacus" in capsys.readouterr().err


def test_interrupt_ends_cleanly():
    command = [sys.executable, "-m", "openlpu", "run", "demo", "KING", "--target", "ref", "--max-tokens", "500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.read(5)  # it has begun to answer
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip() == "openlpu: interrupted"


def test_a_reader_that_goes_away_is_no_traceback():
    command = f"'{sys.executable}' -m openlpu run demo KING --target ref --max-tokens 40 | head -c 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("KI", "")


def output(capsys, *argv: str, status: int = 0) -> dict:
    assert main([*argv, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_targets_print_the_same_ids_hashes_and_fingerprint(capsys):
    results = [
        output(capsys, "run", "demo", "A", "--target", target, "--max-tokens", "2", "--context", "64")
        for target in ("ref", "cpu", "chip")
    ]
    for field in ("text", "token_ids", "logits_sha256", "fingerprint"):
        assert results[0][field] == results[1][field] == results[2][field]
    cycles = results[2]["cycles"]
    assert cycles["clock"] == "cycles" and len(cycles["per_token"]) == 2 and min(cycles["per_token"]) > 0


def test_a_replay_that_differs_is_said_and_fails(capsys, monkeypatch):
    from openlpu import compile as pipeline

    start = pipeline.start

    def other(compiled, target, **options):
        """A chip that holds another number format."""
        return start(pipeline.compile("demo", scheme=Scheme(kv_bits=16)) if target == "chip" else compiled, "ref")

    monkeypatch.setattr(pipeline, "start", other)
    assert main(["run", "--max-tokens", "2"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [True, False])
def test_check_prints_a_row_per_case_and_fails_on_a_difference(capsys, monkeypatch, as_json):
    from openlpu.tokens import check as checks

    some = [checks.Case("ref"), checks.Case("cpu", 3, 7, threads=2, path="portable")]
    monkeypatch.setattr(checks, "cases", lambda paths, chip, layers: some)
    monkeypatch.setattr("openlpu._base.cores.usable_cores", lambda: 1)  # what is patched holds in this process
    if as_json:
        result = output(capsys, "check")
        assert result["distinct"] == 1 and [c["threads"] for c in result["cases"]] == [0, 2]
        assert all(len(c["sha256"]) == 64 and c["wall_s"] > 0 for c in result["cases"])
        monkeypatch.setattr(checks, "run_case", lambda case, graph, load: str(case))
        assert "outside the layers" in output(capsys, "check", status=1)["difference"]
    else:
        assert main(["check", "demo"]) == 0
        rows = capsys.readouterr().out.splitlines()
        assert len(rows) == 3 and rows[2].startswith("2 cases, 1 distinct; --splits") and " wall " in rows[0]


def test_accuracy_compares_formats_on_a_text(capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("ROMEO:\nBut soft, what light?\n<|endoftext|>\nJULIET:\nO Romeo!\n" * 2)
    result = output(capsys, "accuracy", "demo", str(text), "--windows", "3")
    assert (result["windows"], len(result["layers"])) == (3, 6)
    assert all(abs(f["excess"]) < 0.05 for f in result["formats"]) and len(result["formats"]) >= 2
    text.write_bytes(b"\xff\xfe")
    assert main(["accuracy", "demo", str(text)]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_conformance_exports_its_vectors(capsys, tmp_path):
    files = output(capsys, "conformance", "export", str(tmp_path / "vectors"))["files"]
    written = {path.name for path in (tmp_path / "vectors").iterdir()}
    assert set(files) < written and "exp.safetensors" in files
