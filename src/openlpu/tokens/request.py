"""A user's options in, a frozen :class:`Request` out: what to continue, how to choose, when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import SupportsIndex

from openlpu._base.errors import BadRequest


def _expect(ok: bool, name: str, value: object, range_: str) -> None:
    if not ok:
        raise BadRequest(f"{value!r} is out of range", where=name, fix=f"{name} is {range_}")


def _expect_integer(name: str, value: object) -> None:
    if not isinstance(value, SupportsIndex):
        raise BadRequest(f"{value!r} is not an integer", where=name, fix="give a whole number")


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; ``docs/10-tokens.md`` defines each step to the bit.

    ``temperature`` 0 is greedy.  ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repetition_penalty`` 1 are off.
    ``seed`` and ``choice`` (which of several answers to one prompt) select the random numbers.
    Raises :class:`BadRequest` naming the field that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    choice: int = 0

    def __post_init__(self) -> None:
        for name in ("top_k", "seed", "choice"):
            _expect_integer(name, getattr(self, name))
        _expect(0 <= self.temperature <= 100, "temperature", self.temperature, "0 (greedy) to 100")
        _expect(self.top_k >= 0, "top_k", self.top_k, "0 (off) or a count of tokens")
        _expect(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1 (off)")
        _expect(0 <= self.min_p <= 1, "min_p", self.min_p, "0 (off) to 1")
        penalty = self.repetition_penalty
        _expect(0.01 <= penalty <= 100, "repetition_penalty", penalty, "0.01 to 100, 1 is off")
        _expect(0 <= self.seed < 2**64, "seed", self.seed, "an unsigned 64-bit integer")
        _expect(0 <= self.choice < 2**32, "choice", self.choice, "an unsigned 32-bit integer")


@dataclass(frozen=True)
class Request:
    """Token ids to continue, with limits: ``max_tokens``, ids that end the answer, texts that end it."""

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 64
    stop_ids: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _expect_integer("max_tokens", self.max_tokens)
        _expect(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _expect("" not in self.stop_texts, "stop", "", "a text of at least one character")

    def check(self, vocab: int, context: int) -> None:
        """Raise :class:`BadRequest` when a model of this vocabulary and context cannot run the prompt."""
        if not self.prompt:
            raise BadRequest("the prompt is empty", where="prompt", fix="give at least one token")
        for at, token in enumerate(self.prompt):
            if not 0 <= token < vocab:
                raise BadRequest(
                    f"token id {token} at index {at} is out of range", where="prompt",
                    fix=f"the model's token ids are 0 to {vocab - 1}",
                )
        if len(self.prompt) > context:
            raise BadRequest(
                f"{len(self.prompt)} tokens do not fit the context of {context}", where="prompt",
                fix="shorten the prompt or load the model with a longer context",
            )
