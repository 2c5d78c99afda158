"""Requests in, tokens out, one step at a time: plan which tokens run, run them, commit what came back.

The engine knows token ids, never text, and never arithmetic: which requests share a step, and how a prompt is
cut into chunks, decides when a token appears but cannot change it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from openlpu.target.base import F32, Chunk, Executable
from openlpu.tokens.request import Request
from openlpu.tokens.sample import choose
from openlpu.tokens.slots import Slots

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass
class Running:
    """A request in flight.  ``ids`` is the prompt and what was generated; ``ran`` of them are in the KV cache.

    ``watch`` is told every generated id that is not an end id, and returns True to end the request.
    ``finish`` is empty until the end, then one of eos, stop, max_tokens, context, cancelled.  ``times`` holds the
    wall seconds from the request's admission to each token, ``cycles`` those of its step (0: not counted).
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
    rows: _Hash = field(default_factory=hashlib.sha256)

    @property
    def generated(self) -> list[int]:
        """The ids after the prompt."""
        return self.ids[len(self.request.prompt) :]

    @property
    def logits_sha256(self) -> str:
        """Hash of the little-endian fp32 logits each generated token was chosen from, in order."""
        return self.rows.hexdigest()


class Engine:
    """Runs requests on an executable; ``chunk`` is the most prompt tokens of one request in one step (0: all).

    ``eos`` are the model's end ids; ``vocab`` bounds a prompt's ids.
    """

    def __init__(self, executable: Executable, *, vocab: int, eos: Sequence[int] = (), chunk: int = 0) -> None:
        self.executable, self.vocab, self.eos, self.chunk = executable, vocab, frozenset(eos), chunk
        self.slots = Slots(executable.slots, executable.context)
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []

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
        """Advance every running request by one chunk or token; returns those that got a token."""
        chunks = self._plan()
        if not chunks:
            return []
        logits = self.executable.run(chunks)
        return self._commit(chunks, logits)

    def end(self, running: Running, finish: str) -> None:
        """Take a request out and free its slot: a stop text was found, or its reader went away."""
        if running.finish:
            return
        running.finish = finish
        if running in self.waiting:
            self.waiting.remove(running)
            return
        self.running.remove(running)
        self.slots.give_back(running.slot)
        self.slots.check_integrity()

    def _plan(self) -> list[Chunk]:
        while self.waiting and (slot := self.slots.take()) is not None:
            running = self.waiting.popleft()
            running.slot, running.started = slot, perf_counter()
            self.running.append(running)
        chunks = []
        for running in self.running:
            end = min(len(running.ids), running.ran + self.chunk) if self.chunk else len(running.ids)
            chunks.append(Chunk(running.slot, running.ran, tuple(running.ids[running.ran : end])))
        return chunks

    def _commit(self, chunks: Sequence[Chunk], logits: Sequence[F32]) -> list[Running]:
        now, counted = perf_counter(), int(getattr(self.executable, "cycles", 0))
        advanced = []
        for running, chunk, rows in zip(list(self.running), chunks, logits, strict=True):
            running.ran += len(chunk.tokens)
            if running.ran < len(running.ids):
                continue  # more of the prompt is to come
            running.times.append(now - running.started)
            running.cycles.append(counted)
            self._append(running, rows[-1])
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
