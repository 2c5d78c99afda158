"""gpt-oss in the spelling of its checkpoints: the float graph is the published model, the integer one runs on chips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import same, tokens
from safetensors.numpy import save_file

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu.arch.chip import load_chip
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.graph.evaluate import evaluate
from openlpu.graph.rotary import attention_factor, frequencies
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.chip import run as chip
from openlpu.target.cpu import run as cpu
from openlpu.target.ref import run as ref

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False,
        "beta_fast": 32.0, "beta_slow": 1.0}
HIDDEN, HEADS, GROUPS, DIM, INNER, EXPERTS, CHOSEN, LAYERS, WINDOW, VOCAB = 24, 4, 2, 8, 20, 5, 3, 2, 4, 64
CONFIG: dict[str, Any] = {
    "model_type": "gpt_oss", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS, "head_dim": DIM, "intermediate_size": INNER, "num_local_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN, "vocab_size": VOCAB, "sliding_window": WINDOW, "swiglu_limit": 7.0,
    "max_position_embeddings": 64, "rope_theta": 150000.0, "rope_scaling": YARN, "attention_bias": True,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
}


def drawn() -> dict[str, np.ndarray]:
    """Tensors under the names, and in the shapes, of Hugging Face; loud enough that gates reach their limits."""
    rng, out = np.random.default_rng(7), dict[str, np.ndarray]()

    def add(name: str, *shape: int, scale: float = 0.0) -> None:
        out[name] = (rng.standard_normal(shape) * (scale or shape[-1] ** -0.5)).astype(np.float32)

    add("model.embed_tokens.weight", VOCAB, HIDDEN, scale=1)
    add("lm_head.weight", VOCAB, HIDDEN)
    for name in ["model.norm", *(f"model.layers.{i}.{w}_layernorm" for i in range(LAYERS)
                                 for w in ("input", "post_attention"))]:
        out[f"{name}.weight"] = (1 + rng.standard_normal(HIDDEN) / 8).astype(np.float32)
    for i in range(LAYERS):
        at = f"model.layers.{i}.self_attn"
        for word, rows, columns in (("q", HEADS * DIM, HIDDEN), ("k", GROUPS * DIM, HIDDEN),
                                    ("v", GROUPS * DIM, HIDDEN), ("o", HIDDEN, HEADS * DIM)):
            add(f"{at}.{word}_proj.weight", rows, columns)
            add(f"{at}.{word}_proj.bias", rows, scale=0.3)
        add(f"{at}.sinks", HEADS, scale=1)
        at = f"model.layers.{i}.mlp"
        add(f"{at}.router.weight", EXPERTS, HIDDEN)
        add(f"{at}.router.bias", EXPERTS, scale=0.3)
        add(f"{at}.experts.gate_up_proj", EXPERTS, HIDDEN, 2 * INNER, scale=1.2)
        add(f"{at}.experts.gate_up_proj_bias", EXPERTS, 2 * INNER, scale=0.3)
        add(f"{at}.experts.down_proj", EXPERTS, INNER, HIDDEN, scale=0.1)
        add(f"{at}.experts.down_proj_bias", EXPERTS, HIDDEN, scale=0.3)
    return out


def published(t: dict[str, np.ndarray], ids: list[int], folder: Path) -> np.ndarray:
    """The logits of every position, token by token and expert by expert, in 64 bits."""
    rope = load(folder).config.rope
    angle = np.outer(np.arange(len(ids)), [float(f) for f in frequencies(rope, DIM)])
    cos, sin = (attention_factor(rope) * f(angle) for f in (np.cos, np.sin))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x) + 1e-5) * t[f"{name}.weight"]

    def turned(x: np.ndarray, p: int) -> np.ndarray:
        a, b = x[: DIM // 2], x[DIM // 2 :]
        return np.concatenate([a * cos[p] - b * sin[p], b * cos[p] + a * sin[p]])

    cache: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(LAYERS)]
    logits = []
    for p, token in enumerate(ids):
        x = t["model.embed_tokens.weight"][token].astype(np.float64)
        for i in range(LAYERS):
            at = f"model.layers.{i}"
            h = norm(x, f"{at}.input_layernorm")
            q, k, v = (t[f"{at}.self_attn.{w}_proj.weight"] @ h + t[f"{at}.self_attn.{w}_proj.bias"] for w in "qkv")
            q = [turned(one, p) for one in q.reshape(HEADS, DIM)]
            cache[i].append((np.stack([turned(one, p) for one in k.reshape(GROUPS, DIM)]), v.reshape(GROUPS, DIM)))
            seen = cache[i][-WINDOW:] if i % 2 == 0 else cache[i]
            heads = []
            for j in range(HEADS):
                g = j // (HEADS // GROUPS)
                score = np.array([q[j] @ keys[g] * DIM**-0.5 for keys, _ in seen] + [t[f"{at}.self_attn.sinks"][j]])
                weight = np.exp(score - score.max())
                weight /= weight.sum()
                heads.append(sum(w * values[g] for w, (_, values) in zip(weight[:-1], seen, strict=True)))
            x = x + t[f"{at}.self_attn.o_proj.weight"] @ np.concatenate(heads) + t[f"{at}.self_attn.o_proj.bias"]
            x = x + mlp(t, f"{at}.mlp", norm(x, f"{at}.post_attention_layernorm"))
        logits.append(t["lm_head.weight"] @ norm(x, "model.norm"))
    return np.array(logits)


def mlp(t: dict[str, np.ndarray], at: str, h: np.ndarray) -> np.ndarray:
    router = t[f"{at}.router.weight"] @ h + t[f"{at}.router.bias"]
    best = np.argsort(-router)[:CHOSEN]
    share = np.exp(router[best] - router[best].max())
    out = np.zeros(HIDDEN)
    for e, weight in zip(best, share / share.sum(), strict=True):
        both = h @ t[f"{at}.experts.gate_up_proj"][e] + t[f"{at}.experts.gate_up_proj_bias"][e]
        gate, up = np.minimum(both[0::2], 7), np.clip(both[1::2], -7, 7)
        made = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
        out += weight * (made @ t[f"{at}.experts.down_proj"][e] + t[f"{at}.experts.down_proj_bias"][e])
    return out


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A checkpoint with the tokenizer of another model."""
    shutil.copytree(models / "mixtral", tmp_path / "model")
    made = tmp_path / "model"
    (made / "config.json").write_text(json.dumps(CONFIG))
    save_file(drawn(), made / "model.safetensors")
    return made


