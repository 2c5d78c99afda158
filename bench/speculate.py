"""A model or a shape in; acceptance and speed-up of speculation on text that repeats itself and on text that does not.

``python bench/speculate.py [NAME [PAIRS]]`` (``demo``, 9): NAME is a model (``demo``, a folder) or a shape such as
``smollm2-135m``.  A model answers prompts.  A shape has random codes, so its step is real and the tokens it chooses
are dictated: whatever the logits are, the next token is the text's.  Plain and speculative runs alternate; the ratio
of each pair's decode times has a median and quartiles.  Exit status 1 when any pair differs in a token or a logit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np

from openlpu import compile as pipeline
from openlpu._base import units
from openlpu.graph import shapes
from openlpu.numerics.draw import draw
from openlpu.target.base import F32, Chunk, Executable
from openlpu.target.cpu.run import load
from openlpu.tokens.engine import Engine, Running
from openlpu.tokens.request import Request, Sampling
from openlpu.tokens.speculate import Adaptive

TOKENS = 192  # of each answer
PASSAGE = "What say you, good my lord, of him that came from Rome to-night, with all his men and horse?\n"
VERSE = "ROMEO:\nIf I profane with my unworthiest hand this holy shrine, the gentle fine is this.\n\n"


class Dictated:
    """An executable whose logits, computed like any, are made to choose the tokens of a text."""

    def __init__(self, inner: Executable, text: Sequence[int]) -> None:
        self.inner, self.text, self.slots, self.context = inner, text, inner.slots, inner.context

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        """The inner logits, with the next token of the text above all others."""
        results = self.inner.run(chunks)
        for chunk, rows in zip(chunks, results, strict=True):
            first = chunk.start + len(chunk.tokens) - len(rows) + 1
            for position, row in enumerate(rows, first):
                row[self.text[position]] = 1e9
        return results

    def close(self) -> None:
        """Leave the inner executable to its owner."""


def texts(vocab: int) -> dict[str, list[int]]:
    """Token ids: a passage over and over, the same with every ninth token changed, and no passage twice."""
    rng = np.random.default_rng(1)
    fresh = [int(token) for token in rng.integers(0, vocab, 2 * TOKENS + 8)]
    passage = (fresh[:48] * len(fresh))[: len(fresh)]
    edited = [other if i % 9 == 8 else token for i, (token, other) in enumerate(zip(passage, fresh, strict=True))]
    return {"repeats a passage": passage, "repeats it, edited": edited, "does not repeat": fresh}


def answer(make: Callable[[Adaptive | None], Engine], request: Request, speculation: Adaptive | None) -> Running:
    """One request, run to its end."""
    engine = make(speculation)
    running = engine.add(request)
    while not engine.idle:
        engine.step()
    return running


def compare(name: str, make: Callable[[Adaptive | None], Engine], request: Request, pairs: int) -> bool:
    """Alternate and print; whether every pair had the same bits.  The first pair, which measures rows, is left out."""
    speculation, ratios, fasts, same = Adaptive(), [], [], True
    for _ in range(pairs + 1):
        plain, fast = (answer(make, request, one) for one in (None, speculation))
        same = same and (plain.ids, plain.logits_sha256) == (fast.ids, fast.logits_sha256)
        ratios.append((plain.times[-1] - plain.times[0]) / (fast.times[-1] - fast.times[0]))
        fasts.append(fast)
    tokens, steps, guessed = (
        sum(counts) for counts in zip(*((len(one.times), one.steps, one.guessed) for one in fasts[1:]), strict=True)
    )
    low, middle, high = (units.percentile(ratios[1:], percent) for percent in (25, 50, 75))
    print(f"{name:32} {(tokens - steps) / max(guessed, 1):4.0%} of {guessed / steps:5.2f} guesses a step accepted, "
          f"{tokens / steps:5.2f} tokens a step, {middle:5.2f} times as fast ({low:.2f} to {high:.2f})"
          + ("" if same else ", DIFFERENT BITS"))
    return same


def main(name: str, pairs: int) -> int:
    """Print a line for each text; 1 when some bits differ."""
    same = True
    if name in shapes.SHAPES:
        graph = draw(shapes.shape(name, 2 * TOKENS))
        executable = load(graph)
        for title, ids in texts(graph.config.vocab).items():
            dictated = Dictated(executable, ids)
            request = Request(tuple(ids[:TOKENS]), max_tokens=TOKENS)

            def make(speculation: Adaptive | None, runs: Executable = dictated) -> Engine:
                return Engine(runs, vocab=graph.config.vocab, speculation=speculation)

            same = compare(title, make, request, pairs) and same
        executable.close()
        return 0 if same else 1
    with pipeline.load(name) as model:
        for title, prompt in (("a passage twice", PASSAGE * 2), ("verse", VERSE)):
            for how, sampling in (("greedy", Sampling()), ("sampled at 0.8", Sampling(temperature=0.8))):
                request = Request(model.encode(prompt), sampling, max_tokens=TOKENS)

                def ask(speculation: Adaptive | None) -> Engine:
                    return Engine(model.executable, vocab=model.engine.vocab, speculation=speculation)

                same = compare(f"{title}, {how}", ask, request, pairs) and same
    return 0 if same else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("pairs", nargs="?", type=int, default=9, choices=range(1, 1000), metavar="PAIRS")
    given = parser.parse_args()
    sys.exit(main(given.model, given.pairs))
