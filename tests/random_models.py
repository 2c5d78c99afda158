"""Random models of every kind of shape, lowered: the same cases for every target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.graph import decoder
from openlpu.graph.models import gpt_oss
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk

LLAMA = decoder.Variant()
QWEN2 = decoder.Variant(qkv_bias=True)
QWEN3 = decoder.Variant(qk_norm=True)
EVERY_BIAS = decoder.Variant(qkv_bias=True, o_bias=True, mlp_bias=True)

BASE = ModelConfig("llama", 64, 2, 4, 2, 16, 96, 50, 64, 1e-5, Rope(10000.0), tied=True)
CASES = {
    "tied": (BASE, LLAMA, Scheme()),
    "untied": (replace(BASE, tied=False, layers=3), LLAMA, Scheme(wide_head=False)),
    "odd sizes": (
        replace(BASE, hidden=50, heads=3, kv_heads=3, head_dim=10, intermediate=77, vocab=131), LLAMA, Scheme(),
    ),
    "head_dim 6": (replace(BASE, hidden=18, heads=3, kv_heads=1, head_dim=6, intermediate=7), LLAMA, Scheme()),
    "wide cache": (replace(BASE, heads=5, kv_heads=1, head_dim=8), LLAMA, Scheme(kv_bits=16)),
    "wide odd cache": (replace(BASE, heads=6, kv_heads=2, head_dim=10), LLAMA, Scheme(kv_bits=16)),
    "outliers": (replace(BASE, hidden=72, intermediate=200), LLAMA, Scheme(outlier_share=0.07)),
    "biases": (replace(BASE, tied=False), QWEN2, Scheme(outlier_share=0.5)),
    "every bias": (replace(BASE, tied=False), EVERY_BIAS, Scheme()),
    "head norms": (replace(BASE, heads=4, head_dim=64, kv_heads=2), QWEN3, Scheme()),
    "4-bit cache": (replace(BASE, heads=4, kv_heads=2, head_dim=64), LLAMA, Scheme(kv_bits=4)),
    "4-bit odd cache": (replace(BASE, heads=5, kv_heads=1, head_dim=10, window=7), LLAMA, Scheme(kv_bits=4)),
    "short window": (replace(BASE, window=5), LLAMA, Scheme()),
    "windows in some layers": (replace(BASE, layers=3, window=5, full_layers=(1,)), LLAMA, Scheme()),
    "blocks": (replace(BASE, hidden=72, intermediate=200, tied=False), QWEN2, Scheme(weight_bits=4.5)),
    "tied blocks": (replace(BASE, hidden=50, head_dim=10, intermediate=77), LLAMA, Scheme(weight_bits=4.5)),
    "pairs": (replace(BASE, hidden=50, head_dim=10, intermediate=77), QWEN2, Scheme(prune="2:4", outlier_share=0.3)),
    "tiles": (
        replace(BASE, hidden=72, intermediate=200, tied=False), QWEN2, Scheme(prune="blocks:0.5", outlier_share=0.3),
    ),
    "odd tiles": (
        replace(BASE, hidden=50, head_dim=10, intermediate=77), LLAMA, Scheme(prune="blocks:0.3", outlier_share=1.0),
    ),
    "large heads": (replace(BASE, hidden=128, heads=9, kv_heads=1, head_dim=128), QWEN3, Scheme()),
}
GPT_OSS = decoder.Variant(qkv_bias=True, o_bias=True, sinks=True, mixture=gpt_oss.MIXTURE, swiglu=(1.702, 7.0))
MIXTURES = {
    "experts": (replace(BASE, tied=False, experts=5, experts_per_token=2), LLAMA, Scheme()),
    "one of many experts": (
        replace(BASE, hidden=40, intermediate=24, experts=37, experts_per_token=1), LLAMA, Scheme(outlier_share=0.4),
    ),
    "experts in blocks": (replace(BASE, experts=4, experts_per_token=2), LLAMA, Scheme(weight_bits=4.5)),
    "experts in tiles": (replace(BASE, experts=4, experts_per_token=2), LLAMA, Scheme(prune="blocks:0.5")),
    "all experts in pairs": (
        replace(BASE, hidden=50, head_dim=10, intermediate=77, experts=3, experts_per_token=3), LLAMA,
        Scheme(prune="2:4", outlier_share=0.3),
    ),
    "gpt-oss": (
        replace(BASE, layers=2, tied=False, window=5, full_layers=(1,), experts=6, experts_per_token=4), GPT_OSS,
        Scheme(),
    ),
    "gpt-oss wide": (
        replace(BASE, hidden=40, heads=6, head_dim=10, intermediate=24, tied=False, experts=5, experts_per_token=3),
        GPT_OSS, Scheme(kv_bits=16, outlier_share=0.4),
    ),
}


def random_graph(config, variant, scheme, seed=0):
    """A random model whose activations have outliers, lowered."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in decoder.shapes(config, variant).items():
        scale = 0.3 if name.endswith("bias") else 1.0 if name.endswith("sinks") else shape[-1] ** -0.5
        tensors[name] = (rng.standard_normal(shape) * scale + ("norm" in name)).astype(np.float32)
    tensors["model.embed_tokens.weight"][:, 3] *= 20
    return lower(decoder.build(config, tensors, variant), scheme)


def tokens(count, config, seed=1):
    return tuple(int(t) for t in np.random.default_rng(seed).integers(0, config.vocab, count))


def same(got, want):
    """Equal as bits: -0 is not 0."""
    return all(np.array_equal(g.view(np.int32), w.view(np.int32)) for g, w in zip(got, want, strict=True))


def assert_neighbours_do_not_matter(target, ids, want, starts):
    """Slots that stand at ``starts`` get the logits ``want`` [T, V] of the one sequence ``ids``, whoever is beside."""
    for slot, start in enumerate(starts):
        if start:
            target.run([Chunk(slot, 0, ids[:start])])
    for count in (8, 3, 1):
        sizes = [1 + (3 * slot) % 5 for slot in range(count)]
        chunks = [Chunk(s, starts[s], ids[starts[s] : starts[s] + n], every=s % 2 == 0) for s, n in enumerate(sizes)]
        wanted = [want[c.start : c.start + len(c.tokens)][0 if c.every else -1 :] for c in chunks]
        assert same(target.run(chunks), wanted), f"{count} slots"
