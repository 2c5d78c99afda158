"""Small encoders of every architecture, their weights drawn by name: the same for tests and for their golden."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

TOKENS = [2, 17, 44, 3, 9, 9, 31, 5, 28, 12, 3]
TYPES = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
COMMON: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 72,
    "max_position_embeddings": 40,
}
DISTILBERT: dict[str, Any] = {"model_type": "distilbert", "vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4,
                              "hidden_dim": 72, "max_position_embeddings": 40}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **COMMON},
    "bert tanh": {"model_type": "bert", **COMMON, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    "roberta": {"model_type": "roberta", **COMMON, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
    "distilbert": DISTILBERT,
}


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name: gains near 1, some channels of the embeddings larger than the rest."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal(shape) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)
    if len(shape) == 1 and name.endswith("weight"):
        x += 1
    if "word_embeddings" in name:
        x[:, 3] *= 20
    return x.astype(np.float32)


def write(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], prefix: str = "") -> Path:
    """A Hugging Face folder of such a model, its tensors under their names behind ``prefix``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({prefix + name: drawn(name, shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder
