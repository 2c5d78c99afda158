"""Query codes and a coded KV cache in, attention output out.

Positions are taken in fixed blocks of 256, counted from position 0.  Inside a block everything that is summed
is an integer: probabilities relative to the block's own maximum have 15 bits, and V's scale per position rides
on them.  Blocks meet in ascending order, in fp32.  The block borders belong to the arithmetic, so neither the
context bucket nor the chunking of a prefill can change a bit, and an attention sink in block 0 costs no other
block its precision.  A sliding window hides older positions; a block wholly before it does not take part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint.codes import I16, SCALE_FLOOR, Codes, exact_dot, join, planes
from openlpu.arch.truepoint.elementwise import F32, exp, reciprocal, round_even

BLOCK = 256
PROB_ONE = np.float32(32512)  # 127 * 256: a probability of 1; both planes stay signed bytes


@dataclass(frozen=True)
class Cache:
    """One layer's cache for one sequence: codes int16 [T, KVH, D] and fp32 scales [T, KVH] of K and of V."""

    k: I16
    k_scale: F32
    v: I16
    v_scale: F32


@dataclass(frozen=True)
class Part:
    """What one block contributes to N query rows: maximum [N, 1], Σp [N, 1], Σp·v [N, D], V's scale [N, 1]."""

    top: F32
    total: F32
    weighted: F32
    v_top: F32


def scores(q: I16, k: I16) -> F32:
    """Exact q·k of query codes [N, D] (two planes) with key codes [T, D] (one or two planes), as fp32 [N, T].

    (fp32(hh) * 65536 + fp32(hl + lh) * 256) + fp32(ll); for one-plane keys hh and lh are zero.
    """
    qh, ql = planes(q)
    kh, kl = planes(k)
    if not kh.any():
        return join(exact_dot(qh, kl), exact_dot(ql, kl))
    high: F32 = exact_dot(qh, kh).astype(np.float32) * np.float32(65536)
    mid: F32 = (exact_dot(qh, kl) + exact_dot(ql, kh)).astype(np.float32) * np.float32(256)
    return (high + mid) + exact_dot(ql, kl).astype(np.float32)


def block_part(score: F32, seen: NDArray[np.bool_], v: I16, v_scale: F32) -> Part:
    """One block: score [N, B] fp32, seen [N, B], v [B, D] codes, v_scale [B]; every row sees at least one.

    p = round(e * 32512) goes into Σp, round((e * (v_scale / v_top)) * 32512) into Σp·v; both sums are exact.
    A position that is not seen has p = 0 in both, and no part in either maximum.
    """
    top = np.where(seen, score, np.float32(-np.inf)).max(axis=1, keepdims=True)
    e = np.where(seen, exp(score - top), np.float32(0))
    v_top = np.maximum(np.where(seen, v_scale, np.float32(0)).max(axis=1, keepdims=True), SCALE_FLOOR)
    total = round_even(e * PROB_ONE).sum(axis=1, keepdims=True, dtype=np.int32)
    p = round_even((e * (v_scale * reciprocal(v_top))) * PROB_ONE)
    high, low = planes(v)
    return Part(top, total.astype(np.float32), join(exact_dot(p, high.T), exact_dot(p, low.T)), v_top)


def combine(parts: list[tuple[slice, Part]], count: int, sink: F32 | None = None) -> F32:
    """Blocks in ascending order, each with the rows that see it, for ``count`` rows; every row sees at least one.

    Block b contributes Σp·v * (alpha * v_top) to the numerator and Σp * alpha to the denominator, both from 0,
    with alpha = exp(its maximum - the maximum of all).  A ``sink`` [N, 1] is one more score with no value: it takes
    part in the maximum, and the denominator begins with 32512 * exp(sink - maximum).
    """
    top = np.full((count, 1), -np.inf, np.float32) if sink is None else sink.copy()
    for rows, part in parts:
        top[rows] = np.maximum(top[rows], part.top)
    num, den = np.zeros((count, parts[0][1].weighted.shape[1]), np.float32), np.zeros_like(top)
    if sink is not None:
        den = exp(sink - top) * PROB_ONE
    for rows, part in parts:
        alpha = exp(part.top - top[rows])
        num[rows] += part.weighted * (alpha * part.v_top)
        den[rows] += part.total * alpha
    return num * reciprocal(den)


def attend(
    q: Codes, cache: Cache, softmax_scale: np.float32, window: int = 0, sinks: F32 | None = None, *, causal: bool = True
) -> F32:
    """Output [N, H, D] of the last N positions' query codes [N, H, D] over the T positions of the cache.

    Query i stands at position p = T - N + i and sees the positions up to its own: all of them, or with a ``window``
    those above p - window; if not ``causal``, all T.  ``q.scale`` is [N, 1].
    score = (dot * (q.scale * softmax_scale)) * k_scale[t].
    ``sinks`` [H]: a score of each head that every query sees and that has no value, see :func:`combine`.
    """
    count, heads, dim = q.codes.shape
    length, kv_heads = cache.k_scale.shape
    group = heads // kv_heads
    standing = np.arange(length - count, length) if causal else np.full(count, length - 1)
    position = np.repeat(standing, group)  # of each row, the last that it sees; rows of one query adjoin
    oldest = np.maximum(position - (window or length) + 1, 0)  # the first position each row sees
    factor: F32 = np.repeat(q.scale * softmax_scale, group, axis=0)
    out = np.empty((count, heads, dim), np.float32)
    for g in range(kv_heads):
        rows = q.codes[:, g * group : (g + 1) * group].reshape(-1, dim)
        parts = []
        for start in range(int(oldest[0]) // BLOCK * BLOCK, length, BLOCK):
            t = slice(start, min(start + BLOCK, length))
            see = slice(*(int(np.searchsorted(*ends)) for ends in ((position, t.start), (oldest, t.stop))))
            score: F32 = (scores(rows[see], cache.k[t, g]) * factor[see]) * cache.k_scale[t, g]
            at = np.arange(t.start, t.stop)
            seen = (position[see, None] >= at) & (oldest[see, None] <= at)
            parts.append((see, block_part(score, seen, cache.v[t, g], cache.v_scale[t, g])))
        sink = None if sinks is None else np.tile(sinks[g * group : (g + 1) * group], count)[:, None]
        out[:, g * group : (g + 1) * group] = combine(parts, len(rows), sink).reshape(count, group, dim)
    return out
