"""A model and a text in, the table of ``docs/05-numerics.md`` out: what each choice of the number format costs.

``python tests/numerics/accuracy_table.py demo held-out.txt`` takes minutes; it is run when numerics change.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rewriting import spoiled

from openlpu.checkpoint.folder import load
from openlpu.cli import DOCUMENT_END, WINDOW
from openlpu.graph import build
from openlpu.graph.evaluate import evaluate
from openlpu.graph.ir import Graph
from openlpu.numerics import report
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.cpu import run as cpu
from openlpu.target.ref.run import trace

Step = Callable[[Graph, Scheme], Graph]


def equalized(graph: Graph, scheme: Scheme) -> Graph:
    return prepare(graph, scheme, trace)


def bare(graph: Graph, scheme: Scheme) -> Graph:
    return graph


WIDE = Scheme(kv_bits=16, outlier_share=1.0)
ROWS: dict[str, tuple[bool, Step, Scheme]] = {
    "default": (False, equalized, Scheme()),
    "16-bit KV cache": (False, equalized, Scheme(kv_bits=16)),
    "default, model rewritten": (True, equalized, Scheme()),
    "16-bit KV cache, model rewritten": (True, equalized, Scheme(kv_bits=16)),
    "model rewritten, not equalized": (True, bare, Scheme(outlier_share=0.0)),
    "not equalized: narrow head, no outlier channels": (False, bare, Scheme(wide_head=False, outlier_share=0.0)),
    "not equalized: wide head, no outlier channels": (False, bare, Scheme(outlier_share=0.0)),
    "not equalized: two planes everywhere, 16-bit KV cache": (False, bare, WIDE),
}


def excess(integer: Graph, windows: Sequence[report.Window], exact: np.ndarray) -> tuple[float, float]:
    """Perplexity over fp32's, and the standard error of it."""
    target = cpu.load(integer, context=WINDOW)
    more = report.losses(lambda ids: target.run([Chunk(0, 0, tuple(ids), every=True)])[0], windows) - exact
    target.close()
    return float(np.expm1(more.mean())), float(more.std() / len(more) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=1000)
    args = parser.parse_args()
    checkpoint = load(args.model)
    documents = [part.strip("\n") for part in args.text.read_text("utf-8").split(DOCUMENT_END)]
    ids = [checkpoint.tokenizer.encode(document, special=False) for document in documents if document]
    windows = report.windows(ids, checkpoint.config.bos, WINDOW)[: args.windows]
    graph = build(checkpoint)
    exact = report.losses(lambda window: evaluate(graph, window), windows)
    print(f"{len(exact)} tokens, fp32 perplexity {np.exp(exact.mean()):.4f}")
    for name, (rewrite, step, scheme) in ROWS.items():
        more, error = excess(lower(step(spoiled(graph) if rewrite else graph, scheme), scheme), windows, exact)
        print(f"{more:+8.3%} ± {error:.3%}  {name}", flush=True)


if __name__ == "__main__":
    main()
