"""A machine's measurement and a plan in, a promise about wall time out: before the first token runs.

A promise is a pure function of the machine file, the plan and the request.  It gives the time per token as it grows
with the context and the time to the first token, each with a limit and the share of tokens expected below it.
Afterwards the measured times stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from openlpu._base import units
from openlpu.target.base import F32, Chunk
from openlpu.target.cpu import cost
from openlpu.target.cpu.machine import PERCENTS, Machine
from openlpu.target.cpu.plan import Plan
from openlpu.tokens.engine import Engine
from openlpu.tokens.request import Request, Sampling

MOST = 1.25  # a limit further above the median would not be worth having
SLACK = 1.05  # what a predicted median may be wrong by
# Promised percent -> the percentile of the measured spread that stands for it: a promise leans to the safe side.
SAFE = {99: 99.5, 95: 98, 90: 95, 80: 90}
LEAST = 50  # percent that are left when times spread so far that no limit helps
CONTEXTS = (1, 256, 1024, 4096, 16384, 65536)  # at which --json says the time per token
TOKENS = 64  # a round of measuring the engine
VOCABULARIES = (256, 65536)
DRAWN = Sampling(temperature=0.8, top_p=0.95)


@dataclass(frozen=True)
class Limit:
    """A predicted median and what ``percent`` of a hundred times stay below; both in wall seconds."""

    median: float
    limit: float
    percent: int


def limit(machine: Machine, median: float) -> Limit:
    """The limit of times with this median: that of 99 in 100 where it is worth having, otherwise of fewer."""
    spread = dict(zip(PERCENTS, machine.spread(median), strict=True))
    for percent, measured in SAFE.items():
        if spread[measured] * SLACK <= MOST:
            return Limit(median, median * spread[measured] * SLACK, percent)
    return Limit(median, median * MOST, LEAST)


@dataclass(frozen=True)
class Forecast:
    """What this machine promises for a plan.

    ``chunk`` is the most prompt tokens of one step (0: all); ``engine`` counts what the engine adds to a step, for
    tokens that are the likeliest or ``drawn`` at random.
    """

    machine: Machine
    plan: Plan
    chunk: int = 0
    engine: bool = True
    drawn: bool = False

    def token(self, context: int) -> Limit:
        """The time of a token that sees ``context`` positions."""
        step = cost.decode(context)
        return limit(self.machine, self.machine.seconds(self.plan, step) + self._engine())

    def first(self, prompt: int) -> Limit:
        """The time from a request's start to its first token."""
        steps = cost.prefill(0, prompt, self.chunk)
        return limit(self.machine, sum(self.machine.seconds(self.plan, step) for step in steps))

    def _engine(self) -> float:
        if not self.engine:
            return 0.0
        way = "drawn" if self.drawn else "likeliest"
        prices = self.machine.prices
        return prices[f"engine: {way}"] + cost.logits(self.plan) * prices[f"engine: {way} logit"]


@dataclass(frozen=True)
class Promise:
    """What is said before a request runs: ``prompt`` tokens in, up to ``tokens`` out."""

    forecast: Forecast
    prompt: int
    tokens: int

    @property
    def token(self) -> Limit:
        """Of the token in the middle of the answer."""
        return self.forecast.token(self.prompt + (self.tokens + 1) // 2)

    @property
    def last(self) -> Limit:
        """Of the answer's last token, which sees the most."""
        return self.forecast.token(self.prompt + self.tokens)

    def __str__(self) -> str:
        token, last = self.token, self.last
        below = f"{last.percent} in 100 below {units.wall(last.limit)}"
        return (f"{units.wall(token.median)} per token ({below}), "
                f"first token in {units.wall(self.forecast.first(self.prompt).median)}")

    def to_json(self, context: int) -> dict[str, Any]:
        """Plain data for ``--json``; the time per token as a function of context, up to the model's."""
        first, token = self.forecast.first(self.prompt), self.token
        seen = [n for n in CONTEXTS if n < context] + [context]
        return {
            "clock": "wall", "prompt_tokens": self.prompt,
            "first_token_s": first.median, "first_token_limit_s": first.limit,
            "token_p50_s": token.median, "token_limit_s": self.last.limit, "kept_percent": self.last.percent,
            "at_context": [{"context": n, "token_p50_s": self.forecast.token(n).median,
                            "token_limit_s": self.forecast.token(n).limit} for n in seen],
        }

    def kept(self, gaps: Sequence[float]) -> float:
        """The share of tokens after the first that took no longer than their own limit (1 of none)."""
        limits = [self.forecast.token(self.prompt + 1 + i).limit for i in range(len(gaps))]
        return sum(gap <= most for gap, most in zip(gaps, limits, strict=True)) / len(gaps) if gaps else 1.0


class _Silent:
    """An executable that answers at once: what remains is the engine's own time."""

    def __init__(self, vocab: int) -> None:
        self.slots, self.context = 1, 2 * TOKENS
        generator = np.random.Generator(np.random.Philox(0))
        self.logits = generator.uniform(-10, 10, (1, vocab)).astype(np.float32)

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        return [self.logits for _ in chunks]

    def close(self) -> None:
        pass


def engine_prices() -> Mapping[str, float]:
    """Wall seconds that the engine adds to a token, and to each logit of it, by how a token is chosen."""
    prices: dict[str, float] = {}
    for way, sampling in (("likeliest", Sampling()), ("drawn", DRAWN)):
        small, large = (_engine_seconds(vocab, sampling) for vocab in VOCABULARIES)
        each = max(0.0, (large - small) / (VOCABULARIES[1] - VOCABULARIES[0]))
        prices |= {f"engine: {way}": max(0.0, small - each * VOCABULARIES[0]), f"engine: {way} logit": each}
    return prices


def _engine_seconds(vocab: int, sampling: Sampling) -> float:
    """The median time between two tokens of an answer that costs nothing else."""
    engine = Engine(_Silent(vocab), vocab=vocab)
    running = engine.add(Request((0,), sampling, TOKENS))
    times: list[float] = []
    while not running.finish:
        start = perf_counter()
        engine.step()
        times.append(perf_counter() - start)
    return units.percentile(times, 50)
