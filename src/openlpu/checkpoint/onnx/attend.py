"""Rules for attention: rotary embedding, scores, masks, softmax, and the standard's operators for them.

Exporters turn pairs of channels in many ways, scale queries, keys or scores, repeat keys for grouped queries, and mask
by adding, choosing or an attribute.  What counts here is what each score is made of in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.checkpoint.onnx import standard
from openlpu.checkpoint.onnx.file import Operation
from openlpu.checkpoint.onnx.form import BITS, Form, Term, together
from openlpu.checkpoint.onnx.terms import Attention, Channels, Scores, Shares, Vector
from openlpu.checkpoint.onnx.traced import Argument, Traced

HIDDEN = -1e4  # a score with so much added does not count
CLOSE = 1e-5


def rotary(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """The standard's operator, as the products and sums that it stands for."""
    x, tables = t.form(inputs[0]), [value for value in inputs[1:] if isinstance(value, np.ndarray)]
    if not isinstance(inputs[0], Form) or len(tables) != sum(value is not None for value in inputs[1:]):
        raise t.refused(operation, "turns by angles that depend on the tokens")
    heads = x.moved(lambda a: standard.split_heads(a, operation.attributes.get("num_heads", 0)))
    size = heads.shape[-1]
    if operation.attributes.get("rotary_embedding_dim", 0) not in (0, size):
        raise t.refused(operation, "turns a part of each head")
    cos, sin = standard.turns([None, *tables])
    for name in operation.inputs[1:3]:
        t.tables[name] = (operation, "".join(operation.inputs[3:4]))
    first, second = standard.pairs(size, bool(operation.attributes.get("interleaved", 0)))
    a, b = heads.moved(lambda v: v[..., first]), heads.moved(lambda v: v[..., second])
    turned = a.times(cos).plus(b.times(-sin)), b.times(cos).plus(a.times(sin))
    order = np.argsort(np.concatenate([first, second]))
    whole = together(turned, lambda halves: np.concatenate(halves, axis=-1)[..., order])
    return (whole.moved(lambda v: standard.join_heads(v, len(x.shape))),)


def product(t: Traced, operation: Operation, a: Form, b: Form) -> Form:
    """Scores, or values weighted by their softmax."""
    shares = t.meant(a, Shares)
    if shares is not None:
        return _weighted(t, operation, shares, a, b)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (tokens, size), positions, heads = a.shape[-2:], b.shape[-1], int(np.prod(lead))
    if tokens != t.tokens or a.single is None:
        raise t.refused(operation, "multiplies two things computed from tokens, and is no attention")
    query = a.broadcast((*lead, tokens, size)).moved(lambda v: v.reshape(heads, tokens, size))
    key = b.broadcast((*lead, size, positions)).moved(lambda v: v.reshape(heads, size, positions).swapaxes(1, 2))
    return Form.of(t.term(Scores(query, key), 0, operation).ids((*lead, tokens, positions)))


