"""A token's router logits in, one weight per expert out; and what the weights do before and after the experts.

An expert that a token has not chosen has the weight 0.  Who computes it anyway finds zeros: :func:`select` takes the
scale off its input, so nothing in it can overflow, and :func:`mix` adds 0 to a sum that is never -0.  So computing all
experts and computing only the chosen ones give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from openlpu.arch.truepoint.codes import Codes, amax
from openlpu.arch.truepoint.elementwise import F32, exp, reciprocal


def route(logits: F32, chosen: int) -> F32:
    """Weights [T, E] of logits [T, E]: the softmax over the ``chosen`` largest of each token, 0 elsewhere.

    Expert a goes before b when its logit is larger, or equal and a < b; an expert is chosen when fewer than ``chosen``
    go before it.  weight = exp(logit - largest) * reciprocal(Σ), the sum in ascending order of experts from 0.  Raises
    :class:`~openlpu._base.errors.NumericsError` for a logit that a quantisation would refuse.
    """
    amax(logits)
    mine, other = logits[:, :, None], logits[:, None, :]
    first = np.tri(logits.shape[1], k=-1, dtype=bool)  # [a, b]: b < a
    before = ((other > mine) | ((other == mine) & first)).sum(axis=2)
    size = exp(logits - logits.max(axis=1, keepdims=True))
    size[before >= chosen] = 0
    total = np.zeros((len(logits), 1), np.float32)
    for expert in range(logits.shape[1]):
        total += size[:, expert, None]
    return size * reciprocal(total)


def select(q: Codes, weight: F32) -> Codes:
    """The codes of q [T, K] for an expert of this weight [T, 1]: their scale times 1, or times 0 where it is 0."""
    return replace(q, scale=q.scale * (weight != 0).astype(np.float32))


def mix(weights: F32, outputs: Sequence[F32]) -> F32:
    """Σ weight * output over the experts, weights [T, E] and E outputs [T, N], in ascending order from +0.

    An output must be finite where its weight is 0.
    """
    total = np.zeros_like(outputs[0])
    for expert, output in enumerate(outputs):
        total += weights[:, expert, None] * output
    return total
