"""``openlpu show`` with pictures, as a user runs it: files, sizes, the context they show, energy, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openlpu.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled") / "model"
    model = Path(__file__).resolve().parent / "golden" / "models" / "smollm"
    assert main(["compile", str(model), "-o", str(folder), "--chip", "tiny"]) == 0
    return folder


def test_pictures_are_written_and_named(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, trace = tmp_path / "page.html", tmp_path / "trace.json"
    capsys.readouterr()
    assert main(["show", str(made), "--html", str(page), "--perfetto", str(trace), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    segment = result["segments"][0]
    assert result["written"]["html"] == {"file": str(page), "bytes": page.stat().st_size}
    assert result["written"]["perfetto"]["bytes"] == trace.stat().st_size
    spans = [e for e in json.loads(trace.read_text("utf-8"))["traceEvents"] if e["ph"] == "X"]
    assert len(spans) == result["written"]["perfetto"]["spans"] > segment["instructions"]
    assert f'"cycles":{segment["cycles"]}' in page.read_text("utf-8")
    assert main(["show", str(made), "--html", str(page)]) == 0
    assert f"in {page}" in capsys.readouterr().out


def test_a_trace_that_a_browser_may_not_hold_says_what_does(made: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    for limit, said in ((10**9, False), (10, True)):
        monkeypatch.setattr("openlpu.cli_program.BROWSER", limit)
        assert main(["show", str(made), "--perfetto", str(tmp_path / "trace.json")]) == 0
        assert ("trace_processor --httpd" in capsys.readouterr().out) is said


def test_energy_is_printed_and_adds_up(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(made), "--json"]) == 0
    for segment in json.loads(capsys.readouterr().out)["segments"]:
        energy = segment["energy"]
        assert energy["femtojoules"] == energy["static"] + sum(energy["dynamic"].values())
        assert energy["femtojoules_full"] == energy["femtojoules"], "one chip is its own pipeline"
        assert energy["dynamic"]["links"] == 0 < energy["dynamic"]["MXM"]
    assert main(["show", str(made)]) == 0
    text = capsys.readouterr().out
    assert "a chip for one request alone" in text and "with the pipeline full" in text


def test_the_context_picks_the_segment(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(made), "--json"]) == 0
    segments = json.loads(capsys.readouterr().out)["segments"]
    page, last = tmp_path / "page.html", segments[-1]
    assert main(["show", str(made), "--html", str(page), "--context", str(last["context"])]) == 0
    assert f'"context":"up to {last["context"]}"' in page.read_text("utf-8")
    assert f'"cycles":{last["cycles"]}' in page.read_text("utf-8")


def test_wrong_requests_are_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    for context in ("0", "-1", "100000"):
        assert main(["show", str(made), "--html", str(page), f"--context={context}"]) == 2
        assert "out of range" in capsys.readouterr().err
    assert main(["show", str(made), "--context", "5"]) == 2
    assert "this is for pictures" in capsys.readouterr().err
    assert main(["show", str(made), "--html", str(tmp_path / "no" / "page.html")]) != 0
    assert not page.exists()
