"""Tiny random models of every architecture in, their fp32 logits by transformers out: goldens of ``tests/graph``.

    pip install '.[oracle]' && python tests/make_golden.py

Run once; what it writes under ``tests/golden/models`` is committed, so that no test needs torch.  The weights are
drawn by NumPy and the config.json files are written here, in the styles real checkpoints have; transformers reads
the finished folder like any other.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

OUT = Path(__file__).parent / "golden" / "models"
TOKENS = 24  # scored per model
STORIES = 4  # documents of the real model's text
TEXT = "once upon a time there was a little cat that sat on a mat and ran to the red hat at noon "


@dataclass(frozen=True)
class Tiny:
    """One model: fields of its config.json beyond the common ones (None removes one), and how it is stored."""

    fields: dict[str, Any]
    dtype: torch.dtype = torch.float32
    shards: int = 1
    generation: dict[str, Any] = field(default_factory=dict)


COMMON: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
TINY = {
    "llama2": Tiny({"model_type": "llama", "num_key_value_heads": None, "rope_scaling": None}, shards=2),
    "llama3": Tiny(
        {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
         "rope_theta": 500.0, "rope_scaling": LLAMA3, "eos_token_id": [2, 3]},
        torch.bfloat16,
    ),
    "llama-bias": Tiny({"model_type": "llama", "attention_bias": True, "mlp_bias": True}, torch.bfloat16),
    "smollm": Tiny(
        {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1,
         "rope_theta": 100000.0, "tie_word_embeddings": True},
        torch.bfloat16, generation={"eos_token_id": [0, 2], "do_sample": True, "temperature": 0.2, "top_p": 0.95},
    ),
    "mistral": Tiny(
        {"model_type": "mistral", "head_dim": 16, "sliding_window": 64,
         "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}},
        torch.float16,
    ),
    "qwen2": Tiny(
        {"model_type": "qwen2", "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 16,
         "max_window_layers": 2, "tie_word_embeddings": True},
        torch.bfloat16,
    ),
    "qwen3": Tiny(
        {"model_type": "qwen3", "head_dim": 16, "attention_bias": False,
         "layer_types": ["full_attention"] * 2,
         "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}},
        torch.bfloat16,
    ),
    "mixtral": Tiny(
        {"model_type": "mixtral", "intermediate_size": 24, "num_local_experts": 5, "num_experts_per_tok": 2,
         "rope_theta": 1000000.0, "sliding_window": None},
        torch.bfloat16,
    ),
}  # fmt: skip

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
STRETCHED = YARN | {"factor": 8.0, "original_max_position_embeddings": 16, "rope_theta": 1000.0}
WINDOW = {"use_sliding_window": True, "sliding_window": 6}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # a folder above, and the fields that its variant changes
    "linear": ("smollm", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "yarn": ("llama2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    "yarn-mscale": ("mistral", {"rope_parameters": STRETCHED | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    "yarn-exact": ("qwen3", {"rope_parameters": STRETCHED | {"truncate": False, "beta_fast": 4, "beta_slow": 0.5}}),
    "window": ("mistral", {"sliding_window": 8}),
    "window-default-layers": ("qwen2", WINDOW | {"max_window_layers": 1}),
    "window-no-layers": ("qwen2", WINDOW),
    "window-layer-types": ("qwen3", WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip
ROPES: list[dict[str, Any]] = [  # rope_parameters of models with heads of 128 and positions to 131,072
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0},
    LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192, "rope_theta": 500000.0},
    YARN | {"rope_theta": 1000000.0},
    YARN | {"rope_theta": 1000000.0, "truncate": False, "attention_factor": 1.25},
    YARN | {"rope_theta": 50000.0, "beta_fast": 8, "beta_slow": 2.5, "mscale": 0.7, "mscale_all_dim": 1.3},
    YARN | {"rope_theta": 10000.0, "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0},
    YARN | {"rope_theta": 10000.0, "original_max_position_embeddings": 8},
]


def main() -> None:
    """Write every folder anew, and what transformers assumes for absent fields."""
    stories = Path(__file__).resolve().parents[2] / "shared"
    shutil.rmtree(OUT, ignore_errors=True)
    for name, tiny in TINY.items():
        make(OUT / name, tiny, seed=len(name))
        print(f"{name}: {sum(f.stat().st_size for f in (OUT / name).iterdir()):,} bytes")
    variants()
    write(OUT / "ropes.json", [rope(parameters) for parameters in ROPES])
    write(OUT / "absent.json", {kind: absent(kind) for kind in ("llama", "mistral", "qwen2", "qwen3", "mixtral")})
    if stories.is_dir():
        write(OUT / "stories260K.json", losses(stories))


def make(folder: Path, tiny: Tiny, seed: int) -> None:
    """One folder: config, tokenizer, weights, and golden.safetensors with token ids [T] and logits [T, vocab]."""
    folder.mkdir(parents=True)
    config = {k: value for k, value in (COMMON | tiny.fields).items() if value is not None or k == "rope_scaling"}
    write(folder / "config.json", config)
    if tiny.generation:
        write(folder / "generation_config.json", tiny.generation)
    tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"), pretty=False)
    write(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    store(folder, weights(folder, config, seed), tiny)
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(3, config["vocab_size"], TOKENS))
    save_file({"ids": ids, "logits": scored(folder, ids)}, folder / "golden.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)


def scored(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """transformers' fp32 logits [T, vocab] after each of the ids [T]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return model(ids[None]).logits[0].contiguous()


