"""config.json in, ModelConfig out: the spellings real checkpoints use, and an error for every wrong field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openlpu._base.errors import BadCheckpoint, BadRequest, OpenLpuError, Unsupported
from openlpu.checkpoint.config import ModelConfig, Rope, read
from openlpu.checkpoint.fields import Fields
from openlpu.checkpoint.folder import load
from openlpu.graph import build

LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def parsed(
    edited: Callable[..., Path], name: str = "smollm", context: int | None = None, **fields: object
) -> ModelConfig:
    folder = edited(name, **fields)
    generation = Fields.optional(folder / "generation_config.json")
    return read(Fields.read(folder / "config.json"), generation, context)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "mixtral"])
def test_absent_fields_mean_what_transformers_means(models: Path, kind: str) -> None:
    expected = json.loads((models / "absent.json").read_text())[kind]
    fields, none = Fields(Path("config.json"), expected["config"]), Fields(Path("g"), {})
    config = read(fields, none)
    assert config.window == (expected["window"] or 0)
    found = {"kv_heads": config.kv_heads, "head_dim": config.head_dim, "norm_eps": config.norm_eps}
    found |= {"theta": config.rope.theta, "tied": config.tied, "bos": config.bos, "context": config.context}
    found["eos"] = config.eos[0] if config.eos else None
    assert found == {key: expected[key] for key in found}


def test_experts_are_counted_where_the_architecture_has_some(edited: Callable[..., Path]) -> None:
    config = parsed(edited, "mixtral", sliding_window=16)
    assert (config.experts, config.experts_per_token, config.window) == (5, 2, 16)
    assert parsed(edited, "mistral", num_local_experts=4).experts == 0
    with pytest.raises(BadCheckpoint, match="num_experts_per_tok: 2 of 1 experts"):
        read(Fields(Path("config.json"), {"model_type": "mixtral", "hidden_size": 8, "num_attention_heads": 8,
                                          "num_hidden_layers": 1, "num_local_experts": 1}), Fields(Path("g"), {}))


def test_null_kv_heads_are_as_many_as_heads(edited: Callable[..., Path]) -> None:
    assert parsed(edited, "mistral", num_key_value_heads=None).kv_heads == 4


def test_rope_is_found_where_each_version_of_transformers_writes_it(edited: Callable[..., Path]) -> None:
    expected = Rope(500000.0, "llama3", 32.0, 1.0, 4.0, 8192)
    modern = LLAMA3 | {"rope_theta": 500000.0}
    assert parsed(edited, "llama2", rope_theta=500000.0, rope_scaling=LLAMA3).rope == expected
    assert parsed(edited, "llama3", rope_theta=..., rope_scaling=..., rope_parameters=modern).rope == expected
    assert parsed(edited, "smollm", rope_theta=..., rope_parameters={"rope_type": "default"}).rope == Rope(10000.0)
    assert parsed(edited, "qwen3", rope_parameters=..., rope_scaling={"type": "default"}).rope == Rope(10000.0)


def test_end_tokens_of_generation_config_come_first(edited: Callable[..., Path]) -> None:
    assert parsed(edited, "smollm").eos == (0, 2)
    assert parsed(edited, "llama3").eos == (2, 3)
    assert parsed(edited, "llama2", eos_token_id=None).eos == ()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 64}),
        ("llama2", {"sliding_window": 16}),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": False}),
        ("qwen2", {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": ...}),
        ("qwen3", {"sliding_window": 16, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_windows_that_hide_nothing_are_none(edited: Callable[..., Path], name: str, fields: dict) -> None:
    config = parsed(edited, name, **fields)
    assert (config.window, config.full_layers) == (0, ())


@pytest.mark.parametrize(
    ("name", "fields", "full"),
    [
        ("mistral", {"layer_types": ["full_attention"] * 2}, ()),  # a field that Mistral does not have
        ("qwen2", {"max_window_layers": 0}, ()),
        ("qwen2", {"max_window_layers": 1}, (0,)),
        ("qwen3", {"max_window_layers": 0, "layer_types": ["sliding_attention", "full_attention"]}, (1,)),
    ],
)
def test_windows_and_the_layers_without(edited: Callable[..., Path], name: str, fields: dict, full: tuple) -> None:
    folder = edited(name, use_sliding_window=True, sliding_window=16, **fields)
    config = load(folder).config
    assert (config.window, config.full_layers) == (16, full)
    assert load(folder, context=16).config.window == 0
    windows = [node.attrs.get("window", 0) for node in build(load(folder)).nodes if node.op == "attention"]
    assert windows == [0 if i in full else 16 for i in range(2)]


def test_a_stretched_model_can_be_asked_for_more_than_its_own_context(edited: Callable[..., Path]) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    folder = edited("smollm", rope_scaling=yarn)
    assert load(folder).config.context == 64 and load(folder, context=128).config.context == 128
    with pytest.raises(BadRequest, match="a context of 129, but the model has 1 to 128 positions"):
        load(folder, context=129)
    assert load(edited("llama2", rope_scaling={"type": "linear", "factor": 1.5}), context=96).config.context == 96


def test_yarn_takes_what_is_absent_from_its_authors(edited: Callable[..., Path]) -> None:
    found = parsed(edited, "smollm", rope_scaling={"type": "yarn", "factor": 2})
    assert found.rope == Rope(100000.0, "yarn", 2.0, original_context=64)
    null = {"type": "yarn", "factor": None, "original_max_position_embeddings": 16, "beta_fast": 8, "truncate": False}
    found = parsed(edited, "qwen3", rope_parameters=..., rope_scaling=null)
    assert found.rope == Rope(10000.0, "yarn", 4.0, original_context=16, beta_fast=8.0, truncate=False)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model_type": ...}, BadCheckpoint, "model_type: the field is missing"),
        (
            {"model_type": "gpt2"},
            Unsupported,
            "model_type: unknown .* 'gpt2'\n  fix: one of: llama, mistral, qwen2, qwen3, mixtral",
        ),
        ({"hidden_act": "gelu"}, Unsupported, "hidden_act: the activation 'gelu'"),
        ({"quantization_config": {"bits": 4}}, Unsupported, "quantization_config: .* already quantized"),
        ({"hidden_size": ...}, BadCheckpoint, "hidden_size: the field is missing"),
        ({"hidden_size": "48"}, BadCheckpoint, "hidden_size: is '48', must be an integer"),
        ({"hidden_size": True}, BadCheckpoint, "hidden_size: is True, must be an integer"),
        ({"hidden_size": 50}, BadCheckpoint, "hidden_size: is 50, not a multiple of num_attention_heads 3"),
        ({"intermediate_size": 131072}, Unsupported, "131,072 channels, whose sums do not fit int32\n  fix: 131,071"),
        ({"num_hidden_layers": 0}, BadCheckpoint, "num_hidden_layers: is 0, must be at least 1"),
        (
            {"num_key_value_heads": 2},
            BadCheckpoint,
            "num_key_value_heads: is 2, num_attention_heads 3 is not a multiple",
        ),
        ({"head_dim": 15}, BadCheckpoint, "head_dim: is 15, 15 is odd"),
        ({"rms_norm_eps": 0}, BadCheckpoint, "rms_norm_eps: is 0, must be a finite number above 0"),
        ({"rms_norm_eps": float("inf")}, BadCheckpoint, "rms_norm_eps: is inf, must be a finite number"),
        ({"tie_word_embeddings": "yes"}, BadCheckpoint, "tie_word_embeddings: is 'yes', must be true or false"),
        ({"bos_token_id": "<s>"}, BadCheckpoint, "bos_token_id: is '<s>', must be a token id or a list"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
            Unsupported,
            "rope_scaling.type: the RoPE type 'dynamic', whose angles change with the length of the text\n"
            "  fix: one of: default, linear, llama3, yarn",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            Unsupported,
            "rope_parameters.rope_type: the RoPE type 'longrope', whose angles",
        ),
        ({"rope_scaling": {"type": "spiral"}}, Unsupported, "rope_scaling.type: the RoPE type 'spiral'\n"),
        ({"rope_scaling": {"type": "linear"}}, BadCheckpoint, "rope_scaling.factor: the field is missing"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 4}},
            BadCheckpoint,
            "rope_scaling.beta_fast: is 1, must not be below beta_slow 4",
        ),
        ({"rope_theta": 1}, BadCheckpoint, "rope_theta: is 1, must be a finite number above 1"),
        ({"rope_parameters": {"full_attention": {}}}, Unsupported, "rope_parameters: a rotary embedding per kind"),
        ({"partial_rotary_factor": 0.5}, Unsupported, "partial_rotary_factor: rotating a part"),
        (
            {"rope_scaling": {"rope_type": "llama3"}},
            BadCheckpoint,
            r"rope_scaling\.low_freq_factor: the field is missing",
        ),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1}},
            BadCheckpoint,
            r"rope_scaling\.high_freq_factor: is 1, must be",
        ),
        ({"rope_scaling": "llama3"}, BadCheckpoint, "rope_scaling: is 'llama3', must be an object"),
        ({"model_type": "mistral", "sliding_window": -1}, BadCheckpoint, "sliding_window: is -1, must be at least 1"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["sliding_attention"]},
            BadCheckpoint,
            "layer_types: is .*, must be a list of 2 times full_attention or sliding_attention",
        ),
    ],
)
def test_a_wrong_field_is_named(
    edited: Callable[..., Path], fields: dict, error: type[OpenLpuError], message: str
) -> None:
    with pytest.raises(error, match=rf"smollm/config\.json: {message}"):
        load(edited("smollm", **fields))


@pytest.mark.parametrize("context", [0, 65])
def test_a_context_the_model_does_not_have(edited: Callable[..., Path], context: int) -> None:
    with pytest.raises(BadRequest, match=rf"max_position_embeddings: a context of {context}, .* 1 to 64"):
        load(edited("smollm"), context=context)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1,}', "[1]", "\xff"])
def test_broken_json_is_named(edited: Callable[..., Path], text: str) -> None:
    folder = edited("smollm")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadCheckpoint, match=r"config\.json: not (valid JSON|a JSON object)"):
        load(folder)
