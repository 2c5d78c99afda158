"""compile, show and verify as a user runs them: folders, reports, exit codes, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from openlpu._base.errors import ProgramError
from openlpu.arch.isa import BY_NAME
from openlpu.cli import main
from openlpu.schedule import bundle, program_file
from openlpu.tokens.verify import verify


@pytest.fixture(scope="module")
def made(models_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled") / "deep" / "model"
    assert main(["compile", str(models_once), "-o", str(folder), "--chip", "tiny", "--chunk", "2"]) == 0
    return folder


@pytest.fixture(scope="module")
def models_once() -> Path:
    return Path(__file__).resolve().parent / "golden" / "models" / "smollm"


def test_compiling_twice_gives_the_same_bytes(made: Path, models_once: Path, tmp_path: Path) -> None:
    assert main(["compile", str(models_once), "-o", str(tmp_path / "again"), "--chip", "tiny", "--chunk", "2"]) == 0
    files = sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for name in files:
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert Path("tokenizer.json") in files and Path("manifest.json") in files


def test_requests_have_a_cache_each(made: Path, models_once: Path, tmp_path: Path, capsys) -> None:
    options = ["compile", str(models_once), "-o", str(tmp_path / "two"), "--requests", "2"]
    assert main([*options, "--chip", "tiny"]) == 0
    one, two = bundle.load(made).program, bundle.load(tmp_path / "two").program
    rows = [sum(len(i.addresses) for i in p.resident if i.name.startswith("kv.")) for p in (one, two)]
    assert (one.requests, two.requests) == (1, 2) and rows[1] == 2 * rows[0] > 0
    assert main(["verify", str(tmp_path / "two"), "--tokens", "2"]) == 0
    assert "2 tokens of each of 2 requests" in capsys.readouterr().out
    assert main([*options, "--target", "cpu"]) == 2 and "requests" in capsys.readouterr().err


def test_without_output_nothing_is_written(models_once: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", str(models_once), "--chip", "tiny", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    assert result["clock"] == "cycles" and result["output"] is None
    for segment in result["segments"]:
        assert segment["bound"]["cycles"] <= segment["cycles"] == sum(segment["path"].values())


def test_a_folder_with_something_in_it_is_left_alone(models_once: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine").write_text("x")
    assert main(["compile", str(models_once), "-o", str(tmp_path), "--chip", "tiny"]) == 2
    assert "there is something here already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_an_unknown_chip_is_named(models_once: Path, capsys) -> None:
    assert main(["compile", str(models_once), "--chip", "huge"]) == 2
    assert "unknown chip 'huge'" in capsys.readouterr().err


def test_show_prints_placement_use_and_path(made: Path, capsys) -> None:
    assert main(["show", str(made)]) == 0
    text = capsys.readouterr().out
    for word in ("SRAM, rows", "weights", "units in use", "VXM", "critical path", "attn.attention", "per token"):
        assert word in text
    assert main(["show", str(made), "--json"]) == 0
    manifest = json.loads((made / "manifest.json").read_text())
    result = json.loads(capsys.readouterr().out)
    single, both = result["segments"]
    assert {str(single["context"]): single["cycles"]} == manifest["cycles_per_token"]
    assert {f"{both['context']}x{both['chunk']}": both["cycles"]} == manifest["cycles_per_chunk"]
    (first,) = result["first_token"]
    assert first["prompt"] == single["context"] and first["cycles"] == first["prompt"] // 2 * both["cycles"]


def test_show_says_when_the_first_token_behind_any_prompt_comes(made: Path, capsys) -> None:
    """Of steps of two tokens and, for an odd length, one of the last."""
    assert main(["show", str(made), "--prompt", "9", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    cycles = {s["chunk"]: s["cycles"] for s in said["segments"]}
    assert said["first_token"] == [{"prompt": 9, "cycles": min(4 * cycles[2] + cycles[1], 9 * cycles[1])}]
    for options, why in ((["0"], "0 is out of"), (["65"], "use 1 to 64"), (["9", "--chip", "0"], "has no prompt")):
        assert main(["show", str(made), "--prompt", *options]) == 2 and why in capsys.readouterr().err


def test_verify_accepts_what_was_compiled(made: Path, capsys) -> None:
    assert main(["verify", str(made), "--tokens", "2"]) == 0
    assert "the reference's bits" in capsys.readouterr().out
    assert [main(["verify", str(made), "--tokens", count]) for count in ("0", "1000000")] == [2, 2]
    assert capsys.readouterr().err.count("out of range") == 2


@pytest.mark.parametrize("before, after", [("add", "sub"), ("rsqrt", "tanh")])
def test_verify_names_the_first_tensor_of_a_changed_opcode(made: Path, before: str, after: str) -> None:
    """A changed opcode is a legal program with the right claims: only values can tell."""
    loaded = bundle.load(made)
    queues = loaded.program.segments[0].queues
    name, row = max(
        ((name, int(np.flatnonzero(q["op"] == BY_NAME[before].opcode)[-1])) for name, q in queues.items()
         if (q["op"] == BY_NAME[before].opcode).any()),
        key=lambda at: int(queues[at[0]]["cycle"][at[1]]),
    )
    queues[name]["op"][row] = BY_NAME[after].opcode
    verdict = verify(loaded.graph, loaded.program, tokens=1)
    assert "differs from the reference at position 0" in verdict.difference
    assert verdict.difference.split()[0] in loaded.graph.values


def test_verify_names_a_changed_constant(made: Path) -> None:
    loaded = bundle.load(made)
    changed = int(np.float32(1 / 127).view(np.int32))  # the scale of every one-plane code
    for queue in loaded.program.segments[0].queues.values():
        if "imm" in (queue.dtype.names or ()):
            queue["imm"][queue["imm"] == changed] += 1 << 20
    assert verify(loaded.graph, loaded.program, tokens=1).difference


def test_a_changed_file_is_refused_by_name(made: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(made, tmp_path / "copy")
    path = tmp_path / "copy" / "params.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(tmp_path / "copy")]) == 2
    assert "params.safetensors: this file differs" in capsys.readouterr().err
    path.unlink()
    assert main(["verify", str(tmp_path / "copy")]) == 2
    assert "is missing" in capsys.readouterr().err
    assert main(["show", str(tmp_path)]) == 2
    assert "there is no compiled model here" in capsys.readouterr().err


def test_a_program_of_another_format_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "program", tmp_path / "program")
    program_file.load(tmp_path / "program")
    manifest = tmp_path / "program" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("openlpu program 4", "openlpu program 0"))
    with pytest.raises(ProgramError, match="not in the format"):
        program_file.load(tmp_path / "program")
