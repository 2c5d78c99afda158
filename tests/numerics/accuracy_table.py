"""A model and a text in, the table of ``docs/05-numerics.md`` out: what each choice of the number format costs.

``python tests/numerics/accuracy_table.py demo held-out.txt`` takes minutes; it is run when numerics change.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from rewriting import spoiled

from openlpu._base.errors import BadRequest
from openlpu.checkpoint.folder import load
from openlpu.cli import DOCUMENT_END, WINDOW
from openlpu.compile import runners
from openlpu.graph import build
from openlpu.graph.evaluate import evaluate
from openlpu.graph.ir import Graph
from openlpu.numerics import feedback, moments, report
from openlpu.numerics import integer as steps
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.integer import integer
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.numerics.widths import bits
from openlpu.target.base import Chunk
from openlpu.target.cpu import run as cpu
from openlpu.target.ref.run import trace

Step = Callable[[Graph, Scheme], Graph]


def whole(graph: Graph, scheme: Scheme) -> Graph:
    return integer(graph, scheme, runners())


def plain(graph: Graph, scheme: Scheme) -> Graph:
    """Each weight to its nearest code, with nothing said by others' errors."""
    return lower(prepare(graph, scheme, trace), scheme)


def centreless(graph: Graph, scheme: Scheme) -> Graph:
    """What a 4-bit cache is without a centre for its keys."""
    return lower(prepare(graph, replace(scheme, kv_bits=8), trace), scheme)


def tried(module: Any, **constants: Any) -> tuple[bool, Step, Scheme]:
    """A row of 4.5 bits with other constants of a module."""
    def step(graph: Graph, scheme: Scheme) -> Graph:
        with patch.multiple(module, **constants):
            return whole(graph, scheme)

    return False, step, FOUR


def stretches(*over: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(s / 127) for s in over)


def bare(graph: Graph, scheme: Scheme) -> Graph:
    return lower(graph, scheme)


WIDE = Scheme(kv_bits=16, outlier_share=1.0)
FOUR = Scheme(weight_bits=4.5)
PRUNED = ("2:4", "blocks:0.125", "blocks:0.25", "blocks:0.5")
ROWS: dict[str, tuple[bool, Step, Scheme]] = {
    "default": (False, plain, Scheme()),
    "16-bit KV cache": (False, plain, Scheme(kv_bits=16)),
    "4-bit KV cache": (False, plain, Scheme(kv_bits=4)),
    "4-bit KV cache, no centre": (False, centreless, Scheme(kv_bits=4)),
    "default, model rewritten": (True, plain, Scheme()),
    "16-bit KV cache, model rewritten": (True, plain, Scheme(kv_bits=16)),
    "model rewritten, not equalized": (True, bare, Scheme(outlier_share=0.0)),
    "not equalized: narrow head, no outlier channels": (False, bare, Scheme(wide_head=False, outlier_share=0.0)),
    "not equalized: wide head, no outlier channels": (False, bare, Scheme(outlier_share=0.0)),
    "not equalized: two planes everywhere, 16-bit KV cache": (False, bare, WIDE),
    "4.5 bits": (False, whole, FOUR),
    "4.5 bits, model rewritten": (True, whole, FOUR),
    "4.5 bits, plain rounding": (False, plain, FOUR),
    "4.5 bits, plain rounding, model rewritten": (True, plain, FOUR),
    "4.9363 bits, as many as Q4_K_M": (False, whole, Scheme(weight_bits=4.9363)),
    "5 bits": (False, whole, Scheme(weight_bits=5)),
    "5 bits, model rewritten": (True, whole, Scheme(weight_bits=5)),
    "6 bits": (False, whole, Scheme(weight_bits=6)),
    **{f"pruned {how}": (False, whole, Scheme(prune=how)) for how in PRUNED},
    **{f"pruned {how}, the smallest dropped": (False, plain, Scheme(prune=how)) for how in PRUNED},
    "tried: a scale of amax / 127": tried(feedback, STRETCHES=stretches(1)),
    "tried: a scale 6 % coarser": tried(feedback, STRETCHES=stretches(1.06)),
    "tried: a scale 12 % coarser": tried(feedback, STRETCHES=stretches(1.12)),
    "tried: the best of three scales": tried(feedback, STRETCHES=stretches(1, 1.06, 1.12)),
    **{f"tried: {count} texts": tried(steps, TEXTS=count) for count in (16, 32)},
    **{f"tried: damping by {share}": tried(feedback, DAMPING=share) for share in (0.003, 0.03, 0.1)},
    **{f"tried: feedback within {size} channels": tried(moments, WINDOW=size) for size in (64, 128, 256)},
}


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True).astype(np.float64)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def excess(made: Graph, windows: Sequence[report.Window], exact: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Perplexity over fp32's, the standard error of it, and the mean divergence from fp32's probabilities."""
    target = cpu.load(made, context=max(map(len, windows)))
    more, divergence = [], 0.0
    for ids, want in zip(windows, exact, strict=True):
        got = log_softmax(target.run([Chunk(0, 0, tuple(ids[:-1]), every=True)])[0])
        more.append((want - got)[np.arange(len(got)), np.asarray(ids[1:])])
        divergence += (np.exp(want) * (want - got)).sum()
    target.close()
    each = np.concatenate(more)
    return float(np.expm1(each.mean())), float(each.std() / len(each) ** 0.5), divergence / len(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--positions", type=int, default=WINDOW, help="of a window")
    parser.add_argument("--only", default="", help="rows whose name has this")
    args = parser.parse_args()
    checkpoint = load(args.model)
    documents = [part.strip("\n") for part in args.text.read_text("utf-8").split(DOCUMENT_END)]
    ids = [checkpoint.tokenizer.encode(document, special=False) for document in documents if document]
    windows = report.windows(ids, checkpoint.config.bos, args.positions)[: args.windows]
    graph = build(checkpoint)
    exact = [log_softmax(evaluate(graph, ids[:-1])).astype(np.float32) for ids in windows]
    tokens = sum(map(len, exact))
    loss = -sum(float(x[np.arange(len(x)), np.asarray(ids[1:])].sum()) for x, ids in zip(exact, windows, strict=True))
    print(f"{tokens} tokens, fp32 perplexity {np.exp(loss / tokens):.4f}")
    for name, (rewrite, step, scheme) in ROWS.items():
        if args.only not in name:
            continue
        try:
            made = step(spoiled(graph) if rewrite else graph, scheme)
        except BadRequest as error:
            print(f"{'':41}  {name}: {error}")
            continue
        more, error, divergence = excess(made, windows, exact)
        print(f"{more:+8.3%} ± {error:.3%}  {divergence:8.5f}  {bits(made):.3f} bits  {name}", flush=True)


if __name__ == "__main__":
    main()
