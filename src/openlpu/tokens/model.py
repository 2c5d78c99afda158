"""Something that runs, a tokenizer and a prompt in; text piece by piece out, with ids, hashes and times."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from operator import index
from typing import Any, SupportsIndex

from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress, silent
from openlpu.checkpoint.chat import Chat
from openlpu.checkpoint.tokenizer import Tokenizer
from openlpu.target.base import Executable
from openlpu.tokens.engine import Engine, Mark, Running
from openlpu.tokens.request import Request, Sampling
from openlpu.tokens.speculate import Speculation
from openlpu.tokens.stop import StopText

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


class Generation:
    """One answer: iterate for its pieces; ``text``, ``token_ids`` and the rest grow while it is iterated.

    Leaving the loop early cancels the request and frees its KV slot; what a step made behind the last piece is
    forgotten, so ids, logits' hash and text end together.
    """

    def __init__(self, engine: Engine, request: Request, tokenizer: Tokenizer, progress: Progress) -> None:
        engine.check(request)
        self.request, self.text = request, ""
        self._engine, self._progress = engine, progress
        self._words, self._stop = tokenizer.stream(request.prompt), StopText(request.stop_texts)
        self._fresh: deque[tuple[str, Mark]] = deque()  # said by the engine's steps, not yet by an iterator

    def __iter__(self) -> Iterator[str]:
        running = self.running
        try:
            while not running.finish:
                self._engine.step()
                if running.ran <= len(self.request.prompt):
                    self._progress("prefill", running.ran, len(self.request.prompt))
                yield from self._say()
            if running.finish != "cancelled":
                self._fresh.append((self._stop.push(self._words.finish()) + self._stop.finish(), running.mark()))
                yield from self._say()
        except BaseException:  # its reader leaves
            self._fresh.clear()
            self._engine.cancel(running, self._read)
            raise

    def finish(self) -> Generation:
        """Run to the end without looking at the pieces; returns itself."""
        for _ in self:
            pass
        return self

    @cached_property
    def running(self) -> Running:
        """The engine's record of this request, which joins the engine's queue when it is first needed."""
        with self._engine.turn:
            running = self._engine.add(self.request, lambda token: self._watch(running, token))
            self._read = running.mark()  # behind what an iterator gave away
        return running

    @property
    def token_ids(self) -> list[int]:
        """Generated ids, the one that ended the answer included."""
        return self.running.generated

    @property
    def logits_sha256(self) -> str:
        """Hash of the raw logits of every generated token (see :class:`Running`)."""
        return self.running.logits_sha256

    @property
    def finish_reason(self) -> str:
        """eos, stop, max_tokens, context or cancelled; empty while the answer grows."""
        return self.running.finish

    @property
    def cycles(self) -> list[int]:
        """Chip cycles of each token's last step; empty on targets that count none."""
        return self.running.cycles if any(self.running.cycles) else []

    @property
    def gaps(self) -> list[float]:
        """Wall seconds of every token after the first step's; tokens of one step count an equal share of it."""
        return [gap / tokens for gap, tokens in self._arrivals() for _ in range(tokens)]

    def _arrivals(self) -> list[tuple[float, int]]:
        """Wall seconds between steps that made tokens, and how many came with the later one."""
        arrivals = Counter(self.running.times)
        return [(b - a, arrivals[b]) for a, b in pairwise(arrivals)]

    def measured(self) -> dict[str, Any]:
        """Wall-clock times in seconds: to the first token, and per token after it (median, p99, rate).

        Tokens of one step arrive together, so each counts an equal share of the step's time; ``step_p99_s`` is what
        a reader waits for the next arrival.  ``guessed`` tokens were checked in ``steps``, ``accepted`` were right.
        """
        running, times, shares = self.running, self.running.times, self.gaps
        return {
            "clock": "wall",
            "prompt_tokens": len(self.request.prompt),
            "tokens": len(times),
            "first_token_s": times[0] if times else 0.0,
            "token_p50_s": units.percentile(shares, 50),
            "token_p99_s": units.percentile(shares, 99),
            "tokens_per_s": len(shares) / (times[-1] - times[0]) if shares else 0.0,
            "steps": running.steps,
            "step_p99_s": units.percentile([gap for gap, _ in self._arrivals()], 99),
            "guessed": running.guessed,
            "accepted": len(times) - running.steps,
        }

    def _watch(self, running: Running, token: int) -> bool:
        """Called by the engine for each token; True ends the answer at a stop text."""
        self._fresh.append((self._stop.push(self._words.push(token)), running.mark()))
        return self._stop.found

    def _say(self) -> Iterator[str]:
        """A piece for each token that says something, however many came in one step."""
        while self._fresh:
            piece, self._read = self._fresh.popleft()
            if piece:
                self.text += piece
                yield piece


class Model:
    """A loaded model: ``generate`` answers; ``close`` (or leaving a ``with`` block) frees threads and memory.

    ``defaults`` are the choices of the model's makers, used for the options a caller leaves out.
    """

    def __init__(
        self, name: str, executable: Executable, tokenizer: Tokenizer, *, vocab: int, eos: Sequence[int] = (),
        chat: Chat | None = None, defaults: Sampling | None = None, fingerprint: Callable[[], str], chunk: int = 0,
        speculation: Speculation | None = None,
    ) -> None:
        self.name, self.executable, self.tokenizer, self.chat = name, executable, tokenizer, chat
        self.defaults = defaults or Sampling()
        self.engine = Engine(executable, vocab=vocab, eos=eos, chunk=chunk, speculation=speculation)
        self._fingerprint = fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """Hash of model, program and numerics: equal fingerprints promise equal logits."""
        return self._fingerprint()

    def generate(
        self, prompt: Prompt, *, max_tokens: int = 64, temperature: float | None = None, top_k: int | None = None,
        top_p: float | None = None, min_p: float | None = None, repetition_penalty: float | None = None,
        seed: int | None = None, choice: int | None = None, stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (), progress: Progress = silent,
    ) -> Generation:
        """Continue a text, token ids, or a chat (a list of ``{"role", "content"}``); see :class:`Generation`.

        Options left out are the model's own (``defaults``).  Raises :class:`BadRequest` naming the option, or
        what is wrong with the prompt, before anything runs.
        """
        asked = {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "repetition_penalty": repetition_penalty, "seed": seed, "choice": choice,
        }
        sampling = replace(self.defaults, **{name: value for name, value in asked.items() if value is not None})
        texts = (stop,) if isinstance(stop, str) else tuple(stop)
        request = Request(self.encode(prompt), sampling, max_tokens, tuple(stop_ids), texts)
        return Generation(self.engine, request, self.tokenizer, progress)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt in any of the forms ``generate`` takes."""
        if isinstance(prompt, str):
            if not prompt:
                raise BadRequest("the prompt is empty", where="prompt", fix="give at least one character")
            return tuple(self.tokenizer.encode(prompt))
        messages = [part for part in prompt if isinstance(part, Mapping)]
        ids = [index(part) for part in prompt if isinstance(part, SupportsIndex)]
        if len(prompt) not in (len(ids), len(messages)):
            raise BadRequest("neither token ids nor messages", where="prompt", fix="give integers, or role and content")
        if not messages:
            return tuple(ids)
        if self.chat is None:
            raise BadRequest(f"model '{self.name}' has no chat template", where="chat", fix="give a plain text")
        return tuple(self.tokenizer.encode(self.chat.render(messages), special=False))

    def close(self) -> None:
        """Release the executable; the model cannot be used afterwards."""
        self.executable.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
