"""What a decoder computes from its tokens, one class each: the vocabulary in which a graph is understood.

``x`` is always a :class:`~openlpu.checkpoint.onnx.form.Term` whose numbers go in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.checkpoint.onnx.file import Operation
from openlpu.checkpoint.onnx.form import Form, Term

Channels = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The token ids."""


@dataclass(frozen=True)
class Cache:
    """A cache that goes in: empty while a graph is read, or of slots that are still hidden."""


@dataclass(frozen=True)
class Embed:
    """The row of a table [vocab, hidden] for each token."""

    table: np.ndarray


@dataclass(frozen=True)
class Linear:
    """weight [N, K] times x, plus a bias [N]."""

    x: Term
    weight: np.ndarray
    bias: np.ndarray | None


@dataclass(frozen=True)
class Square:
    """x * x."""

    x: Term


@dataclass(frozen=True)
class Mean:
    """The mean of the squares of each row of ``rows``, which are ids of x [R, n]."""

    x: Term
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Root:
    """sqrt(mean + eps), or 1 over it."""

    mean: Term
    eps: float
    inverse: bool


@dataclass(frozen=True)
class Normed:
    """x over the root mean square of its group; ``groups`` [G, n] are the channels of each."""

    x: Term
    eps: float
    groups: Channels


@dataclass(frozen=True)
class Norm:
    """A :class:`Normed` x times a gain for each channel of x."""

    x: Term
    gain: np.ndarray


@dataclass(frozen=True)
class Sigmoid:
    """1 / (1 + exp(-x))."""

    x: Term


@dataclass(frozen=True)
class Silu:
    """x * sigmoid(x)."""

    x: Term


@dataclass(frozen=True)
class Vector:
    """Channels [n] of a term, in this order; of heads, [H, D]."""

    x: Term
    channels: Channels


@dataclass(frozen=True)
class Gated:
    """silu(gate) * up."""

    gate: Vector
    up: Vector


@dataclass(frozen=True)
class Residual:
    """The sum of two terms."""

    x: Term
    y: Term


@dataclass(frozen=True)
class Scores:
    """Queries [H, T, D] times keys [H, S, D]."""

    query: Form
    key: Form


@dataclass(frozen=True)
class Shares:
    """The softmax of scores times ``scale`` over what is ``visible`` [T, S]."""

    scores: Term
    scale: float
    visible: NDArray[np.bool_]


@dataclass(frozen=True)
class Attention:
    """Causal attention: channels of queries [H, D], of keys and values [G, D], heads of a group side by side.

    The first half of a head's channels turns with the second, pair i by ``frequencies[i]`` radians a position.
    ``masked_by`` is the operation behind the mask, ``scored_by`` the one that makes the scores.
    """

    query: Vector
    key: Vector
    value: Vector
    frequencies: NDArray[np.float64]
    scored_by: Operation
    masked_by: Operation
