"""Programs without weights, and weights into programs: what `load-weights` writes is what compiling would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import CASES, random_graph

from openlpu.cli import main
from openlpu.schedule import bundle

CHIP, NODE = ["--chip", "tiny"], ["--system", "tiny-node", "--chips", "2", "--stages", "2", "--tensor", "1"]
Edited = Callable[..., Path]


def other_weights(folder: Path) -> str:
    """The model in a folder, with random weights and another end of text."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert {x["dtype"] for x in json.loads(data[8:start]).values() if "dtype" in x} == {"BF16"}
    random = np.random.default_rng(7).normal(0, 0.05, (len(data) - start) // 2).astype("<f4").view("<u2")[1::2]
    path.write_bytes(data[:start] + random.tobytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [3, 5]}))
    return str(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("where", [CHIP, NODE], ids=["chip", "system"])
def test_loaded_weights_are_compiled_weights(where: list[str], models: Path, edited: Edited, tmp_path: Path) -> None:
    stored, want, new = tmp_path / "stored", tmp_path / "want", tmp_path / "new"
    other = other_weights(edited())
    assert main(["compile", str(models / "smollm"), *where, "-o", str(stored)]) == 0
    assert main(["compile", other, *where, "-o", str(want)]) == 0
    before = files(stored)
    assert main(["load-weights", str(stored), other, "-o", str(new)]) == 0
    assert files(new) == files(want) and files(stored) == before
    assert main(["load-weights", str(stored), other]) == 0
    assert files(stored) == files(want) != before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("where", [CHIP, NODE], ids=["chip", "system"])
def test_a_program_from_shapes_takes_weights(
    where: list[str], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, want = tmp_path / "stored", tmp_path / "want"
    model = str(models / "smollm")
    assert main(["compile", f"{model}/config.json", "--shapes-only", *where, "-o", str(stored)]) == 0
    assert "written to" in (said := capsys.readouterr().out) and "without weights" in said
    assert main(["show", str(stored), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["weights"] is False and sum(about["segments"][0]["path"].values()) == about["segments"][0]["cycles"]
    assert main(["verify", str(stored), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["accepted"] and not said["values"]
    assert [c["stages"] for c in said["checked"]] == ([[0]] if where is CHIP else [[0], [1]])
    assert where is CHIP or said["checked"][0]["handed"] == said["checked"][1]["arriving"] > 0
    assert main(["verify", str(stored), "--tokens", "1"]) == 2
    assert "without values no token runs" in capsys.readouterr().err
    with pytest.raises(bundle.ProgramError, match="compiled from shapes"):
        _ = bundle.load(stored).graph
    assert main(["load-weights", str(stored), model]) == 0
    assert main(["compile", model, *where, "-o", str(want)]) == 0
    assert files(stored) == files(want)


@pytest.mark.parametrize(("name", "fields", "said"), [
    ("qwen2", {}, "these weights need another program"),
    ("smollm", {"max_position_embeddings": 32}, "for 32 at most\n  fix: compile the program with --context 32"),
    ("smollm", {"rms_norm_eps": 0.5}, "norm_eps is 0.5, the program's 1e-05"),
])
def test_another_shape_is_refused_by_its_field(
    name: str, fields: dict[str, Any], said: str, models: Path, edited: Edited, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compile", str(models / "smollm"), *CHIP, "-o", str(tmp_path / "stored")]) == 0
    before = files(tmp_path / "stored")
    assert main(["load-weights", str(tmp_path / "stored"), str(edited(name, **fields))]) == 2
    assert said in capsys.readouterr().err
    assert files(tmp_path / "stored") == before


def test_rounding_decides_no_program() -> None:
    """Which matrices keep 8 bits depends on weights; to a chip all codes are bytes."""
    config, variant, scheme = CASES["blocks"]
    eight, mixed = (random_graph(config, variant, s) for s in (replace(scheme, weight_bits=8), scheme))
    stored = [{word for node in graph.nodes for word in node.params} for graph in (eight, mixed)]
    assert stored[1] - stored[0] == {"blocks"}
    bundle.require_same(eight, mixed)


def test_a_failed_write_leaves_what_was_there(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "stored"
    assert main(["compile", str(models / "smollm"), *CHIP, "-o", str(stored)]) == 0
    before = files(stored)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "save_file", full)
    assert main(["load-weights", str(stored), str(models / "smollm")]) == 2
    monkeypatch.undo()
    assert "cannot be written: there is no room left\n  fix: " in capsys.readouterr().err
    (stored / "program" / "resident.safetensors").write_bytes(b"damaged")
    assert main(["load-weights", str(stored), str(models / "smollm")]) == 2
    assert "resident.safetensors: this file differs" in capsys.readouterr().err
    assert files(stored) == before | {"program/resident.safetensors": b"damaged"}
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["stored"]


