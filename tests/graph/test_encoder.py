"""Encoders as graphs: transformers' hidden states in floating point, close to them in integers, and clear errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from encoders import CONFIGS, TOKENS, TYPES, drawn, write
from safetensors.numpy import load_file

from openlpu._base.errors import BadCheckpoint, BadRequest, OpenLpuError, Unsupported
from openlpu.checkpoint.encoder import EncoderConfig, EncoderTensors
from openlpu.checkpoint.folder import read_shape
from openlpu.checkpoint.tensors import open_folder
from openlpu.graph import models
from openlpu.graph.evaluate import evaluate
from openlpu.graph.ir import Graph
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.integer import Runners, integer
from openlpu.numerics.lower import lower
from openlpu.numerics.outline import outline
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.cpu import run as cpu
from openlpu.target.ref import run as ref

GOLDEN = Path(__file__).parents[1] / "golden" / "encoders.safetensors"


def read(folder: Path, context: int | None = None) -> Graph:
    config = read_shape(folder, context)
    assert isinstance(config, EncoderConfig)
    return models.of_tensors(config, EncoderTensors(open_folder(folder), config.architecture))


def written(folder: Path, name: str, prefix: str = "") -> Path:
    write(folder, CONFIGS[name], {})
    return write(folder, CONFIGS[name], dict(models.shapes(read_shape(folder))), prefix)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_hidden_states_are_those_of_transformers(tmp_path, name):
    """Float ones to rounding, integer ones to their codes; positions after a shorter context are left out."""
    want = load_file(GOLDEN)[name]
    types = TYPES if CONFIGS[name]["model_type"] == "bert" else []
    got = evaluate(read(written(tmp_path, name)), TOKENS, types=types)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    graph = read(tmp_path, 20)
    coded = lower(prepare(graph, Scheme(), ref.trace), Scheme())
    (made,) = ref.load(coded).run([Chunk(0, 0, tuple(TOKENS), every=True, types=tuple(types))])
    assert np.linalg.norm(made - want) <= 0.02 * np.linalg.norm(want)


def bert_fp64(t: dict[str, np.ndarray], layers: int, heads: int, tokens: list[int], types: list[int]) -> np.ndarray:
    """BERT as its paper has it, in fp64, biases of keys and all."""
    t = {name: x.astype(float) for name, x in t.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-12) * t[f"{name}.weight"] + t[f"{name}.bias"]

    e = "embeddings."
    x = t[f"{e}word_embeddings.weight"][tokens] + t[f"{e}token_type_embeddings.weight"][types]
    x = norm(f"{e}LayerNorm", x + t[f"{e}position_embeddings.weight"][: len(tokens)])
    for i in range(layers):
        at = f"encoder.layer.{i}."
        q, k, v = (linear(f"{at}attention.self.{word}", x).reshape(len(x), heads, -1).swapaxes(0, 1)
                   for word in ("query", "key", "value"))
        p = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2]))
        a = (p / p.sum(axis=2, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = norm(f"{at}attention.output.LayerNorm", x + linear(f"{at}attention.output.dense", a))
        h = linear(f"{at}intermediate.dense", x)
        h = h * (1 + np.vectorize(math.erf)(h / math.sqrt(2))) / 2
        x = norm(f"{at}output.LayerNorm", x + linear(f"{at}output.dense", h))
    return x


def test_integers_are_close_to_fp64(tmp_path):
    graph = read(written(tmp_path, "bert"))
    tensors = dict(load_file(tmp_path / "model.safetensors"))
    tensors |= {name.replace("query.bias", "key.bias"): drawn(name.replace("query", "key"), x.shape)
                for name, x in tensors.items() if name.endswith("query.bias")}
    want = bert_fp64(tensors, 2, 4, TOKENS, TYPES)
    assert np.abs(want - load_file(GOLDEN)["bert"]).max() <= 1e-5 * np.abs(want).max()
    for scheme in (Scheme(), Scheme(kv_bits=16), Scheme(kv_bits=16, outlier_share=1.0)):
        coded = lower(prepare(graph, scheme, ref.trace), scheme)
        (made,) = ref.load(coded).run([Chunk(0, 0, tuple(TOKENS), every=True, types=tuple(TYPES))])
        assert np.linalg.norm(made - want) <= 0.012 * np.linalg.norm(want)


def test_names_behind_a_prefix_and_of_old_norms(tmp_path):
    plain, headed = read(written(tmp_path / "a", "bert")), read(written(tmp_path / "b", "bert", "bert."))
    state = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
             for name, x in load_file(tmp_path / "a" / "model.safetensors").items()}
    from safetensors.numpy import save_file

    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text(json.dumps(CONFIGS["bert"]))
    save_file(state, tmp_path / "c" / "model.safetensors")
    for other in (headed, read(tmp_path / "c")):
        assert all(np.array_equal(plain.params[key], other.params[key]) for key in plain.params)


def test_every_parameter_matters(tmp_path):
    """But a key's bias, which no score's order or distance knows of, and which no graph reads."""
    graph = read(written(tmp_path, "bert"))
    assert not any("key.bias" in name for name in graph.params)
    want = evaluate(graph, TOKENS, types=TYPES)
    for name in graph.params:
        params = {key: graph.params[key] for key in graph.params}
        params[name] = params[name] * np.float32(1.5)
        changed = Graph(graph.level, graph.config, graph.nodes, graph.values, params, graph.output)
        assert np.abs(evaluate(changed, TOKENS, types=TYPES) - want).max() > 1e-4, name


WRONG = [
    ({"hidden_act": "relu"}, Unsupported, "hidden_act.*one of: gelu"),
    ({"position_embedding_type": "relative_key"}, Unsupported, "position_embedding_type.*only absolute"),
    ({"is_decoder": True}, Unsupported, "is_decoder"),
    ({"num_attention_heads": 5}, BadCheckpoint, "not a multiple of the 5 heads"),
    ({"layer_norm_eps": 0}, BadCheckpoint, "layer_norm_eps"),
    ({"hidden_size": None}, BadCheckpoint, "hidden_size.*missing"),
    ({"hidden_size": 65540}, Unsupported, "65,540 channels.*65,536 at most"),
    ({"model_type": "albert"}, Unsupported, "unknown architecture 'albert'.*bert, roberta, distilbert"),
]


@pytest.mark.parametrize(("fields", "kind", "words"), WRONG)
def test_a_wrong_config_names_the_field(tmp_path, fields, kind, words):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["bert"] | fields))
    with pytest.raises(kind, match=f"(?s){words}"):
        read_shape(tmp_path)


def test_what_an_encoder_is_not_asked_for(tmp_path):
    folder = written(tmp_path, "bert")
    with pytest.raises(BadRequest, match="a context of 41, but the model has 1 to 40"):
        read_shape(folder, 41)
    graph, never = read(folder), Runners(ref.trace, lambda *_: pytest.fail("an encoder writes nothing"))
    for scheme in (Scheme(weight_bits=5), Scheme(prune="2:4"), Scheme(kv_bits=4)):
        with pytest.raises(OpenLpuError, match="encoder"):
            integer(graph, scheme, never)
    with pytest.raises(Unsupported, match="use --target ref or chip"):
        cpu.load(outline(graph.config))
