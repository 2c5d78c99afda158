"""What was understood of a few tokens, proved for every position: masks and tables of angles at full length.

A window of attention wider than the sample, a table that ends, or angles that change behind some length only show
there.  Only what leads to masks and tables is computed; no layer is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import Unsupported
from openlpu.checkpoint.onnx import operators, standard
from openlpu.checkpoint.onnx.attend import HIDDEN
from openlpu.checkpoint.onnx.feeds import Interface
from openlpu.checkpoint.onnx.file import Operation
from openlpu.checkpoint.onnx.form import Form
from openlpu.checkpoint.onnx.run import evaluate
from openlpu.checkpoint.onnx.terms import Attention
from openlpu.checkpoint.onnx.traced import Traced

QUERIES = 4  # tokens behind a cache that is all but full
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Where", "Cast", "CastLike", "Identity")


def windows(t: Traced, interface: Interface, layers: Sequence[Attention], context: int) -> tuple[int, ...]:
    """The window of each layer's attention, 0 where it sees everything; ``context`` positions are looked at.

    Raises :class:`Unsupported` naming the node whose mask is another, or whose table is no cosine or sine of
    position * frequency; :class:`BadCheckpoint` where the graph has no such positions.
    """
    tokens = min(QUERIES, context) if interface.caches else interface.window(context)
    past = context - tokens if interface.caches else 0
    chains = [_chain(t, layer) for layer in layers]
    wanted = {name for chain in chains for operation in chain for name in operation.inputs if _known(t, name)}
    wanted |= {name for table, (_, rows) in t.tables.items() for name in (table, rows) if name}
    values = evaluate(t.graph, interface.feeds([0] * tokens, past), wanted)
    span = _Span(t, past, tokens, interface.slots or past + tokens, values)
    if layers:
        for table in t.tables:
            span.check_table(table, layers[0].frequencies)
    seen: dict[object, int] = {}
    found = []
    for chain in chains:
        key = tuple((o.kind, tuple(n for n in o.inputs if _known(t, n)), str(o.attributes)) for o in chain)
        if key not in seen:
            seen[key] = span.window(chain)
        found.append(seen[key])
    return tuple(found)


def _known(t: Traced, name: str) -> bool:
    return bool(name) and not isinstance(t.values[name], Form)


def _chain(t: Traced, layer: Attention) -> tuple[Operation, ...]:
    """The operations from the scores on to the softmax, which is the last."""
    writers = {name: operation for operation in t.graph.operations for name in operation.outputs}
    chain = [layer.masked_by]
    while chain[0] is not layer.scored_by:
        traced = [name for name in chain[0].inputs if name and not _known(t, name)]
        chain.insert(0, writers[traced[0]])
    return tuple(chain[1:]) or tuple(chain)


class _Span:
    """The positions looked at: ``tokens`` behind ``past``, and the arrays there."""

    def __init__(
        self, t: Traced, past: int, tokens: int, positions: int, values: Mapping[str, np.ndarray]
    ) -> None:
        self.t, self.past, self.tokens, self.positions, self.values = t, past, tokens, positions, values
        self.at = np.arange(past, past + tokens)

    def window(self, chain: Sequence[Operation]) -> int:
        """The window that a mask is, 0 for none; proves that it is one."""
        last = chain[-1]
        added = self._standard(last) if last.kind == "Attention" else self._replayed(chain)
        added = np.broadcast_to(added, (*added.shape[:-2], self.tokens, self.positions))
        visible = (added > HIDDEN).reshape(-1, self.tokens, self.positions)
        count = int(visible[0, -1].sum())
        window = 0 if count == self.at[-1] + 1 else count
        position = np.arange(self.positions)
        wanted = position <= self.at[:, None]
        if window:
            wanted &= position > self.at[:, None] - window
        if not (visible == wanted).all():
            raise self.t.refused(last, "has a mask that is neither causal nor a sliding window")
        return window

    def _standard(self, operation: Operation) -> np.ndarray:
        inputs = [self.values.get(name) if name else None for name in operation.inputs]
        past = self.past if len(operation.inputs) > 4 and operation.inputs[4] else 0
        return standard.hidden_by(inputs, operation.attributes, past, self.tokens, self.positions)

    def _replayed(self, chain: Sequence[Operation]) -> np.ndarray:
        """What the operations between scores and softmax make of scores that are all 0."""
        rank = len(self.t.form(self.t.values[chain[-1].inputs[0]]).shape)
        value = np.zeros((*(1,) * (rank - 2), self.tokens, self.positions), np.float32)
        for operation in chain[:-1]:
            if operation.kind not in ELEMENTWISE:
                raise self.t.refused(operation, "moves scores between their product and their softmax")
            inputs = [self.values[name] if _known(self.t, name) else value for name in operation.inputs]
            value = operators.apply(self.t.graph, operation, inputs)[0]
        return value

    def check_table(self, name: str, frequencies: NDArray[np.float64]) -> None:
        """Prove that a table is the cosines or the sines of position * frequency, or ones."""
        operation, rows = self.t.tables[name]
        sample, table = np.asarray(self.t.values[name]), self.values[name]
        if rows:
            sample, table = sample[np.asarray(self.t.values[rows])], table[self.values[rows]]
        axis = sample.shape.index(self.t.tokens)
        table = np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)
        if len(table) != self.tokens:
            raise self._no_table(operation)
        angle = self.at[:, None] * frequencies
        pair, half = np.arange(table.shape[1]), len(frequencies)
        for of in (pair % half, pair // 2 % half):
            error = 2e-6 + 4e-7 * angle[:, of]
            for wanted in (np.cos(angle), np.sin(angle), -np.sin(angle)):
                if (abs(table - wanted[:, of]) <= error).all():
                    return
        if not (table == 1).all():
            raise self._no_table(operation)

    def _no_table(self, operation: Operation) -> Unsupported:
        what = f"multiplies by a table that is no cosine or sine of position * frequency up to position {self.at[-1]}"
        return self.t.refused(operation, what)
