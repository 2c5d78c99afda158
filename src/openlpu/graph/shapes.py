"""The shapes of well-known models: what is benchmarked, and compiled, when there is no checkpoint."""

from __future__ import annotations

from dataclasses import replace

from openlpu._base.errors import BadRequest, TooManyPositions
from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.checkpoint.encoder import EncoderConfig

_GPT_OSS_ROPE = Rope(150000.0, "yarn", 32.0, original_context=4096, truncate=False)
_LEARNED = Rope(1.0, "none")
SHAPES: dict[str, ModelConfig] = {
    "smollm2-135m": ModelConfig(
        "llama", hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152,
        context=8192, norm_eps=1e-5, rope=Rope(100000.0), tied=True,
    ),
    "qwen2.5-0.5b": ModelConfig(
        "qwen2", hidden=896, layers=24, heads=14, kv_heads=2, head_dim=64, intermediate=4864, vocab=151936,
        context=32768, norm_eps=1e-6, rope=Rope(1000000.0), tied=True,
    ),
    "llama-3.2-1b": ModelConfig(
        "llama", hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, intermediate=8192, vocab=128256,
        context=131072, norm_eps=1e-5, rope=Rope(500000.0, "llama3", 32.0, 1.0, 4.0, 8192), tied=True,
    ),
    "llama-2-7b": ModelConfig(
        "llama", hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, intermediate=11008, vocab=32000,
        context=4096, norm_eps=1e-5, rope=Rope(10000.0), tied=False,
    ),
    "llama-2-70b": ModelConfig(
        "llama", hidden=8192, layers=80, heads=64, kv_heads=8, head_dim=128, intermediate=28672, vocab=32000,
        context=4096, norm_eps=1e-5, rope=Rope(10000.0), tied=False,
    ),
    "llama-3-8b": ModelConfig(
        "llama", hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocab=128256,
        context=8192, norm_eps=1e-5, rope=Rope(500000.0), tied=False,
    ),
    "mistral-7b": ModelConfig(
        "mistral", hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocab=32000,
        context=32768, norm_eps=1e-5, rope=Rope(10000.0), tied=False, window=4096,
    ),
    "mixtral-8x7b": ModelConfig(
        "mixtral", hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocab=32000,
        context=32768, norm_eps=1e-5, rope=Rope(1000000.0), tied=False, experts=8, experts_per_token=2,
    ),
    "gpt-oss-20b": ModelConfig(
        "gpt_oss", hidden=2880, layers=24, heads=64, kv_heads=8, head_dim=64, intermediate=2880, vocab=201088,
        context=131072, norm_eps=1e-5, rope=_GPT_OSS_ROPE, tied=False, window=128, full_layers=tuple(range(1, 24, 2)),
        experts=32, experts_per_token=4,
    ),
    "gpt-oss-120b": ModelConfig(
        "gpt_oss", hidden=2880, layers=36, heads=64, kv_heads=8, head_dim=64, intermediate=2880, vocab=201088,
        context=131072, norm_eps=1e-5, rope=_GPT_OSS_ROPE, tied=False, window=128, full_layers=tuple(range(1, 36, 2)),
        experts=128, experts_per_token=4,
    ),
    "bert-base-uncased": EncoderConfig(
        "bert", hidden=768, layers=12, heads=12, kv_heads=12, head_dim=64, intermediate=3072, vocab=30522,
        context=512, norm_eps=1e-12, rope=_LEARNED, tied=True,
    ),
    "bert-large-uncased": EncoderConfig(
        "bert", hidden=1024, layers=24, heads=16, kv_heads=16, head_dim=64, intermediate=4096, vocab=30522,
        context=512, norm_eps=1e-12, rope=_LEARNED, tied=True,
    ),
}


def shape(name: str, context: int = 4096) -> ModelConfig:
    """A shape by its name, with at most ``context`` positions; raises :class:`BadRequest` for an unknown one."""
    known = SHAPES.get(name.rpartition("/")[2].lower().removesuffix("-hf"))  # as the hub writes it, too
    if known is None:
        raise BadRequest(f"unknown shape '{name}'", where="shape", fix=f"one of: {', '.join(SHAPES)}")
    if context < 1:
        raise TooManyPositions(context, known.context)
    positions = min(context, known.context)
    return replace(known, context=positions, window=known.window if known.window < positions else 0)
