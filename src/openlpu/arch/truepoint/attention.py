"""Query codes and a coded KV cache in, attention output out, for one query position.

Positions are taken in fixed blocks of 256, counted from position 0.  Inside a block everything that is summed
is an integer: probabilities relative to the block's own maximum have 15 bits, and V's scale per position rides
on them.  Blocks meet in ascending order, in fp32.  The block borders belong to the arithmetic, so neither the
context bucket nor the chunking of a prefill can change a bit, and an attention sink in block 0 costs no other
block its precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openlpu.arch.truepoint.codes import I16, SCALE_FLOOR, Codes, exact_dot, planes
from openlpu.arch.truepoint.elementwise import F32, exp, reciprocal, round_even

BLOCK = 256
PROB_ONE = np.float32(32512)  # 127 * 256: a probability of 1; both planes stay signed bytes
MASKED = np.float32(-1e30)


@dataclass(frozen=True)
class Cache:
    """One layer's cache for one sequence: codes int16 [T, KVH, D] and fp32 scales [T, KVH] of K and of V."""

    k: I16
    k_scale: F32
    v: I16
    v_scale: F32


def scores(q: I16, k: I16) -> F32:
    """Exact q·k of query codes [G, D] (two planes) with key codes [T, D] (one or two planes), as fp32 [G, T].

    (fp32(hh) * 65536 + fp32(hl + lh) * 256) + fp32(ll); for one-plane keys hh and lh are zero.
    """
    qh, ql = planes(q)
    kh, kl = planes(k)
    mid = exact_dot(qh, kl) + exact_dot(ql, kh)
    top = exact_dot(qh, kh).astype(np.float32) * np.float32(65536) + mid.astype(np.float32) * np.float32(256)
    return top + exact_dot(ql, kl).astype(np.float32)


def block_sums(score: F32, v: I16, v_scale: F32) -> tuple[F32, F32, F32, F32]:
    """One block: score [G, B] fp32, v [B, D] codes, v_scale [B].

    Returns (maximum [G, 1], Σp [G, 1], Σp·v [G, D], V's block scale, scalar), the sums exact before fp32.
    """
    top = score.max(axis=1, keepdims=True)
    e = exp(score - top)
    v_top = np.maximum(v_scale.max(), SCALE_FLOOR)
    total = round_even(e * PROB_ONE).sum(axis=1, keepdims=True, dtype=np.int32)
    weighted = round_even((e * (v_scale * reciprocal(v_top))) * PROB_ONE)
    vh, vl = planes(v)
    pv = exact_dot(weighted, vh.T).astype(np.float32) * np.float32(256) + exact_dot(weighted, vl.T).astype(
        np.float32
    )
    return top, total.astype(np.float32), pv, v_top


def attend(q: Codes, cache: Cache, softmax_scale: np.float32) -> F32:
    """Output [H, D] of one query's codes [H, D] over the T positions of the cache (its own included).

    score = (dot * (q.scale * softmax_scale)) * k_scale[t].  Block b contributes Σp·v * (alpha_b * v_top_b) to
    the numerator and Σp * alpha_b to the denominator with alpha_b = exp(max_b - max), both from 0, ascending.
    """
    heads, dim = q.codes.shape
    kv_heads = cache.k.shape[1]
    group = heads // kv_heads
    out = np.empty((heads, dim), np.float32)
    for g in range(kv_heads):
        rows = slice(g * group, (g + 1) * group)
        dot = scores(q.codes[rows], cache.k[:, g])
        score = (dot * (q.scale.reshape(1, 1) * softmax_scale)) * cache.k_scale[None, :, g]
        parts = [
            block_sums(score[:, t : t + BLOCK], cache.v[t : t + BLOCK, g], cache.v_scale[t : t + BLOCK, g])
            for t in range(0, score.shape[1], BLOCK)
        ]
        top = np.maximum.reduce([part[0] for part in parts])
        num = np.zeros((group, dim), np.float32)
        den = np.zeros((group, 1), np.float32)
        for block_top, total, pv, v_top in parts:
            alpha = exp(block_top - top)
            num = num + pv * (alpha * v_top)
            den = den + total * alpha
        out[rows] = num * reciprocal(den)
    return out
