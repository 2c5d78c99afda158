"""What every architecture is reduced to: one frozen description of a decoder's shape.

In: the fields of a ``config.json`` (read by :mod:`openlpu.checkpoint.folder`).  Out: :class:`ModelConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, kind ("default" or "llama3") and the llama3 scaling's four numbers."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only model; sizes in channels, context in positions."""

    architecture: str  # Hugging Face model_type: llama, mistral, qwen2, qwen3 …
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    norm_eps: float
    rope: Rope
    tied: bool
    bos: int | None = None
    eos: tuple[int, ...] = ()