def softmax(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """Scores that were scaled by one number and masked."""
    form = t.form(inputs[0])
    number, shape = form.single, form.shape
    term = None if number is None or len(form.parts) != 1 else t.terms[number]
    last = operation.attributes.get("axis", -1) in (-1, len(shape) - 1)
    if term is None or not isinstance(term.meaning, Scores) or not last:
        raise t.refused(operation, "is a softmax of something else than the scores of an attention")
    part = form.parts[0]
    added = np.zeros(shape) if form.constant is None else np.broadcast_to(form.constant, shape)
    visible = (added > HIDDEN) & (part.factor != 0)
    scales, seen = part.factor[visible], visible.reshape(-1, *shape[-2:])
    if not np.array_equal(part.ids[visible], term.ids(shape)[visible]) or not len(scales):
        raise t.refused(operation, "is a softmax of scores in another order")
    if added[visible].any() or np.ptp(scales) > CLOSE * abs(scales[0]):
        raise t.refused(operation, "has scores with a bias, or scaled by more than one number")
    if (seen != seen[0]).any():
        raise t.refused(operation, "masks heads differently")
    made = t.term(Shares(term, float(scales[0]), seen[0]), 0, operation)
    return (Form.of(made.ids(shape)),)


def _weighted(t: Traced, operation: Operation, shares: Term, a: Form, b: Form) -> Form:
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    positions, size = b.shape[-2:]
    if lead != a.shape[:-2] or not a.holds(shares.ids(a.shape)):
        raise t.refused(operation, "weights values by scores of other heads")
    meaning, heads = shares.meaning, int(np.prod(lead))
    value = b.broadcast((*lead, positions, size)).moved(lambda v: v.reshape(heads, positions, size))
    scores = meaning.scores
    one = _Attention(scores.meaning.query, scores.meaning.key, value, meaning.scale, meaning.visible)
    return _attended(t, operation, one, (scores.origin, shares.origin)).moved(
        lambda v: v.reshape(*lead, t.tokens, size))


def attention(t: Traced, operation: Operation, inputs: Sequence[Argument]) -> Sequence[Argument]:
    """The standard's operator, with its cache and its mask."""
    words = operation.attributes
    if words.get("softcap", 0.0):
        raise t.refused(operation, "caps its scores (softcap)")
    known = [value if not isinstance(value, Form) else None for value in inputs]
    traced = [isinstance(value, Form) for value in inputs]
    if not all(traced[:3]) or any((*traced[3:4], *traced[6:])):
        raise t.refused(operation, "attends to constants, or is masked by what it computes from tokens")
    q_heads, kv_heads = (words.get(word, 0) for word in ("q_num_heads", "kv_num_heads"))
    query = t.form(inputs[0]).moved(lambda v: standard.split_heads(v, q_heads))
    key, value = (t.form(x).moved(lambda v: standard.split_heads(v, kv_heads)) for x in inputs[1:3])
    past = 0
    if len(inputs) > 5 and inputs[4] is not None:
        past = t.form(inputs[4]).shape[2]
        key, value = (together((t.form(old), now), lambda v: np.concatenate(v, axis=2))
                      for old, now in ((inputs[4], key), (inputs[5], value)))
    heads, groups, positions = query.shape[1], key.shape[1], key.shape[2]
    if heads % groups or query.shape[2] != t.tokens:
        raise t.refused(operation, f"has {heads} query heads for {groups} key heads, or not all tokens")
    added = standard.hidden_by(known, words, past, t.tokens, positions)
    added = np.broadcast_to(added, (1, heads, t.tokens, positions))[0]
    visible = added > HIDDEN
    if added[visible].any() or (visible != visible[0]).any():
        raise t.refused(operation, "has scores with a bias, or masks heads differently")
    scale = words.get("scale") or query.shape[-1] ** -0.5
    wide = [form.moved(lambda v: np.repeat(v[0], heads // groups, axis=0)) for form in (key, value)]
    one = _Attention(query.moved(lambda v: v[0]), wide[0], wide[1], scale, visible[0])
    out = _attended(t, operation, one, (operation, operation))
    out = out.moved(lambda v: standard.join_heads(v[None], len(t.form(inputs[0]).shape)))
    return out, key, value


@dataclass(frozen=True)
class _Attention:
    """What every attention comes down to: query [H, T, D], key and value [H, S, D], visible [T, S]."""

    query: Form
    key: Form
    value: Form
    scale: float
    visible: NDArray[np.bool_]


@dataclass(frozen=True)
class _Turned:
    """Heads [H, D] of a term in the order (first of each pair, then second); frequency of each pair."""

    term: Term
    channels: Channels
    order: NDArray[np.int64]
    frequencies: NDArray[np.float64]
    length: float


def _attended(t: Traced, operation: Operation, one: _Attention, by: tuple[Operation, Operation]) -> Form:
    """The output [H, T, D] of an attention, after proving that it is causal and what its heads are."""
    tokens = t.tokens
    seen, rest = one.visible[:, :tokens], one.visible[:, tokens:]
    if (seen & ~np.tri(tokens, dtype=np.bool_)).any() or rest.any() or not seen.diagonal().all():
        raise t.refused(by[1], "lets a token see later ones, or not itself")
    query, key = (_turned(t, operation, x.moved(lambda v: v[:, :tokens])) for x in (one.query, one.key))
    value = _plain(t, operation, one.value.moved(lambda v: v[:, :tokens]))
    heads, size = query.channels.shape
    scale = query.length * key.length * one.scale * size**0.5
    if abs(scale - 1) > CLOSE:
        raise t.refused(operation, f"scales its scores by {scale:.6g} / sqrt({size}), where 1 / sqrt({size}) is known")
    if not np.array_equal(query.order, key.order) or abs(query.frequencies - key.frequencies).max() > CLOSE:
        raise t.refused(operation, "turns queries and keys differently")
    if value.channels.shape[1] != size:
        raise t.refused(operation, f"has values of {value.channels.shape[1]} channels and keys of {size}")
    of, groups = _groups(t, operation, key.channels, value.channels)
    rank = np.argsort(np.argsort(of, kind="stable"), kind="stable")
    meaning = Attention(
        Vector(query.term, query.channels[np.argsort(of, kind="stable")]), Vector(key.term, key.channels[groups]),
        Vector(value.x, value.channels[groups]), query.frequencies, *by,
    )
    term = t.term(meaning, heads * size, operation)
    return Form.of(term.ids((tokens, heads, size)).swapaxes(0, 1)[rank])


def _groups(t: Traced, operation: Operation, key: Channels, value: Channels) -> tuple[Channels, Channels]:
    """The group each head belongs to [H], and a head of each group [G]; heads of a group share keys and values."""
    both = np.concatenate([key, value], axis=1)
    _, first, of = np.unique(both, axis=0, return_index=True, return_inverse=True)
    by_head = np.argsort(np.argsort(first))
    of, groups = by_head[of.reshape(-1)], np.sort(first)
    if (np.bincount(of) != len(of) // len(groups)).any():
        raise t.refused(operation, "has groups of different numbers of query heads")
    return of, groups


def _turned(t: Traced, operation: Operation, form: Form) -> _Turned:
    """Heads [H, T, D] as pairs of channels turned by position * frequency."""
    if form.single is None or form.constant is not None or len(form.parts) < 2:
        raise t.refused(operation, "has queries or keys without a rotary embedding")
    factors = np.stack([part.factor for part in form.parts])
    ids = np.stack([part.ids for part in form.parts])
    # Position 0 is not turned: there only the channel itself counts, later its partner too.
    own = abs(factors[:, :, 0]).argmax(axis=0)[None, :, None]
    cos, main = (np.take_along_axis(x, np.broadcast_to(own, (1, *form.shape)), 0)[0] for x in (factors, ids))
    others = np.where(np.arange(len(factors))[:, None, None, None] == own, 0.0, factors)
    with_it = abs(others).max(axis=2).argmax(axis=0)[None, :, None]
    sin, other = (np.take_along_axis(x, np.broadcast_to(with_it, (1, *form.shape)), 0)[0] for x in (others, ids))
    if abs(others.sum(axis=0) - sin).max() > CLOSE or abs(cos - cos[:1]).max() > 0 or abs(sin - sin[:1]).max() > 0:
        raise t.refused(operation, "turns heads differently, or more than two channels together")
    term = t.gained(t.terms[form.single])
    channels, partners = (_channels(t, operation, t.terms[form.single], x) for x in (main, other))
    partner = (partners[:, :, None] == channels[:, None, :]).argmax(axis=2)
    if (partner != partner[:1]).any() or not np.array_equal(np.take_along_axis(channels, partner, 1), partners):
        raise t.refused(operation, "turns a channel with one of another head")
    return _pairs(t, operation, term, channels, partner[0], (cos[0], sin[0]))


def _pairs(
    t: Traced, operation: Operation, term: Term, channels: Channels, partner: Channels,
    turn: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> _Turned:
    """Which channel of a pair is first, and the angle of each: cos and sin are [T, D] factors of own and partner."""
    cos, sin = turn
    size = len(partner)
    first = np.flatnonzero(sin[1] < 0)
    frequencies = np.arctan2(-sin[1, first], cos[1, first])
    first = first[np.argsort(-frequencies, kind="stable")]
    frequencies = -np.sort(-frequencies)
    order = np.concatenate([first, partner[first]])
    if not np.array_equal(np.sort(order), np.arange(size)):
        raise t.refused(operation, "does not turn each channel with one other")
    length = float(np.hypot(cos, sin).mean())
    angle = np.arange(t.tokens)[:, None] * frequencies
    wanted = (np.concatenate([f(angle)] * 2, axis=1) * length for f in (np.cos, np.sin))
    sign = np.where(np.arange(size) < size // 2, -1.0, 1.0)
    wrong = max(abs(a - b).max() for a, b in zip(wanted, (cos[:, order], sin[:, order] * sign), strict=True))
    if wrong > CLOSE * length:
        raise t.refused(operation, "turns channels by angles that do not grow with the position")
    return _Turned(term, channels[:, order], order, frequencies, length)


def _plain(t: Traced, operation: Operation, form: Form) -> Vector:
    """Values [H, T, D] that are channels of a term as they are."""
    term, ids = t.of(form), form.pure
    if term is None or ids is None or not term.size:
        raise t.refused(operation, "has values that are no linear layer's output")
    return Vector(term, _channels(t, operation, term, ids))


def _channels(t: Traced, operation: Operation, term: Term, ids: NDArray[np.int64]) -> Channels:
    """The channels [H, D] of a term that heads [H, T, D] are, token by token."""
    if not term.size:
        raise t.refused(operation, "attends to something else than a linear layer's output")
    token, channel = np.divmod(ids - (term.number << BITS), term.size)
    if (token != np.arange(t.tokens)[None, :, None]).any() or (channel != channel[:, :1]).any():
        raise t.refused(operation, "takes the tokens in another order")
    return channel[:, 0]
