"""The standard's own operators for language models: RMSNormalization, RotaryEmbedding, Attention.

In: a node's arrays and attributes.  Out: the arrays it writes, in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openlpu.checkpoint.onnx.arithmetic import softmax
from openlpu.checkpoint.onnx.layout import Arrays, Attributes, option


def rms_norm(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """x / sqrt(mean x^2 + epsilon) * scale, the mean over the axes from ``axis`` on."""
    x, scale = inputs
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    square = np.mean(x * x, axis=axes, keepdims=True)
    return x / np.sqrt(square + np.float32(attributes.get("epsilon", 1e-5))) * scale


def rotary(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Pairs of channels of x [B, H, T, D] or [B, T, H * D] turned by the angles of their positions.

    The caches are [B, T, D / 2], or [positions, D / 2] where the last input says which position each token has.
    """
    x = inputs[0]
    heads = split_heads(x, attributes.get("num_heads", 0))
    cos, sin = turns(inputs)
    size = attributes.get("rotary_embedding_dim", 0) or heads.shape[-1]
    turned, rest = heads[..., :size], heads[..., size:]
    first, second = pairs(size, bool(attributes.get("interleaved", 0)))
    a, b = turned[..., first], turned[..., second]
    out = np.empty_like(turned)
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return join_heads(np.concatenate([out, rest], axis=-1), x.ndim)


def turns(inputs: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine [B, 1, T, D / 2] of a RotaryEmbedding."""
    cos, sin, positions = inputs[1], inputs[2], option(inputs, 3)
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    return cos[:, None], sin[:, None]


def pairs(size: int, interleaved: bool) -> tuple[np.ndarray, np.ndarray]:
    """The channels that turn together: neighbours, or one from each half."""
    at = np.arange(size // 2)
    return (2 * at, 2 * at + 1) if interleaved else (at, at + size // 2)


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[B, H, T, D] of either layout."""
    if x.ndim == 4:
        return x
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def join_heads(x: np.ndarray, rank: int) -> np.ndarray:
    """[B, H, T, D] in the layout of this rank."""
    return x if rank == 4 else x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


@dataclass(frozen=True)
class AttentionInputs:
    """The inputs of an Attention node in one layout: q [B, H, T, D], k and v with the cache in front [B, G, S, D]."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    past: int  # positions of the cache


def hidden_by(inputs: Arrays, attributes: Attributes, past: int, tokens: int, positions: int) -> np.ndarray:
    """What a score has added: fp32, broadcasting to [B, H, T, S], minus infinity where it must not count."""
    added = np.zeros((1, 1, tokens, positions), np.float32)
    mask, lengths = option(inputs, 3), option(inputs, 6)
    if mask is not None:
        minus = np.float32(-np.inf)
        mask = np.where(mask, np.float32(0), minus) if mask.dtype == bool else mask
        short = positions - mask.shape[-1]
        if short > 0:  # the standard pads a short mask: what it does not mention does not count
            mask = np.concatenate([mask, np.full((*mask.shape[:-1], short), minus, np.float32)], axis=-1)
        added = added + mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    at = np.arange(positions)
    first = np.array([past]) if past or lengths is None else np.asarray(lengths) - tokens
    own = (first[:, None] + np.arange(tokens))[:, None, :, None]
    left, right = (attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    bounds = [at <= own] if attributes.get("is_causal", 0) else []
    bounds += ([at >= own - left] if left >= 0 else []) + ([at <= own + right] if right >= 0 else [])
    for seen in bounds:
        added = np.where(seen, added, np.float32(-np.inf))
    if lengths is not None:
        added = np.where(at < np.asarray(lengths)[:, None, None, None], added, np.float32(-np.inf))
    return added


def attention(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """softmax(q k' scale + mask) v, with the grown cache and, last, the scores at the stage that is asked for."""
    one = attention_inputs(inputs, attributes)
    group = one.query.shape[1] // one.key.shape[1]
    key, value = (np.repeat(x, group, axis=1) for x in (one.key, one.value))
    scale = attributes.get("scale") or one.query.shape[-1] ** -0.5
    root = np.float32(np.sqrt(scale))
    raw = (one.query * root) @ (key * root).swapaxes(-1, -2)
    added = hidden_by(inputs, attributes, one.past, raw.shape[2], raw.shape[3])
    limit = np.float32(attributes.get("softcap", 0.0))
    capped = raw if not limit else limit * np.tanh(raw / limit)
    masked = capped + added
    with np.errstate(invalid="ignore"):
        share = softmax([masked], {})
    share = np.where(np.isneginf(masked).all(axis=-1, keepdims=True), np.float32(0), share)
    stages = (raw, capped, masked, share)
    y = join_heads(share @ value, inputs[0].ndim)
    return y, one.key, one.value, stages[attributes.get("qk_matmul_output_mode", 0)]


def attention_inputs(inputs: Arrays, attributes: Attributes) -> AttentionInputs:
    """Queries, keys and values by head, the cache in front of the keys and values."""
    q_heads, kv_heads = attributes.get("q_num_heads", 0), attributes.get("kv_num_heads", 0)
    query = split_heads(inputs[0], q_heads)
    key, value = (split_heads(x, kv_heads) for x in inputs[1:3])
    past_key, past_value = option(inputs, 4), option(inputs, 5)
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None:
        key, value = (np.concatenate(x, axis=2) for x in ((past_key, key), (past_value, value)))
    return AttentionInputs(query, key, value, past)
