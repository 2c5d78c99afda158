"""Token histories in, guesses of what follows out: speculative decoding by looking up the prompt and the answer.

A step may run the last token and guessed ones behind it as rows of one chunk.  What is chosen at a row depends on
logits, history and position alone, so a guess is kept exactly when the token chosen where it stands is the same
one: guessing decides how many tokens a step checks, never which.  That is why this is the one place where
measured times may decide anything: a clock can change how many, but no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from openlpu.tokens.engine import Running

ORDERS = (8, 4, 2)  # tokens at the end that must have stood before, tried longest first
LONGEST = ORDERS[0]
FIRST_CHANCE = (0.5, 0.25, 0.0)  # that a guess is right, before any was seen to be
LEARN = 0.125  # weight of the newest outcome
WIDTHS = (2, 4, 8)  # rows a request may take in a step: sizes in which kernels take rows together
MOST = WIDTHS[-1] - 1  # tokens guessed at once
SMALL = 40e-6  # seconds of a plain step below which looking up costs more than it can gain
GAIN = 1.05  # a guess must promise this many times plain decoding's tokens a second
WINDOW = 9  # step times measured for each number of rows; their median counts
TRUSTED = 3  # times after which it does
FORGET = 256  # steps after which times are measured again: a longer cache or another load changes them
LOSS = 0.01  # share of the time that may go into guessing for nothing
BURST = 2  # plain steps of time that may go before
CREDIT = 16  # plain steps that past gains may pay for
DOUBLED = 1.25  # cost of twice as many rows until it is measured: low enough to be tried by a promising guess


class Guess(NamedTuple):
    """Tokens that may come next, and how often tokens guessed this way were right."""

    tokens: tuple[int, ...]
    chance: float

    def expected(self, rows: int) -> float:
        """Tokens that a step of ``rows`` rows is expected to yield, its own included: 1 + p + p^2 + ..."""
        rows, p = min(rows, 1 + len(self.tokens)), self.chance
        return rows if p == 1.0 else (1.0 - p**rows) / (1.0 - p)


NOTHING = Guess((), 0.0)


class Speculation(Protocol):
    """Decides for an engine which tokens a step checks; whatever it says, the bits are the same."""

    def propose(self, running: Sequence[Running]) -> Sequence[tuple[int, ...]]:
        """Tokens to check behind each request's last, or an empty sequence for none at all.

        It is asked when all requests decode; tokens that a request has no room for are cut off.
        """
        ...

    def plain(self, requests: int, seconds: float) -> int:
        """A step in which ``requests`` decoded one token each took ``seconds``; returns steps not to be asked for."""
        ...

    def checked(self, requests: int, rows: int, made: int, seconds: float) -> None:
        """A step that ran ``rows`` rows of ``requests`` took ``seconds`` and made ``made`` tokens."""
        ...


class History:
    """Prompt and answer of one request, which only ever grow, and what followed each run of tokens in them.

    The longest of ``ORDERS`` that was seen before wins, and its latest place.  A dictionary holds the end of every
    such run, so a guess costs the same however long the history is (and some 400 bytes a token).  Every guess is
    compared with what came, checked or not: the chance of each order is known without spending a row on it.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self._ends: dict[int, int] = {}  # hash of a run -> where it ended last; a collision is only a bad guess
        self._indexed = 0
        self._chances = list(FIRST_CHANCE)
        self._open: tuple[int, int, tuple[int, ...]] | None = None  # where, by which order and what was guessed last

    def guess(self) -> Guess:
        """What followed last time, read on in a circle when the history ends before ``MOST`` tokens."""
        ids, end = self.ids, len(self.ids)
        if self._open:
            self._learn(*self._open)
            self._open = None
        if self._indexed < end - 1:
            self._index(end - 1)
        found, tail = None, tuple(ids[-LONGEST:])
        for i, order in enumerate(ORDERS):
            if order <= end:
                run = hash(tail[-order:])
                if found is None and (at := self._ends.get(run)):
                    found = i, at
                self._ends[run] = end
        self._indexed = end
        if found is None:
            return NOTHING
        order, at = found
        tokens = tuple(ids[at : at + MOST])
        while len(tokens) < MOST:
            tokens += tokens[: MOST - len(tokens)]
        self._open = end, order, tokens
        return Guess(tokens, self._chances[order])

    def _learn(self, start: int, order: int, guessed: tuple[int, ...]) -> None:
        """Compare the last guess with what came, as far as it reaches or up to its first wrong token."""
        for token, came in zip(guessed, self.ids[start : start + MOST], strict=False):
            self._chances[order] += LEARN * ((token == came) - self._chances[order])
            if token != came:
                break

    def _index(self, end: int) -> None:
        """Note the runs that end up to ``end``, at the speed of the interpreter's own loops."""
        for order in ORDERS:
            first = max(order, self._indexed + 1)
            if first <= end:
                tokens = self.ids[first - order : end]
                runs = zip(*(tokens[i : len(tokens) - order + 1 + i] for i in range(order)), strict=True)
                self._ends.update(zip(map(hash, runs), range(first, end + 1), strict=True))