def test_the_float_graph_is_the_published_model(folder: Path) -> None:
    ids = list(range(3, 15))
    want = published(drawn(), ids, folder)
    assert np.abs(evaluate(build(load(folder)), ids) - want).max() < 2e-5 * np.abs(want).max()


def test_the_integer_graph_gives_the_same_bits_on_a_chip_and_on_a_processor(folder: Path) -> None:
    scheme = Scheme()
    graph = lower(prepare(build(load(folder)), scheme, ref.trace), scheme)
    chunk = Chunk(0, 0, tokens(7, graph.config), every=True)
    got = ref.load(graph).run([chunk])
    assert same(chip.load(graph, chip=load_chip("tiny")).run([chunk]), got)
    native = cpu.load(graph, threads=2)
    assert same(native.run([chunk]), got)
    native.close()
    want = published(drawn(), list(chunk.tokens), folder)
    assert np.linalg.norm(got[0] - want) < 0.1 * np.linalg.norm(want)


def test_what_is_not_done_is_refused(folder: Path) -> None:
    with pytest.raises(Unsupported, match="a 4-bit KV cache beside attention sinks"):
        prepare(build(load(folder)), Scheme(kv_bits=4), ref.trace)
    for change, why in (({"swiglu_limit": 5.0}, "another limit"), ({"quantization_config": {}}, "already quantized")):
        (folder / "config.json").write_text(json.dumps(CONFIG | change))
        with pytest.raises(Unsupported, match=why):
            load(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"intermediate_size": 19}))
    with pytest.raises(BadCheckpoint, match=r"gate_up_proj: the tensor has shape \[5, 24, 40\], .* asks for .*38"):
        build(load(folder))
