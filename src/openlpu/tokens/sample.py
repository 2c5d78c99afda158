"""fp32 logits in, one token id out; the same id on every machine for the same (seed, choice, position).

Only correctly rounded fp32 operations, TruePoint's ``exp`` and integers are used: probabilities become integers
before anything is summed or compared, so no sum has an order.  A token ranks above another when its logit is
larger or, at equal logits, its id is lower.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from openlpu.arch import truepoint as tp
from openlpu.target.base import F32
from openlpu.tokens.request import Sampling

I64 = NDArray[np.int64]

WEIGHT_ONE = 1 << 40  # weight of the best token; 2**18 tokens of this weight still sum below 2**63
SHARE_ONE = 1 << 32  # top_p and min_p are fractions of this
M32 = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., SC 2011): four random 32-bit words of a 128-bit counter and 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & M32, (a >> 32) ^ c3 ^ k1, a & M32
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return c0, c1, c2, c3


def draw(seed: int, choice: int, position: int) -> int:
    """64 random bits: Philox words 0 (low) and 1 (high) of counter (position, choice, 0, 0) and key ``seed``."""
    low, high, _, _ = philox((position & M32, choice, 0, 0), (seed & M32, seed >> 32))
    return high << 32 | low


def penalised(logits: F32, history: Collection[int], penalty: float) -> F32:
    """Logits of tokens in ``history`` divided by the penalty when positive, multiplied when not."""
    if penalty == 1.0:
        return logits
    out = logits.copy()
    seen = np.array(sorted(set(history)), np.int64)
    old, by = logits[seen], np.float32(penalty)
    out[seen] = np.where(old > 0, old / by, old * by)
    return out


def weights(logits: F32, temperature: float) -> I64:
    """Integer probability weights: round(exp((logit - max) / temperature) * 2**40), ties to even."""
    # 2**-20 is colder than any gap between logits that matters; it keeps the quotient finite.
    cold = max(np.float32(temperature), np.float32(2.0**-20))
    with np.errstate(over="ignore"):  # a quotient below the range is -inf, whose exp is 0 like any below -87
        scaled = (logits - logits.max()) / cold
    e = tp.exp(scaled)
    return np.rint(e.astype(np.float64) * WEIGHT_ONE).astype(np.int64)


def kept(logits: F32, weight: I64, s: Sampling) -> I64:
    """Ids that survive top-k, then top-p, then min-p, ascending; never empty.

    top-p keeps the shortest run of ranks whose weight reaches ceil(total * round(top_p * 2**32) / 2**32);
    min-p keeps weights of at least ceil(best * round(min_p * 2**32) / 2**32).
    """
    ids = np.flatnonzero(weight)
    if 0 < s.top_k < len(ids):
        floor = np.partition(logits[ids], -s.top_k)[-s.top_k]
        ids = _ranked(logits, ids[logits[ids] >= floor])[: s.top_k]
    if s.top_p < 1.0:
        ids = _ranked(logits, np.sort(ids))
        sums = np.cumsum(weight[ids])
        ids = ids[: int(np.searchsorted(sums, _share(int(sums[-1]), s.top_p))) + 1]
    if s.min_p > 0.0:
        ids = ids[weight[ids] >= _share(WEIGHT_ONE, s.min_p)]
    return np.sort(ids)


def choose(logits: F32, s: Sampling, history: Collection[int], position: int) -> int:
    """The token for ``position``: logits fp32 [vocab], ``history`` the ids before it (prompt included).

    Greedy takes the first rank.  Otherwise r = (draw * total) >> 64 and the token is the lowest id at which
    the running sum of the kept weights, by ascending id, exceeds r.
    """
    logits = penalised(logits, history, s.repetition_penalty)
    if s.temperature == 0.0:
        return int(np.argmax(logits))  # the first maximum: the lowest id
    weight = weights(logits, s.temperature)
    ids = kept(logits, weight, s)
    sums = np.cumsum(weight[ids])
    r = (draw(s.seed, s.choice, position) * int(sums[-1])) >> 64
    return int(ids[np.searchsorted(sums, r, side="right")])


def _ranked(logits: F32, ids: I64) -> I64:
    """Ascending ``ids`` by falling logit; a stable sort keeps the lower id first at equal logits."""
    return ids[np.argsort(-logits[ids], kind="stable")]


def _share(total: int, fraction: float) -> int:
    """ceil(total * fraction) with the fraction in 32 bits; at least 1."""
    return max(1, -(-total * round(fraction * SHARE_ONE) // SHARE_ONE))
