"""An integer graph in, texts that it writes out: what weights are rounded on when no other text is given.

Every text is sampled at temperature 1 with a seed of its own, so the texts are what the model expects to read, and
the same on every processor.
"""

from __future__ import annotations

from collections.abc import Callable

from openlpu._base.progress import Progress
from openlpu.arch.truepoint import draw
from openlpu.graph.ir import Graph
from openlpu.target.base import Executable
from openlpu.tokens.engine import Engine
from openlpu.tokens.request import Request, Sampling

SLOTS = 16  # texts written side by side


def write(
    load: Callable[..., Executable], graph: Graph, count: int, length: int, progress: Progress
) -> list[list[int]]:
    """``count`` texts of up to ``length`` token ids: a beginning-of-text id, or a hashed one, and what follows it.

    An end-of-text id ends nothing here: what a model writes after it is as good to learn from.
    """
    c = graph.config
    length = min(length, c.context)
    first = [c.bos] * count if c.bos is not None else draw.integers("write", count, 0, c.vocab - 1).tolist()
    executable = load(graph, slots=min(SLOTS, count), context=length)
    try:
        engine = Engine(executable, vocab=c.vocab)
        texts = [
            engine.add(Request((token,), Sampling(temperature=1.0, seed=seed), length - 1))
            for seed, token in enumerate(first)
        ]
        while any(not text.finish for text in texts):
            progress("write", sum(text.ran for text in texts), count * length)
            engine.step()
    finally:
        executable.close()
    return [text.ids for text in texts]
