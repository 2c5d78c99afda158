"""The meaning of a graph's logits in, layers and tensors under Hugging Face's names out.

The terms are read from the logits back to the embedding; where they are not those of a decoder layer, the error names
the node that is in the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openlpu.checkpoint.onnx.form import Form, Term
from openlpu.checkpoint.onnx.terms import (
    Attention,
    Channels,
    Embed,
    Gated,
    Linear,
    Norm,
    Normed,
    Residual,
    Vector,
)
from openlpu.checkpoint.onnx.traced import Traced


@dataclass(frozen=True)
class Decoder:
    """What a graph turned out to be; ``attentions`` and the tensors' layer numbers count from the embedding on."""

    tensors: Mapping[str, np.ndarray]
    attentions: tuple[Attention, ...]
    eps: float
    tied: bool
    head_norms: bool


def assemble(t: Traced) -> Decoder:
    """The decoder behind the graph's logits; :class:`Unsupported` naming the first node that is in the way."""
    return _Assembly(t).run()


def logits(t: Traced) -> str:
    """The output that is the logits of every token."""
    found = []
    for name in t.graph.outputs:
        form = t.values.get(name)
        term = t.meant(form, Linear) if isinstance(form, Form) else None
        channels = form.token_major(term, t.tokens) if isinstance(form, Form) and term is not None else None
        if term is not None and channels is not None and np.array_equal(channels, np.arange(term.size)):
            found.append((term.number, name))
    if not found:
        shown = ", ".join(t.graph.outputs)
        raise t.refused(None, f"none of the outputs ({shown}) is the logits [1, tokens, vocab] of every token")
    return max(found)[1]


