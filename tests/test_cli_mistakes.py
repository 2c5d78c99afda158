"""What a user gets wrong around programs: said at once, with what to do, and nothing is written or lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from openlpu._base import manifest
from openlpu.cli import main

PLACE = ["--chip", "tiny", "--context", "64"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    folder = tmp_path_factory.mktemp("mistakes") / "model"
    assert main(["compile", str(models / "smollm"), *PLACE, "-o", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(("command", "what"), [
    ("show DIR --html MISSING/a.html", "MISSING/a.html: its folder is missing"),
    ("show DIR --perfetto DIR", "this is a folder"),
    ("show DIR --html HERE/a --perfetto HERE/a", "trace and page cannot be one file"),
    ("show DIR --chip 0 --cycles 99999999:", "cycles: it is done in"),
    ("show DIR --chip 0 --unit ", "has no unit ''"),
    ("show DIR/manifest.json", "this is a file, not a folder"),
    ("validate --full --markdown MISSING/page.md", "its folder is missing"),
    ("check DIR", "this is a program for chips, not a model"),
    ("load-weights DIR demo -o DIR/sub", "this lies inside the compiled model"),
    ("load-weights DIR demo -o DIR", "there is something here already"),
    ("compile demo -o DIR/manifest.json/x", "this is a file, not a folder"),
    ("compile demo -o /proc/x", "/proc/x: cannot be written"),
    ("compile demo -o .", "this is the folder you are in"),
    ("compile demo --chip ", "unknown chip ''"),
    ("compile demo --system ", "unknown system ''"),
    ("compile demo --context -1", "the model has 1 to 512 positions"),
    ("compile demo --context 8 --chunk 16", "a chunk of 16 tokens is longer than the context of 8"),
    ("compile smollm2-135m --shapes-only --context 0", "a context of 0"),
    ("compile smollm2-135m --shapes-only --context 999999", "the model has"),
    ("compile --workload ", "'' is not a workload"),
    ("compile --workload matmul:1x2x3 --kv-bits 8", "kv-bits: this is for models"),
    ("compile --workload matmul:1x2x3 --target chip", "target: this is for models"),
    ("compile --workload matmul:1x2x3 --requests 1", "requests: this is for models"),
    ("compile --workload matmul:1x2x3:", "is not a workload"),
    ("compile --workload matmul:99999999999x1x1", "99,999,999,999 is out of range"),
    ("run demo --dump /proc/x", "/proc/x: cannot be written: there is no such file or folder"),
    ("run demo x --seed -1", "seed: -1 is out of range"),
    ("run DIR a DIRDIRDIRDIRDIRDIRDIRDIR b --max-tokens 1", "prompt 2 of 3: "),
    ("run DIR a b ", "prompt 3 of 3: the prompt is empty"),
    ("compile demo --dump DIR/manifest.json/x", "a part of this path is a file, not a folder"),
    ("compile demo --chip MISSING.toml", "there is no file MISSING.toml"),
    ("systems MISSING.toml", "there is no file MISSING.toml"),
    ("show DIR --html /dev/full", "/dev/full: cannot be written: there is no room left"),
    ("conformance export DIR/manifest.json", "there is something here already"),
    ("conformance export DIR/manifest.json/x", "this is a file, not a folder"),
    ("conformance export DIR", "there is something here already"),
    ("conformance export /proc/x", "/proc/x: cannot be written: there is no such file or folder"),
    ("accuracy demo MISSING", "MISSING: there is no such file or folder"),
    ("accuracy demo DIR", "DIR: this is a folder, not a file"),
    ("accuracy demo DIR/params.safetensors", "not UTF-8: "),
    ("bench demo --threads -1", "threads: -1 is out of range"),
    ("bench demo --peer-model DIR/manifest.json", "peer-model: this is what llama-bench runs"),
    ("bench demo --against openvino=python:MISSING", "there is no model MISSING"),
])
def test_it_is_said(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, what: str,
) -> None:
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    names = {"DIR": str(made), "MISSING": str(tmp_path / "missing"), "HERE": str(here)}
    for name, path in names.items():
        command, what = command.replace(name, path), what.replace(name, path)
    assert main(command.split(" ")) == 2
    said = capsys.readouterr()
    assert what in said.err and "\n  fix: " in said.err and not said.out
    assert not [*here.iterdir()] and not (tmp_path / "missing").exists()


@pytest.mark.parametrize("command", ["compile CONFIG --shapes-only --chip tiny -o NEW", "run demo --dump NEW",
                                     "load-weights DIR CHECKPOINT", "conformance export NEW"])
def test_where_there_is_no_room_nothing_is_left(
    made: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """Every write fails, that of a library in its own words; what was there stays."""
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def library(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    shutil.copytree(made, tmp_path / "made")
    names = {"CONFIG": str(models / "smollm" / "config.json"), "CHECKPOINT": str(models / "smollm"),
             "DIR": str(tmp_path / "made"), "NEW": str(tmp_path / "new")}
    before = {path: path.read_bytes() for path in (tmp_path / "made").rglob("*") if path.is_file()}
    for name, path in names.items():
        command = command.replace(name, path)
    if "load-weights" in command:
        monkeypatch.setattr("openlpu.schedule.bundle.save_file", library)
    else:
        monkeypatch.setattr(Path, "write_text", full)
        monkeypatch.setattr(Path, "write_bytes", full)
    assert main(command.split(" ")) == 2
    monkeypatch.undo()
    assert "cannot be written: there is no room left\n  fix: " in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_an_interrupt_is_one_though_something_still_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that comes while the unfinished folder is cleared away is no error of its own."""
    remove = os.rmdir

    def late(path: str, **where: int) -> None:
        if str(path).startswith(str(tmp_path)) and not (late_one := Path(path) / "late").exists():
            late_one.write_text("")
        remove(path, **where)

    with pytest.raises(KeyboardInterrupt), manifest.new_folder(tmp_path / "new"):
        monkeypatch.setattr(os, "rmdir", late)
        raise KeyboardInterrupt
    assert not (tmp_path / "new").exists()


