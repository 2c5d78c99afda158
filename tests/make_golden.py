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
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).parent / "golden" / "models"
WINDOW = 24  # tokens scored per model
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
}  # fmt: skip


def main() -> None:
    """Write every folder anew, and what transformers assumes for absent fields."""
    stories = Path(__file__).resolve().parents[2] / "shared"
    shutil.rmtree(OUT, ignore_errors=True)
    for name, tiny in TINY.items():
        make(OUT / name, tiny, seed=len(name))
        print(f"{name}: {sum(f.stat().st_size for f in (OUT / name).iterdir()):,} bytes")
    write(OUT / "absent.json", {kind: absent(kind) for kind in ("llama", "mistral", "qwen2", "qwen3")})
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
    ids = torch.from_numpy(rng.integers(3, config["vocab_size"], WINDOW))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        logits = model(ids[None]).logits[0]
    save_file({"ids": ids, "logits": logits.contiguous()}, folder / "golden.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)


def weights(folder: Path, config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random weights for every parameter transformers makes for this config: gains near 1, nothing zero."""
    rng = np.random.default_rng(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    drawn = {}
    for name, parameter in sorted(model.named_parameters()):
        noise = rng.standard_normal(tuple(parameter.shape))
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
