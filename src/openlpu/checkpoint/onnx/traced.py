"""The state of reading a graph: its values so far, and the terms they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from openlpu._base.errors import Unsupported
from openlpu.checkpoint.onnx.file import OnnxGraph, Operation
from openlpu.checkpoint.onnx.form import Form, Term
from openlpu.checkpoint.onnx.terms import Norm, Normed, Vector

Argument = np.ndarray | Form | None
FIX = ("openlpu reads decoders of the Llama, Mistral, Qwen2 and Qwen3 kind: RMS norm, rotary embedding, causal "
       "attention, gated SiLU")


class Traced:
    """``values`` by name: arrays where they do not depend on the tokens, forms where they do."""

    def __init__(self, graph: OnnxGraph, tokens: int) -> None:
        self.graph, self.tokens = graph, tokens
        self.values: dict[str, Any] = {}
        self.terms: list[Term] = []
        # Arrays that differ from token to token and are multiplied with: by whom, and what says which rows are read.
        self.tables: dict[str, tuple[Operation, str]] = {}
        self._plain: dict[int, Term] = {}

    def term(self, meaning: Any, size: int, origin: Operation | None) -> Term:
        """A term of its own number."""
        self.terms.append(Term(len(self.terms), meaning, size, origin))
        return self.terms[-1]

    def form(self, value: Argument) -> Form:
        """A value as a form."""
        return value if isinstance(value, Form) else Form.known(np.asarray(value))

    def of(self, form: Form) -> Term | None:
        """The one term whose numbers a value is, as they are; None when there is none."""
        number = form.single if form.pure is not None else None
        return None if number is None else self.terms[number]

    def meant(self, form: Form, meaning: type) -> Term | None:
        """As :meth:`of`, where the term has this meaning."""
        term = self.of(form)
        return term if term is not None and isinstance(term.meaning, meaning) else None

    def vector(self, operation: Operation, form: Form) -> Vector:
        """The channels that the last axis of a value holds, for each token in turn."""
        term = self.of(form)
        channels = None if term is None else form.token_major(term, self.tokens)
        if term is None or channels is None:
            raise self.refused(operation, "reads something else than one vector for each token")
        return Vector(self.gained(term), channels)

    def gained(self, term: Term) -> Term:
        """A norm without a gain as one whose gain is 1; any other term as it is."""
        if not isinstance(term.meaning, Normed):
            return term
        if term.number not in self._plain:
            self._plain[term.number] = self.term(Norm(term, np.ones(term.size, np.float32)), term.size, term.origin)
        return self._plain[term.number]

    def note_table(self, operation: Operation, name: str, array: Argument) -> None:
        """Remember an array that differs from token to token: it must be a table of cosines or sines."""
        if isinstance(array, np.ndarray) and array.ndim > 1 and self.tokens in array.shape:
            self.tables[name] = (operation, "")

    def refused(self, operation: Operation | None, what: str) -> Unsupported:
        """The error for a node whose part in a decoder is not understood."""
        where = self.graph.where(operation) if operation else str(self.graph.path)
        return Unsupported(what, where=where, fix=FIX)


Rule = Callable[[Traced, Operation, Sequence[Argument]], Sequence[Argument]]
