"""MXFP4 experts of gpt-oss, in the layout in which they were published: the numbers that they stand for, exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import same
from safetensors.numpy import save_file

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu.checkpoint import mxfp4
from openlpu.checkpoint.folder import load
from openlpu.graph import build, decoder
from openlpu.graph.ir import Graph
from openlpu.graph.models.gpt_oss import variant
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.cpu import run as cpu
from openlpu.target.ref import run as ref

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
HIDDEN, INNER, EXPERTS = 64, 32, 3
CONFIG: dict[str, Any] = {
    "model_type": "gpt_oss", "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": INNER, "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2, "vocab_size": 64, "sliding_window": 8, "swiglu_limit": 7.0, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "rope_theta": 150000.0, "tie_word_embeddings": False, "hidden_act": "silu",
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]},
}


def number(blocks: np.ndarray, scales: np.ndarray, row: tuple[int, ...], column: int) -> float:
    """One number of a packed matrix, by the definition of the format."""
    group, at = divmod(column, 32)
    code = int(blocks[(*row, group, at // 2)]) >> 4 * (at % 2) & 15
    return (-1.0 if code & 8 else 1.0) * E2M1[code & 7] * 2.0 ** (int(scales[(*row, group)]) - 127)


def written(folder: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """A checkpoint as Hugging Face has it: experts in blocks, all else in floats."""
    (folder / "config.json").write_text(json.dumps(config))
    rng, out = np.random.default_rng(3), dict[str, np.ndarray]()
    shapes = decoder.shapes(load(folder).config, variant(load(folder).config))
    for name, shape in shapes.items():
        if ".experts." not in name:
            out[name] = (rng.standard_normal(shape) * shape[-1] ** -0.5 + ("norm" in name)).astype(np.float32)
    at = "model.layers.0.mlp.experts"
    for word, rows, columns in (("gate_up", 2 * INNER, HIDDEN), ("down", HIDDEN, INNER)):
        shape = (EXPERTS, rows, columns // 32)
        out[f"{at}.{word}_proj_blocks"] = rng.integers(0, 256, (*shape, 16)).astype(np.uint8)
        out[f"{at}.{word}_proj_scales"] = rng.integers(120, 125, shape).astype(np.uint8)
        out[f"{at}.{word}_proj_bias"] = rng.standard_normal((EXPERTS, rows)).astype(np.float32)
    save_file(out, folder / "model.safetensors")
    return out


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A folder with the tokenizer of another model."""
    shutil.copytree(models / "mixtral", tmp_path / "model")
    return tmp_path / "model"


def logits(graph: Graph, target: Any) -> list[np.ndarray]:
    made = target.load(graph)
    try:
        return made.run([Chunk(0, 0, (5, 9, 33, 2, 60), every=True)])
    finally:
        made.close()


def test_experts_in_blocks_are_the_matrices_that_they_stand_for(folder: Path) -> None:
    tensors = written(folder, CONFIG)
    graph = build(load(folder))
    for e in range(EXPERTS):
        for word, of, first, step in (("gate", "gate_up", 0, 2), ("up", "gate_up", 1, 2), ("down", "down", 0, 1)):
            at = "model.layers.0.mlp.experts"
            got = graph.params[f"{at}.{e}.{word}_proj.weight"]
            packed = tensors[f"{at}.{of}_proj_blocks"], tensors[f"{at}.{of}_proj_scales"]
            want = [[number(*packed, (e, first + step * r), c) for c in range(got.shape[1])] for r in range(len(got))]
            assert got.dtype == np.float32 and np.array_equal(got, want)
            bias = graph.params[f"{at}.{e}.{word}_proj.bias"]
            assert np.array_equal(bias, tensors[f"{at}.{of}_proj_bias"][e, first::step])
    graph = lower(graph, Scheme())
    assert same(logits(graph, cpu), logits(graph, ref))


def test_every_scale_is_exact_and_one_is_none() -> None:
    blocks = np.tile(np.arange(16, dtype=np.uint8) * 17, (1, 256, 1))
    scales = np.arange(256, dtype=np.uint8)[None]
    got = mxfp4.numbers(blocks, scales).reshape(256, 32)
    for e in range(253):  # of the largest, not all are in fp32
        want = [number(blocks, scales, (0,), 32 * e + c) for c in range(32)]
        assert np.array_equal(got[e], np.array(want))
    assert np.isinf(got[253]).any() and np.isnan(got[255]).all()


def test_what_is_wrong_is_named(folder: Path) -> None:
    tensors = written(folder, CONFIG)
    name = "model.layers.0.mlp.experts.down_proj_scales"
    tensors[name][1, 2, 0] = 255
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=f"{name}: contains a NaN"):
        lower(build(load(folder)), Scheme())
    save_file(tensors | {name: tensors[name][:, :5]}, folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"scales: the tensor has shape \[3, 5, 1\], .* asks for \[3, 64, 1\]"):
        build(load(folder))
    for change in ({"quant_method": "fp8"}, {"quant_method": "mxfp4", "model_type": "llama"}):
        (folder / "config.json").write_text(json.dumps(
            CONFIG | {"model_type": change.pop("model_type", "gpt_oss"), "quantization_config": change}))
        with pytest.raises(Unsupported, match="already quantized"):
            load(folder)
