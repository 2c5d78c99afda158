"""A folder becomes a checkpoint whole, or one error says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from openlpu._base.errors import BadCheckpoint, DoesNotFit
from openlpu._base.text import dump
from openlpu.checkpoint import memory
from openlpu.checkpoint.folder import Sampling, load
from openlpu.graph import build
from openlpu.graph.evaluate import evaluate


def test_demo_writes_english() -> None:
    """The embedded model predicts a line of Shakespeare far better than chance: 2.5 nats against ln 1024 = 6.9."""
    demo = load("demo")
    ids = demo.tokenizer.encode("ROMEO:\nWhat shall I do?\n\nJULIET:\nMy lord, I will not go.\n")
    logits = evaluate(build(demo), ids)[:-1].astype(np.float64)
    chosen = logits[np.arange(len(logits)), ids[1:]]
    assert (np.log(np.exp(logits).sum(axis=1)) - chosen).mean() < 2.5
    assert demo.config.hidden % 256 == 0 and demo.config.intermediate % 256 == 0
    assert sum(file.stat().st_size for file in demo.path.iterdir()) < 8_000_000


def test_generation_defaults(models: Path) -> None:
    assert load(models / "smollm").sampling == Sampling(True, 0.2, 0, 0.95, 0.0, 1.0)
    assert load(models / "llama2").sampling == Sampling()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": "hot"}, "temperature: is 'hot', must be a number"),
        ({"top_k": -1}, "top_k: is -1, must be at least 0"),
    ],
)
def test_wrong_generation_defaults_are_named(edited: Callable[..., Path], fields: dict, message: str) -> None:
    folder = edited()
    (folder / "generation_config.json").write_text(json.dumps(fields))
    with pytest.raises(BadCheckpoint, match=rf"generation_config\.json: {message}"):
        load(folder)


def test_dump_has_every_tensor_and_no_path_of_this_machine(models: Path) -> None:
    text = dump(load(models / "llama2"))
    assert text.count("sha256:") == 21 and "path: llama2\n" in text and str(models) not in text


def test_hash_is_of_the_content_not_of_the_files(edited: Callable[..., Path]) -> None:
    folder = edited("llama2")
    before = load(folder).sha256()
    save_file(dict(load(folder).tensors), folder / "model.safetensors")  # one file instead of two
    assert load(folder).sha256() == before
    changed = load_file(folder / "model.safetensors")
    changed["model.norm.weight"] = changed["model.norm.weight"] * np.float32(2)
    save_file(changed, folder / "model.safetensors")
    assert load(folder).sha256() != before


def test_hash_depends_on_configuration_and_tokenizer(edited: Callable[..., Path]) -> None:
    folder = edited("llama2")
    before = load(folder).sha256()
    assert load(folder, context=32).sha256() != before
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"prepend":"▁"', '"prepend":"_"'))
    assert load(folder).sha256() != before


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such/folder", "no/such/folder: no such folder"), (__file__, r"test_folder\.py: is a file, not a folder")],
)
def test_what_is_not_a_folder(name: str, message: str) -> None:
    with pytest.raises(BadCheckpoint, match=rf"{message}\n  fix: name a Hugging Face model folder, .*, or demo"):
        load(name)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", r"smollm/config\.json: the file is missing"),
        ("tokenizer.json", r"smollm/tokenizer\.json: the tokenizer is missing"),
        ("model.safetensors", r"smollm: no model\.safetensors"),
    ],
)
def test_a_missing_file_is_named(edited: Callable[..., Path], file: str, message: str) -> None:
    folder = edited()
    (folder / file).unlink()
    with pytest.raises(BadCheckpoint, match=message):
        load(folder)


def test_a_truncated_model_is_refused(edited: Callable[..., Path]) -> None:
    file = edited() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: model\..*: truncated"):
        load(file.parent)


def test_a_tokenizer_of_another_model_is_refused(edited: Callable[..., Path]) -> None:
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json: .* has 61 tokens, .* vocab_size is 60"):
        load(edited(vocab_size=60))


def test_too_little_memory_is_said_before_loading(models: Path) -> None:
    """The tiny smollm: its weights once as codes, 64 positions of K and V, and its largest tensor as fp32."""
    checkpoint = load(models / "smollm")
    weights = sum(entry.count for entry in checkpoint.tensors.entries.values())
    need = weights + 2 * 2 * 1 * 16 * 64 + 4 * 64 * 48
    assert memory.required(checkpoint.config, checkpoint.tensors) == need
    load(models / "smollm", room=need)
    message = r"smollm: not enough memory: .* at least 43\.5 kB, 43\.5 kB are available\n  fix: free 1 B"
    with pytest.raises(DoesNotFit, match=message):
        load(models / "smollm", room=need - 1)


def test_available_memory_is_the_least_of_machine_and_control_group(tmp_path: Path) -> None:
    room = memory.available()
    assert room is None or 2**20 < room < 2**50
    for file, text in {
        "memory.max": "1000\n",
        "memory.current": "700\n",
        "memory.stat": "anon 500\nfile 200\n",
    }.items():
        (tmp_path / file).write_text(text)
    assert memory._control_group(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._control_group(tmp_path) is None
