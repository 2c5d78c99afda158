"""Requests in, tokens out, one step at a time: plan which tokens run, run them, commit what came back.

The engine knows token ids, never text, and never arithmetic: which requests share a step, how a prompt is cut into
chunks, and which guessed tokens a step checks, decides when a token appears but cannot change it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from openlpu._base.errors import NumericsError, OpenLpuError
from openlpu.target.base import F32, Chunk, Executable, Pipelined
from openlpu.tokens.request import Request
from openlpu.tokens.sample import choose
from openlpu.tokens.slots import Slots
from openlpu.tokens.speculate import History, Speculation

if TYPE_CHECKING:
    from hashlib import _Hash


class Mark(NamedTuple):
    """Where a request stood behind one of its tokens: the ids there were, steps, guesses, the hash of its logits."""

    ids: int
    steps: int
    guessed: int
    rows: _Hash


@dataclass
class Running:
    """A request in flight.  ``ids`` is the prompt and what was generated; ``ran`` of them are in the KV cache.

    ``watch`` is told every generated id that is not an end id, and returns True to end the request.
    ``finish`` is empty until the end, then one of eos, stop, max_tokens, context, cancelled.  ``times`` holds the
    wall seconds from the request's admission to each token, ``cycles`` those of its step (0: not counted); tokens
    of one step share both.  ``steps`` counts the steps that made tokens, ``guessed`` the tokens they checked.
    """

    request: Request
    ids: list[int]
    watch: Callable[[int], bool]
    slot: int = -1
    ran: int = 0
    finish: str = ""
    started: float = 0.0
    times: list[float] = field(default_factory=list)
    cycles: list[int] = field(default_factory=list)
    steps: int = 0
    guessed: int = 0
    rows: _Hash = field(default_factory=hashlib.sha256)
    history: History = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.ids)

    @property
    def generated(self) -> list[int]:
        """The ids after the prompt."""
        return self.ids[len(self.request.prompt) :]

    @property
    def logits_sha256(self) -> str:
        """Hash of the little-endian fp32 logits each generated token was chosen from, in order."""
        return self.rows.hexdigest()

    def mark(self) -> Mark:
        """Where the request stands now, for :meth:`forget`."""
        return Mark(len(self.ids), self.steps, self.guessed, self.rows.copy())

    def forget(self, mark: Mark) -> None:
        """Be as plain decoding was behind that token: what a step made further on is gone."""
        made = mark.ids - len(self.request.prompt)
        del self.ids[mark.ids :], self.times[made:], self.cycles[made:]
        self.steps, self.guessed, self.rows = mark.steps, mark.guessed, mark.rows
        self.ran = min(self.ran, max(0, mark.ids - 1))


class Engine:
    """Runs requests on an executable; ``chunk`` is the most prompt tokens of one request in one step (0: all).

    ``eos`` are the model's end ids; ``vocab`` bounds a prompt's ids.  ``speculation`` guesses tokens to check
    beside the next one (None: a step is one token of each request).  Threads that read answers of one engine take
    turns.  On a :class:`Pipelined` executable a step ends when one request's chunk is done; those of the others stay
    under way.
    """

    def __init__(
        self, executable: Executable, *, vocab: int, eos: Sequence[int] = (), chunk: int = 0,
        speculation: Speculation | None = None,
    ) -> None:
        self.executable, self.vocab, self.eos, self.chunk = executable, vocab, frozenset(eos), chunk
        self.speculation, self._rest, self.turn = speculation, 0, threading.RLock()
        self.slots = Slots(executable.slots, executable.context)
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []
        self._under_way: dict[int, Running] = {}  # by slot

    def add(self, request: Request, watch: Callable[[int], bool] = lambda token: False) -> Running:
        """Queue a request; raises :class:`BadRequest` when the model cannot run its prompt."""
        self.check(request)
        running = Running(request, list(request.prompt), watch)
        self.waiting.append(running)
        return running

    def check(self, request: Request) -> None:
        """Raise :class:`BadRequest` when the model cannot run the request's prompt."""
        request.check(self.vocab, self.slots.context)

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not (self.running or self.waiting)

    def step(self) -> list[Running]:
        """Advance every running request by one chunk or by its next tokens, or the next of those in a pipeline;
        returns those that got a token."""
        with self.turn:
            return self._advance()

    def _advance(self) -> list[Running]:
        chunks, decode = self._plan()
        if isinstance(self.executable, Pipelined):
            return self._pass_on(self.executable, chunks)
        if not chunks:
            return []
        if self.speculation is None or not decode:
            return self._commit(self.running, chunks, self.executable.run(chunks))
        if self._rest:
            self._rest -= 1
            return self._commit(self.running, chunks, self.executable.run(chunks))
        if guesses := self.speculation.propose(self.running):
            return self._check(self.speculation, chunks, guesses)
        start = perf_counter()
        logits = self.executable.run(chunks)
        self._rest = self.speculation.plain(len(chunks), perf_counter() - start)
        return self._commit(self.running, chunks, logits)

    def _pass_on(self, stages: Pipelined, chunks: Sequence[Chunk]) -> list[Running]:
        """The chunks of requests that have none under way enter; the next one that is done makes its token."""
        for running, chunk in zip(self.running, chunks, strict=True):
            if running.slot not in self._under_way:  # else its own, or one of a request that was cancelled
                stages.enter(chunk)
                self._under_way[running.slot] = running
        if not self._under_way:
            return []
        try:
            chunk, logits = stages.leave()
        except OpenLpuError:
            self._under_way.clear()
            raise
        running = self._under_way.pop(chunk.slot)
        return [] if running.finish else self._commit([running], [chunk], [logits])

    def end(self, running: Running, finish: str) -> None:
        """Take a request out and free its slot: a stop text was found, or somebody wants no more of it."""
        with self.turn:
            if running.finish:
                return
            running.finish = finish
            if running in self.waiting:
                self.waiting.remove(running)
                return
            self.running.remove(running)
            self.slots.give_back(running.slot)
            self.slots.check_integrity()

    def cancel(self, running: Running, read: Mark) -> None:
        """End a request whose reader went away behind the token of a mark; tokens it has not seen are forgotten."""
        with self.turn:
            self.end(running, "cancelled")
            if read.ids < len(running.ids):
                running.forget(read)
                running.finish = "cancelled"

    def _plan(self) -> tuple[list[Chunk], bool]:
        """The next chunk of each request, and whether all of them decode: run one token, the last, for the next."""
        while self.waiting and (slot := self.slots.take()) is not None:
            running = self.waiting.popleft()
            running.slot, running.started = slot, perf_counter()
            self.running.append(running)
        chunks, decode = [], True
        for running in self.running:
            left = len(running.ids) - running.ran
            end = running.ran + min(left, self.chunk or left)
            chunks.append(Chunk(running.slot, running.ran, tuple(running.ids[running.ran : end])))
            decode = decode and left == 1
        return chunks, decode

    def _check(
        self, speculation: Speculation, plain: list[Chunk], guesses: Sequence[tuple[int, ...]]
    ) -> list[Running]:
        """A step with guessed tokens behind each request's last."""
        asked = list(self.running)
        chunks = [self._widen(*request) for request in zip(asked, plain, guesses, strict=True)]
        rows = sum(len(chunk.tokens) for chunk in chunks)
        start = perf_counter()
        try:
            logits = self.executable.run(chunks)
        except NumericsError:
            if rows == len(plain):
                raise
            chunks, logits = plain, self.executable.run(plain)  # a guess that is no token yet must not end a request
        seconds = perf_counter() - start
        advanced = self._commit(asked, chunks, logits)
        made = sum(len(running.ids) - 1 - chunk.start for running, chunk in zip(asked, plain, strict=True))
        speculation.checked(len(plain), rows, made, seconds)
        return advanced

    def _widen(self, running: Running, chunk: Chunk, guess: tuple[int, ...]) -> Chunk:
        """The chunk with as many guessed tokens as the request and its KV cache have room for."""
        guess = guess[: self._room(running)]
        return Chunk(chunk.slot, chunk.start, chunk.tokens + guess, every=True) if guess else chunk

    def _room(self, running: Running) -> int:
        """How many guessed tokens the request's limit and its KV cache have room for."""
        made = len(running.ids) - len(running.request.prompt)
        return max(0, min(running.request.max_tokens - made - 1, self.slots.context - len(running.ids)))

    def _commit(self, asked: Sequence[Running], chunks: Sequence[Chunk], logits: Sequence[F32]) -> list[Running]:
        now, counted = perf_counter(), int(getattr(self.executable, "cycles", 0))
        advanced = []
        for running, chunk, rows in zip(list(asked), chunks, logits, strict=True):
            guesses = chunk.tokens[1:] if chunk.every else ()
            running.ran += len(chunk.tokens) - len(guesses)
            if running.ran < len(running.ids):
                continue  # more of the prompt is to come
            running.steps += 1
            running.guessed += len(guesses)
            for row, guess in zip(rows[-1 - len(guesses) :], (*guesses, None), strict=True):
                running.times.append(now - running.started)
                running.cycles.append(counted)
                self._append(running, row)
                if running.finish or running.ids[-1] != guess:
                    break  # what the cache holds behind this token is overwritten by the next step
                running.ran += 1
            advanced.append(running)
        return advanced

    def _append(self, running: Running, row: F32) -> None:
        request = running.request
        running.rows.update(np.ascontiguousarray(row, "<f4").tobytes())
        token = choose(row, request.sampling, running.ids, len(running.ids))
        running.ids.append(token)
        if finish := self._finish(running, token):
            self.end(running, finish)

    def _finish(self, running: Running, token: int) -> str:
        request = running.request
        if token in self.eos:
            return "eos"
        if token in request.stop_ids or running.watch(token):
            return "stop"
        if len(running.ids) - len(request.prompt) >= request.max_tokens:
            return "max_tokens"
        # a token past the last position is good, but cannot be run itself
        return "context" if len(running.ids) > self.slots.context else ""