class Adaptive:
    """Checks as many guessed tokens as the chances and the measured cost of rows say will pay, up to ``MOST``.

    A width that has not been tried is taken for ``DOUBLED`` times as expensive as the one before, so widths are
    climbed one by one.  A debt bounds what wrong estimates can cost: it grows with the time that guessing took and
    shrinks with what it gained and with ``LOSS`` of all time.  Guessing rests while the debt is above ``BURST`` steps.
    """

    def __init__(self) -> None:
        self._times: dict[int, list[float]] = {}
        self._cost: dict[int, float] = {}  # medians of trusted windows
        self._widths: dict[tuple[tuple[int, int], ...], int] = {}  # decided since a cost was learnt
        self._steps = 0
        self._debt = 0.0  # seconds

    def propose(self, running: Sequence[Running]) -> Sequence[tuple[int, ...]]:
        """Tokens to check behind each request's last; none before a plain step is known to cost enough."""
        start, plain = perf_counter(), self._cost.get(len(running), 0.0)
        if plain < SMALL:
            return ()
        guesses = [one.history.guess() for one in running]
        key = tuple([(len(guess.tokens), int(64 * guess.chance)) for guess in guesses])
        width = self._widths.get(key) or self._widths.setdefault(key, self._width(guesses))
        # As much again goes into what the engine does about it; more than a step is somebody else's time.
        self._debt += min(plain, 2 * (perf_counter() - start))
        return [guess.tokens[: width - 1] for guess in guesses] if width > 1 else ()

    def plain(self, requests: int, seconds: float) -> int:
        """Learn what a step without guesses costs; returns the steps to rest: those that pay off a debt, for one."""
        self._learn(requests, seconds)
        cost = self._cost.get(requests, 0.0)
        if 0.0 < cost < SMALL:
            return FORGET
        if cost == 0.0 or self._debt <= 0.0:
            return 0
        rest = max(0, int((self._debt / cost - BURST) / LOSS))
        self._debt = max(0.0, self._debt - LOSS * cost * (1 + rest))
        return rest

    def checked(self, requests: int, rows: int, made: int, seconds: float) -> None:
        """Learn what a step of ``rows`` rows costs, and what its guesses gained."""
        one = self._cost[requests] / requests
        took = min(seconds, self._cost.get(rows, rows * one))  # more is somebody else's time
        self._debt = max(-CREDIT * one, self._debt + (1 - LOSS) * took - made * one)
        self._learn(rows, seconds)

    def _width(self, guesses: Sequence[Guess]) -> int:
        """The rows per request that promise most tokens a second; 1 unless another width promises ``GAIN``."""
        width, cost = 1, self._cost[len(guesses)]
        best = GAIN * len(guesses) / cost
        for rows in WIDTHS:
            total = sum(min(rows, 1 + len(guess.tokens)) for guess in guesses)
            cost = self._cost.get(total, cost * DOUBLED)
            value = sum(guess.expected(rows) for guess in guesses) / cost
            if value > best:
                width, best = rows, value
            if total not in self._cost:
                break
        return width

    def _learn(self, rows: int, seconds: float) -> None:
        self._steps += 1
        if self._steps == FORGET:
            self._steps = 0
            self._times.clear()
            self._cost.clear()
            self._widths.clear()
        times = self._times.setdefault(rows, [])
        if len(times) < WINDOW:
            times.append(seconds)
            if len(times) >= TRUSTED:
                self._cost[rows] = sorted(times)[len(times) // 2]
                self._widths.clear()
