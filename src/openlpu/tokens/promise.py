"""A machine's measurement and a plan in, a promise about wall time out: before the first token runs.

A promise is a pure function of the machine file, the plan and the request.  It gives the time per token as it grows
with the context and the time to the first token, each with a limit and the share of tokens expected below it.
Afterwards the measured times stand beside it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from openlpu._base import units
from openlpu.checkpoint.folder import DEMO
from openlpu.checkpoint.tokenizer import Tokenizer
from openlpu.target.cpu import cost
from openlpu.target.cpu.machine import PERCENTS, Machine
from openlpu.target.cpu.plan import Plan
from openlpu.target.cpu.run import CpuExecutable
from openlpu.tokens.model import Model
from openlpu.tokens.request import Sampling

MOST = 1.25  # a limit further above the median would not be worth having
SLACK = 1.05  # what a predicted median may be wrong by
# Promised percent -> the percentile of the measured spread that stands for it: a promise leans to the safe side.
SAFE = {99: 99.5, 95: 98, 90: 95, 80: 90}
LEAST = 50  # percent that are left when times spread so far that no limit helps
CONTEXTS = (1, 256, 1024, 4096, 16384, 65536)  # at which --json says the time per token
TOKENS = 64  # of an answer that is measured
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

    ``chunk`` is the most prompt tokens of one step (0: all).  ``engine`` counts what a request adds to its steps: for
    each token, which is the likeliest or ``drawn`` at random, and for the first of a process, whose weights may still
    be ``mapped`` from a file.
    """

    machine: Machine
    plan: Plan
    chunk: int = 0
    engine: bool = True
    drawn: bool = False
    mapped: bool = False

    def token(self, context: int) -> Limit:
        """The time of a token that sees ``context`` positions."""
        step = cost.decode(context)
        return limit(self.machine, self.machine.seconds(self.plan, step) + self._engine())

    def first(self, prompt: int) -> Limit:
        """The time from a process's first request to its first token."""
        steps = cost.prefill(0, prompt, self.chunk)
        warm = limit(self.machine, sum(self.machine.seconds(self.plan, step) for step in steps))
        if not self.engine:
            return warm
        prices = self.machine.prices
        weights = cost.weight_bytes(self.plan, self.machine.setting.path) if self.mapped else 0
        cold, late = (prices[f"start: {how}call"] + weights * prices[f"start: {how}mapped byte"]
                      for how in ("", "late "))
        return Limit(warm.median + cold, warm.limit + late, warm.percent)

    def _engine(self) -> float:
        if not self.engine:
            return 0.0
        way, size = "engine: drawn " if self.drawn else "engine: likeliest ", cost.logits(self.plan)
        prices = self.machine.prices.items()
        known = sorted((int(kind.removeprefix(way)), price) for kind, price in prices if kind.startswith(way))
        # A straight line between the vocabularies that were measured, and on beyond them.
        (a, low), (b, high) = next((two for two in pairwise(known) if size <= two[1][0]), known[-2:])
        return max(0.0, low + (high - low) * (size - a) / (b - a))


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


def start_prices(call: Sequence[float], mapped: Sequence[float], weights: int) -> dict[str, float]:
    """Prices of a cold start from what first tokens took in new processes beyond the steps of a warm one.

    ``call`` are seconds with weights in memory, ``mapped`` with ``weights`` bytes of them in files.  ``late`` are those
    of the latest: there are too few for more.
    """
    once = max(0.0, units.percentile(call, 50))
    each, late = (max(0.0, units.percentile(mapped, percent) - once) / weights for percent in (50, 100))
    return {"start: call": once, "start: late call": max(once, *call),
            "start: mapped byte": each, "start: late mapped byte": late}


class _AnyId(Tokenizer):
    """A tokenizer whose ids begin again behind its last."""

    def audible(self, token_id: int) -> bool:
        return super().audible(token_id % self.size)

    def spell(self, ids: list[int]) -> str:
        return super().spell([token_id % self.size for token_id in ids])


def answers(executable: CpuExecutable, drawn: bool, seconds: float) -> list[float]:
    """Wall seconds between tokens of plain answers as somebody reads them, for about so many seconds of them."""
    tokenizer, sampling = _AnyId(DEMO / "tokenizer.json"), DRAWN if drawn else Sampling()
    model = Model("", executable, tokenizer, vocab=executable.vocab, defaults=sampling, fingerprint=str)
    times: list[float] = []
    with open(os.devnull, "w", encoding="utf-8") as reader:
        while sum(times) < seconds:
            answer = model.generate((0,), max_tokens=TOKENS)
            for piece in answer:
                print(end=piece, file=reader, flush=True)
            times += answer.gaps
    return times