def test_a_model_compiled_before_dumps_nothing(models: Path, tmp_path: Path, capsys) -> None:
    """And one byte of its manifest is as good as all."""
    folder = tmp_path / "cpu"
    assert main(["compile", str(models / "smollm"), "--target", "cpu", "-o", str(folder)]) == 0
    assert main(["run", str(folder), "a", "--dump", str(tmp_path / "dump")]) == 2
    assert "dump: no pass runs: this model was compiled before" in capsys.readouterr().err
    assert main(["accuracy", str(folder), __file__]) == 2
    assert "this is compiled for a processor, not a model\n  fix: name the model it was" in capsys.readouterr().err
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "0" * 64}))
    assert main(["run", str(folder), "a"]) == 2
    assert "manifest.json: this file differs from what was written" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [folder]


def test_a_folder_taken_is_said_before_the_model_is_read(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "something").touch()
    monkeypatch.setattr("openlpu.compile.compile", None)
    assert main(["compile", str(models / "smollm"), "-o", str(tmp_path)]) == 2
    assert "there is something here already" in capsys.readouterr().err


def test_weights_do_not_take_the_place_of_a_users_file(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = made / "page.html"
    assert main(["show", str(made), "--html", str(page)]) == 0
    assert main(["load-weights", str(made), "demo"]) == 2
    assert f"{page}: this file is no part of the compiled model and would be lost" in capsys.readouterr().err
    page.unlink()


def test_a_manifest_that_lacks_something_is_refused(made: Path, tmp_path: Path, capsys) -> None:
    whole = json.loads((made / "manifest.json").read_text())
    for word in ("truepoint", "weights", "sha256", "chips"):
        (tmp_path / "manifest.json").write_text(json.dumps({k: v for k, v in whole.items() if k != word}))
        assert main(["show", str(tmp_path)]) == 2
        assert f"no {word}\n  fix: compile the model again" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "verify", "run"])
def test_an_edited_manifest_is_refused(made: Path, tmp_path: Path, capsys, command: str) -> None:
    shutil.copytree(made, tmp_path / "copy")
    file = tmp_path / "copy" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chips": None}))
    assert main([command, str(tmp_path / "copy")]) == 2
    assert "this file differs from what was written" in capsys.readouterr().err


def test_a_file_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), manifest.new_file(path) as made:
        made.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]
    with manifest.new_file(Path(os.devnull)) as made:
        assert made == Path(os.devnull), "a device is written, not replaced"