class _Assembly:
    def __init__(self, t: Traced) -> None:
        self.t = t
        self.tensors: dict[str, np.ndarray] = {}
        self.attentions: list[Attention] = []
        self.eps: dict[float, Term] = {}
        self.head_norms: list[bool] = []

    def run(self) -> Decoder:
        head = self.t.of(self.t.values[logits(self.t)])
        assert head is not None, "logits are a term"
        if head.meaning.bias is not None:
            raise self.t.refused(head.origin, "adds a bias to the logits")
        stream = self.norm("model.norm", head.meaning.x)
        layers = []
        while isinstance(stream.meaning, Residual):
            layers.append(self.split(stream))
            stream = layers[-1][0]
        if not isinstance(stream.meaning, Embed):
            raise self.t.refused(stream.origin, "is no part of the residual stream of a decoder")
        for i, (_, attended, fed) in enumerate(reversed(layers)):
            self.attention(i, *attended)
            self.mlp(i, *fed)
        table, weight = stream.meaning.table, head.meaning.weight
        tied = table.shape == weight.shape and np.array_equal(table, weight)
        self.tensors |= {"model.embed_tokens.weight": table} | ({} if tied else {"lm_head.weight": weight})
        eps, *others = self.eps
        if others:
            found = ", ".join(f"{eps:g}" for eps in self.eps)
            raise self.t.refused(list(self.eps.values())[-1].origin, f"has another epsilon than other norms: {found}")
        if not layers or len(set(self.head_norms)) != 1:
            raise self.t.refused(head.origin, "follows no layer, or layers of which only some normalise heads")
        return Decoder(self.tensors, tuple(self.attentions), eps, tied, self.head_norms[0])

    def split(self, stream: Term) -> tuple[Term, tuple[Term, Term], tuple[Term, Term]]:
        """The stream before a layer, and what its two halves add to which stream."""
        between, down = self.added(stream, Gated, "a gated MLP")
        before, out = self.added(between, Attention, "attention")
        return before, (before, out), (between, down)

    def added(self, stream: Term, kind: type, what: str) -> tuple[Term, Term]:
        """The stream and the linear layer that add up to this one."""
        if isinstance(stream.meaning, Residual):
            for x, y in ((stream.meaning.x, stream.meaning.y), (stream.meaning.y, stream.meaning.x)):
                if isinstance(y.meaning, Linear) and isinstance(y.meaning.x.meaning, kind):
                    return x, y
        raise self.t.refused(stream.origin, f"is not where the output of {what} is added to the residual stream")

    def attention(self, i: int, stream: Term, out: Term) -> None:
        at, one = f"model.layers.{i}", out.meaning.x.meaning
        self.attentions.append(one)
        self.linear(f"{at}.self_attn.o_proj", out)
        normed = [self.projected(f"{at}.self_attn.{word}", getattr(one, name)) for word, name in
                  (("q", "query"), ("k", "key"), ("v", "value"))]
        self.head_norms.append(normed[0][1])
        if normed[0][1] != normed[1][1] or normed[2][1]:
            raise self.t.refused(out.meaning.x.origin, "normalises queries or keys, but not both and only those")
        self.same_norm(f"{at}.input_layernorm", stream, [x for x, _ in normed], out)

    def projected(self, name: str, heads: Vector) -> tuple[Term, bool]:
        """What a projection to heads reads, and whether the heads are normalised."""
        term, normed = heads.x, isinstance(heads.x.meaning, Norm)
        if normed:
            inner = term.meaning.x.meaning
            self.head_norm(f"{name}_norm", term, inner, heads.channels)
            term = inner.x
        self.linear(f"{name}_proj", term, heads.channels.reshape(-1))
        return term.meaning.x, normed

    def head_norm(self, name: str, term: Term, inner: Normed, channels: Channels) -> None:
        """A norm per head, one gain for all heads."""
        groups = {tuple(group) for group in np.sort(inner.groups, axis=1).tolist()}
        gain = term.meaning.gain[channels]
        if any(tuple(head) not in groups for head in np.sort(channels, axis=1).tolist()) or (gain != gain[0]).any():
            raise self.t.refused(term.origin, "normalises other channels together than those of a head")
        self.eps.setdefault(inner.eps, term)
        self.tensors[f"{name}.weight"] = gain[0]

    def mlp(self, i: int, stream: Term, down: Term) -> None:
        at, gated = f"model.layers.{i}", down.meaning.x.meaning
        self.linear(f"{at}.mlp.down_proj", down)
        gate = gated.gate.x.meaning.x  # below the SiLU
        self.linear(f"{at}.mlp.gate_proj", gate, gated.gate.channels)
        self.linear(f"{at}.mlp.up_proj", gated.up.x, gated.up.channels)
        self.same_norm(f"{at}.post_attention_layernorm", stream, [gate.meaning.x, gated.up.x.meaning.x], down)

    def same_norm(self, name: str, stream: Term, read: list[Term], after: Term) -> None:
        """The norm that all of a half's projections read, of the stream that its output is added to."""
        if any(x is not read[0] for x in read) or self.norm(name, read[0]) is not stream:
            raise self.t.refused(after.origin, "ends a branch whose start is not one norm of the residual stream")

    def norm(self, name: str, term: Term) -> Term:
        """The vector that a norm over all its channels reads."""
        inner = term.meaning.x.meaning if isinstance(term.meaning, Norm) else None
        if inner is None or inner.groups.shape != (1, term.size):
            raise self.t.refused(term.origin, "is read where a decoder has an RMS norm of the residual stream")
        self.eps.setdefault(inner.eps, term)
        self.tensors[f"{name}.weight"] = term.meaning.gain
        return inner.x

    def linear(self, name: str, term: Term, rows: Channels | None = None) -> None:
        """The weight and the bias of a linear layer, or of some of its rows."""
        if not isinstance(term.meaning, Linear):
            raise self.t.refused(term.origin, "is read where a decoder has a linear layer")
        at = slice(None) if rows is None else _run(rows)
        self.tensors[f"{name}.weight"] = term.meaning.weight[at]
        if term.meaning.bias is not None:
            self.tensors[f"{name}.bias"] = term.meaning.bias[at]


def _run(rows: Channels) -> slice | Channels:
    """Rows as a slice where they follow each other, so that a part of a weight is a view of it."""
    first = int(rows[0])
    return slice(first, first + len(rows)) if np.array_equal(rows, np.arange(first, first + len(rows))) else rows