def variants() -> None:
    """The logits of each variant for its folder's ids, and which fields make it."""
    logits = {}
    for name, (base, fields) in VARIANTS.items():
        with TemporaryDirectory() as copy:
            folder = Path(copy) / base
            shutil.copytree(OUT / base, folder)
            write(folder / "config.json", json.loads((folder / "config.json").read_text()) | fields)
            logits[name] = scored(folder, load_file(OUT / base / "golden.safetensors")["ids"])
    save_file(logits, OUT / "variants.safetensors")
    (OUT / "variants.safetensors").chmod(0o644)
    write(OUT / "variants.json", {name: {"base": base, "fields": f} for name, (base, f) in VARIANTS.items()})


def rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of rotary parameters: radians per position of each pair, and the attention factor."""
    sizes = dict(hidden_size=256, num_attention_heads=2, max_position_embeddings=131072)
    config = AutoConfig.for_model("llama", **sizes, rope_parameters=dict(parameters))
    if parameters["rope_type"] == "default":
        steps, factor = LlamaRotaryEmbedding(config).inv_freq, 1.0
    else:
        steps, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    return {"parameters": parameters, "attention_factor": factor, "frequencies": [float(f"{s:.8g}") for s in steps]}


def weights(folder: Path, config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random weights for every parameter transformers makes for this config: gains near 1, nothing zero."""
    rng = np.random.default_rng(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with TemporaryDirectory() as saved:  # where parameters have the names that checkpoints have
        model.save_pretrained(saved)
        shapes = {name: tuple(one.shape) for name, one in load_file(Path(saved) / "model.safetensors").items()}
    drawn = {}
    for name, shape in sorted(shapes.items()):
        noise = rng.standard_normal(shape)
        drawn[name] = torch.from_numpy(1 + 0.2 * noise if "norm" in name else 0.25 * noise)
    return drawn


def store(folder: Path, drawn: dict[str, torch.Tensor], tiny: Tiny) -> None:
    """One file, or several and their index."""
    drawn = {name: tensor.to(tiny.dtype).contiguous() for name, tensor in drawn.items()}
    if tiny.shards == 1:
        save_file(drawn, folder / "model.safetensors", {"format": "pt"})
        return
    files = [f"model-{i + 1:05}-of-{tiny.shards:05}.safetensors" for i in range(tiny.shards)]
    placed = {name: files[i % tiny.shards] for i, name in enumerate(drawn)}
    for file in files:
        save_file({name: drawn[name] for name in drawn if placed[name] == file}, folder / file, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in drawn.values())
    write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": placed})


def tokenizer(size: int) -> Tokenizer:
    """A Llama-2-style BPE over the letters of ``TEXT``."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False, max_token_length=6)
    made.train_from_iterator([TEXT], trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return made


def absent(kind: str) -> dict[str, Any]:
    """What transformers makes of a config.json that says nothing but the sizes, under our names for it."""
    sizes = dict(hidden_size=1024, num_attention_heads=32, intermediate_size=1, num_hidden_layers=1, vocab_size=8)
    made = AutoConfig.for_model(kind, **sizes)
    return {
        "config": {"model_type": kind, **sizes},
        "context": made.max_position_embeddings,
        "kv_heads": made.num_key_value_heads,
        "head_dim": getattr(made, "head_dim", None) or made.hidden_size // made.num_attention_heads,
        "window": getattr(made, "sliding_window", None),
        "norm_eps": made.rms_norm_eps,
        "theta": made.rope_parameters["rope_theta"],
        "tied": made.tie_word_embeddings,
        "bos": made.bos_token_id,
        "eos": made.eos_token_id,
    }


def losses(shared: Path) -> dict[str, Any]:
    """Mean NLL of the first stories, each alone behind <s>, first 256 tokens: the protocol of its golden.json."""
    folder = shared / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = (shared / "data" / "tinystories-valid-part-a.txt").read_text("utf-8").split("<|endoftext|>")
    encode = Tokenizer.from_file(str(folder / "tokenizer.json")).encode
    found = []
    for text in texts[:STORIES]:
        ids = torch.tensor(encode(text.strip("\n")).ids[:256])
        with torch.inference_mode():
            logits = model(ids[None]).logits[0, :-1]
        found.append(float(torch.nn.functional.cross_entropy(logits.double(), ids[1:])))
    return {"file": "tinystories-valid-part-a.txt", "mean_nll": found}


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
