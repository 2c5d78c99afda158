"""Float graph and scheme in, integer graph out: every step of numerics in order.

8-bit weights need no text.  4-bit weights are rounded, and pruned ones chosen, by what the model itself reads when it
writes: ``write`` runs the 8-bit model, so the texts are the same on every processor, and no other text is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import Unsupported
from openlpu._base.progress import Progress, silent
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph.ir import Graph
from openlpu.numerics import blocks, feedback, prune, widths
from openlpu.numerics.calibrate import Trace, prepare
from openlpu.numerics.feedback import Factor, Plain, Rounder
from openlpu.numerics.lower import folded, lower, reduced, rounded
from openlpu.numerics.moments import TOKENS, Windows, moments
from openlpu.numerics.scheme import SMALLEST, Scheme
from openlpu.numerics.workers import in_order

Write = Callable[[Graph, int, int, Progress], Sequence[Sequence[int]]]
"""Texts that an integer graph writes: so many, of at most so many tokens, sampled at temperature 1."""

TEXTS, LENGTH = 64, TOKENS  # what the moments are taken from
PROBES, PROBE = 4, 64  # the first tokens of some of them, on which the widths are chosen

Coded = Mapping[str, np.ndarray]
Fit = Callable[[NDArray[np.float32]], Coded]


@dataclass(frozen=True)
class Runners:
    """What numerics needs of the targets, which it cannot import.

    ``trace`` shows every value, ``write`` samples, ``rounder`` rounds rows to the codes of :class:`Plain`, but faster.
    """

    trace: Trace
    write: Write
    rounder: Callable[[Factor], Rounder] = Plain


def integer(graph: Graph, scheme: Scheme, run: Runners, progress: Progress = silent) -> Graph:
    """The integer graph of a float graph under a scheme.

    Raises :class:`~openlpu._base.errors.BadRequest` for a budget of bits that the model cannot reach,
    :class:`~openlpu._base.errors.Unsupported` for one that is not for such a model.
    """
    if isinstance(graph.config, EncoderConfig) and (scheme.weight_bits < 8 or scheme.prune):
        raise Unsupported("an encoder of fewer weights or bits, which are chosen by what a model writes", where="bits",
                          fix="leave out --bits and --prune")
    ready = prepare(graph, scheme, run.trace)
    if scheme.weight_bits >= 8 and not scheme.prune:
        return lower(ready, scheme)
    eight = lower(ready, replace(scheme, weight_bits=8, prune=""))
    if scheme.weight_bits > SMALLEST and not scheme.prune:
        widths.check(eight, scheme.weight_bits)
    texts = run.write(eight, TEXTS, LENGTH, progress)
    coder = _Coder(ready, eight, moments(eight, run.trace, texts, progress), run.rounder, progress, scheme)
    if scheme.weight_bits == SMALLEST or scheme.prune:
        return lower(ready, scheme, coder)
    plain = replace(scheme, kv_bits=16, outlier_share=1.0, wide_head=True)
    wide, narrow = lower(ready, replace(plain, weight_bits=8)), lower(ready, plain, coder)
    probes = [text[:PROBE] for text in texts[:PROBES]]
    kept = widths.choose(wide, narrow, scheme.weight_bits, run.trace, probes, progress)
    made = narrow.producers()
    keys = {n.params["weight"] for n in ready.nodes if "weight" in n.params and made[n.output].params["codes"] in kept}
    return lower(ready, scheme, lambda g, key, gain: (rounded if key in keys else coder)(g, key, gain))


class _Coder:
    """4-bit or pruned codes of a weight, with feedback where a linear reads it; each is made once."""

    def __init__(
        self, graph: Graph, eight: Graph, found: Mapping[str, Windows], rounder: Callable[[Factor], Rounder],
        progress: Progress, scheme: Scheme,
    ) -> None:
        self.moments, self.rounder, self.progress, self.scheme = found, rounder, progress, scheme
        self.reduced = reduced(graph, scheme)
        made = eight.producers()
        self.reads = {n.params["weight"]: made[n.output].inputs[0] for n in graph.nodes if n.op == "linear"}
        self.coded: dict[str, Coded] = {}
        self.last: tuple[str, Fit] = ("", blocks.fit)  # q, k and v, or gate and up, read one value

    def __call__(self, graph: Graph, weight: str, gain: str | None) -> Coded:
        if weight not in self.coded:
            self.progress("round", len(self.coded), len(self.reads))
            if weight not in self.reduced:
                self.coded[weight] = rounded(graph, weight, gain)
            else:
                self.coded[weight] = self._fit(self.reads.get(weight))(folded(graph, weight, gain))
        return self.coded[weight]

    def _fit(self, value: str | None) -> Fit:
        """What makes codes of a weight whose linear reads ``value``."""
        if value is None:  # an embedding that no head shares: its rows are read one at a time
            return blocks.fit
        if self.last[0] != value:
            factors = list(in_order(Factor, self.moments[value]))
            self.last = (value, self._pruning(factors) if self.scheme.prune else self._rounding(factors))
        return self.last[1]

    def _pruning(self, factors: Sequence[Factor]) -> Fit:
        return lambda weight: prune.fit(weight, factors, **self.scheme.sparse(weight.shape[1]))

    def _rounding(self, factors: Sequence[Factor]) -> Fit:
        windows = [self.rounder(factor) for factor in factors]
        return lambda weight: feedback.fit(weight, windows)
