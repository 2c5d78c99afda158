"""Every architecture's graph, evaluated in floating point, against transformers' logits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu._base.text import dump
from openlpu.checkpoint import config
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.graph.evaluate import evaluate
from openlpu.graph.models import ARCHITECTURES
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.target.ref.run import trace

TINY = ("llama2", "llama3", "llama-bias", "smollm", "mistral", "qwen2", "qwen3", "mixtral")
VARIANTS = json.loads((Path(__file__).parents[1] / "golden" / "models" / "variants.json").read_text())


@pytest.mark.parametrize("name", TINY)
def test_logits_equal_those_of_transformers(models: Path, name: str) -> None:
    golden = load_file(models / name / "golden.safetensors")
    logits = evaluate(build(load(models / name)), golden["ids"].tolist())
    assert logits.dtype == np.float32
    assert np.abs(logits - golden["logits"]).max() <= 1e-5 * np.abs(golden["logits"]).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_rope_and_window_equal_those_of_transformers(
    models: Path, edited: Callable[..., Path], variant: str
) -> None:
    base, fields = VARIANTS[variant]["base"], VARIANTS[variant]["fields"]
    ids = load_file(models / base / "golden.safetensors")["ids"].tolist()
    wanted = load_file(models / "variants.safetensors")[variant]
    graph = build(load(edited(base, **fields)))
    logits = evaluate(graph, ids)
    assert np.abs(logits - wanted).max() <= 1e-5 * np.abs(wanted).max()
    integer = trace(lower(graph, Scheme(kv_bits=16, outlier_share=1.0)), ids, lambda node, value: None)
    assert np.linalg.norm(integer - wanted) < 0.08 * np.linalg.norm(wanted)  # without the variant 0.4 or more


@pytest.mark.parametrize("name", TINY)
def test_logits_depend_on_every_parameter(models: Path, name: str) -> None:
    """A parameter that is read but not used, or bound to the wrong operator, would pass unnoticed otherwise."""
    graph = build(load(models / name))
    ids = load_file(models / name / "golden.safetensors")["ids"].tolist()
    plain = evaluate(graph, ids)
    for key in graph.params:
        changed = {**graph.params, key: graph.params[key] * np.float32(1.5) + np.float32(0.01)}
        assert (evaluate(dataclasses.replace(graph, params=changed), ids) != plain).any(), key


@pytest.mark.parametrize("name", ["smollm", "qwen3"])
def test_dump(models: Path, name: str, golden: Callable[[str], None]) -> None:
    golden(dump(build(load(models / name))))


def test_every_architecture_that_loads_has_a_graph_and_the_other_way_round() -> None:
    assert set(ARCHITECTURES) == {*config.ARCHITECTURES, *config.ENCODERS}


def test_truncated_graph_is_the_model_with_fewer_layers(models: Path) -> None:
    graph = build(load(models / "qwen2"))
    seen = {}
    evaluate(graph, [5, 6, 7], lambda node, value: seen.update({node.output: value}))
    ends = {}
    evaluate(graph.truncate(1), [5, 6, 7], lambda node, value: ends.update({node.output: value}))
    np.testing.assert_array_equal(ends["layers.0.out"], seen["layers.0.out"])
    assert "layers.1.out" not in ends
    assert ends["logits"].shape == seen["logits"].shape


def test_parameters_stay_in_their_file(models: Path) -> None:
    """fp32 weights are views of the mapped file: loading a model copies none of them."""
    checkpoint = load(models / "llama2")
    weight = build(checkpoint).params["model.layers.1.mlp.up_proj.weight"]
    assert not weight.flags.owndata and not weight.flags.writeable
    base = weight
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)


@pytest.fixture
def rewritten(edited: Callable[..., Path]) -> Callable[[dict[str, np.ndarray | None]], Path]:
    """The tiny llama2 in one file, some tensors replaced (or, with None, left out)."""

    def write(changes: dict[str, np.ndarray | None]) -> Path:
        folder = edited("llama2")
        tensors: dict[str, np.ndarray | None] = dict(load(folder).tensors)
        kept = {name: array for name, array in (tensors | changes).items() if array is not None}
        save_file(kept, folder / "model.safetensors")
        return folder

    return write


HALF = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model.norm.weight": None}, BadCheckpoint, r"llama2: model\.norm\.weight: the tensor is missing"),
        ({"lm_head.weight": None}, BadCheckpoint, r"llama2: lm_head\.weight: the tensor is missing"),
        (
            {"model.layers.1.mlp.up_proj.weight": np.zeros((3, 2), np.float32)},
            BadCheckpoint,
            r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight: .* shape \[3, 2\], .* asks for \[40, 32\]",
        ),
        (
            {"model.norm.weight": np.zeros(32, np.int8)},
            Unsupported,
            r"model\.safetensors: model\.norm\.weight: .* type I8\n  fix: one of: F32, F16, BF16",
        ),
    ],
)
def test_tensors_are_checked_against_the_configuration(
    rewritten: Callable[..., Path], changes: dict, error: type[Exception], message: str
) -> None:
    folder = rewritten(changes)
    with pytest.raises(error, match=message):
        build(load(folder))


def test_nan_in_a_weight_names_it(rewritten: Callable[..., Path]) -> None:
    graph = build(load(rewritten({"model.norm.weight": np.full(32, np.nan, np.float32)})))
    with pytest.raises(BadCheckpoint, match=r"model\.norm\.weight: contains a NaN"):
        evaluate(graph, [1, 2])


def test_tensors_the_model_does_not_have_are_tolerated(rewritten: Callable[..., Path]) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": HALF, "model.steps": np.zeros(1, np.int64)}
    graph = build(load(rewritten(extra)))
    assert not extra.keys() & set(graph.params)
    assert evaluate(graph, [1, 2]).shape == (2, 64)


def test_real_model_gives_its_golden_tokens_and_logits(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    graph = build(load(folder))
    for case in json.loads((folder / "golden.json").read_text())["greedy"]:
        prompt, greedy = case["prompt_ids"], case["greedy_ids"]
        logits = evaluate(graph, prompt + greedy)[len(prompt) - 1 : -1]
        assert logits.argmax(axis=1).tolist() == greedy
        for row, step in zip(logits, case["first_steps"], strict=False):
            np.testing.assert_allclose(row[step["top5_ids"]], step["top5_logits"], atol=1e-3)


def test_real_model_gives_its_golden_losses(shared: Path, models: Path) -> None:
    expected = json.loads((models / "stories260K.json").read_text())
    checkpoint = load(shared / "models" / "stories260K")
    graph = build(checkpoint)
    texts = (shared / "data" / expected["file"]).read_text("utf-8").split("<|endoftext|>")
    for text, loss in zip(texts, expected["mean_nll"], strict=False):
        ids = checkpoint.tokenizer.encode(text.strip("\n"))[:256]
        logits = evaluate(graph, ids)[:-1].astype(np.float64)
        top = logits.max(axis=1)
        norm = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        assert abs((norm - logits[np.arange(len(logits)), ids[1:]]).mean() - loss) < 1e-5
