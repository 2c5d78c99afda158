"""An integer graph in, speeds of the native target out: beside the machine's two bounds, and beside peers.

Everything takes turns on the same cores in one run: a pass of the plain reading loop and of the plain multiplying
loop, a block of ours, a block of each peer, and again.  A ratio is one of medians; its spread is that of the pairs.
Every time here is of the wall clock and of this machine; none is promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress, silent
from openlpu.graph.ir import Graph
from openlpu.target.base import Chunk, Executable
from openlpu.target.cpu.bandwidth import ReadLoop
from openlpu.target.cpu.rate import DotLoop
from openlpu.target.cpu.run import CpuExecutable, load
from openlpu.tokens.bounds import Need, Rates, Work, need, weight_bytes
from openlpu.tokens.sample import draw

PREFILL = 512  # tokens of the measured prompt
ANSWER = 32  # tokens of one block of decode
BLOCK_S = 0.5  # wall seconds of ours in a block of decode, at least: answers are repeated
PAIRS = 5
FILL = 60  # every byte of the cache before a work: it must have been written, a speed does not depend on what with
PASSES = 4  # of each plain loop before a block of ours


class Peer(Protocol):
    """Another engine, which runs a block at a time and does nothing in between."""

    @property
    def name(self) -> str:
        """Which engine."""
        ...

    @property
    def about(self) -> dict[str, str]:
        """What it says of itself: ``version`` and ``model``."""
        ...

    def start(self, work: Work, threads: int, blocks: int) -> None:
        """Get ready for ``blocks`` blocks of this work."""
        ...

    def block(self) -> float:
        """Run one; returns tokens per second, loading not counted."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True)
class Measured:
    """One kind of work: seconds of every timed run, block by block (a prompt is one run, an answer one per token)."""

    work: Work
    need: Need
    blocks: tuple[tuple[float, ...], ...]

    @property
    def run_tokens(self) -> int:
        """Tokens of a timed run."""
        return self.work.tokens if self.work.together else 1

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each block."""
        return [self.run_tokens * len(block) / sum(block) for block in self.blocks]

    @property
    def seconds(self) -> list[float]:
        """Every run's time."""
        return [time for block in self.blocks for time in block]

    @property
    def tokens_per_s(self) -> float:
        """The median block's."""
        return units.percentile(self.rates, 50)

    def to_json(self, machine: Rates) -> dict[str, Any]:
        """Plain data; ``share`` is the larger of the two bounds over the median time."""
        bounds, p50 = machine.bounds(self.need), units.percentile(self.seconds, 50)
        return {
            "tokens": self.work.tokens, "context": self.work.context, "tokens_per_s": self.tokens_per_s,
            "runs": len(self.seconds), "p50_s": p50, "p99_s": units.percentile(self.seconds, 99),
            "bytes": self.need.bytes, "products": self.need.products, "bound_s": bounds,
            "share": max(bounds.values()) / p50,
        }


@dataclass(frozen=True)
class Against:
    """A peer's speeds: tokens per second of its blocks, work by work, each beside a block of ours."""

    name: str
    about: dict[str, str]
    rates: dict[str, tuple[float, ...]]

    def to_json(self, ours: Sequence[Measured]) -> dict[str, Any]:
        """Plain data; a ratio above 1 means ours is faster."""
        return {"peer": self.name, **self.about, "measured": {
            m.work.name: {"tokens_per_s": units.percentile(self.rates[m.work.name], 50),
                          "ratio": self._ratio(m)} for m in ours
        }}

    def _ratio(self, ours: Measured) -> dict[str, float]:
        theirs = self.rates[ours.work.name]
        pairs = [a / b for a, b in zip(ours.rates, theirs, strict=True)]
        return {"median": ours.tokens_per_s / units.percentile(theirs, 50), "low": min(pairs), "high": max(pairs)}


@dataclass(frozen=True)
class Speeds:
    """What one benchmark measured; seconds and rates are of the wall clock, bytes are decimal."""

    threads: int
    path: str
    load_s: float
    weight_bytes: int  # read for every token
    machine: Rates
    measured: tuple[Measured, ...]
    against: tuple[Against, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "threads": self.threads, "path": self.path, "weight_bytes": self.weight_bytes,
            "machine": {"clock": "wall", **vars(self.machine)},
            "measured": {"clock": "wall", "load_s": self.load_s,
                         **{m.work.name: m.to_json(self.machine) for m in self.measured}},
            "against": [peer.to_json(self.measured) for peer in self.against],
        }


def works(context: int, at_context: int = 0) -> tuple[Work, ...]:
    """A prompt, an answer and, if asked for, an answer behind ``at_context`` tokens, as a context has room for."""
    if at_context and not 0 <= at_context <= context - 2 * ANSWER:
        fix = f"at most {context - 2 * ANSWER}" if context > 2 * ANSWER else "leave it out"
        raise BadRequest(f"{at_context} tokens and an answer do not fit the context of {context}", where="at-context",
                         fix=fix)
    some = (Work("prefill", min(PREFILL, context // 2), 0, True), Work("decode", min(ANSWER, context // 4), 0, False))
    return (*some, Work("decode_at_context", ANSWER, at_context, False)) if at_context else some


def bench(
    graph: Graph, *, threads: int = 0, at_context: int = 0, pairs: int = PAIRS, peers: Sequence[Peer] = (),
    progress: Progress = silent,
) -> Speeds:
    """Measure an integer graph on the native target, in ``pairs`` blocks; ``threads`` 0 means its own choice.

    ``at_context`` also measures decode behind so many tokens.  Raises
    :class:`~openlpu._base.errors.BadRequest` where the model has no room for them or a peer cannot run.
    """
    todo = works(graph.config.context, at_context)
    progress("load", 0, 1)
    start = perf_counter()
    room = max(work.context + work.tokens for work in todo) + 1
    executable = load(graph, context=min(room, graph.config.context), threads=threads)
    load_s = perf_counter() - start
    turns = _Turns(graph, executable, peers, progress)
    try:
        measured = tuple(turns.run(work, pairs) for work in todo)
        against = tuple(Against(p.name, p.about, turns.theirs[i]) for i, p in enumerate(peers))
        return Speeds(executable.threads, executable.path.name, load_s, weight_bytes(executable), turns.machine(),
                      measured, against)
    finally:
        turns.close()


class Other:
    """The native target on another graph of the same model, as a peer: what a number format gains."""

    name = "openlpu"

    def __init__(self, graph: Graph, version: str, what: str) -> None:
        self.graph, self.about = graph, {"version": version, "model": what}
        self._executable: CpuExecutable | None = None
        self._work = Work("", 0, 0, False)

    def start(self, work: Work, threads: int, blocks: int) -> None:
        """Load the graph, once; note what to do."""
        self._executable = self._executable or load(self.graph, threads=threads)
        self._executable.layout.cache.bytes[:] = FILL
        self._work = work

    def block(self) -> float:
        """Tokens per second of one block."""
        assert self._executable, "a peer is started before its blocks"
        times = _block(self._executable, self._work, _tokens(self.graph, self._work.tokens))
        return (self._work.tokens if self._work.together else 1) * len(times) / sum(times)

    def close(self) -> None:
        """Release threads and memory."""
        if self._executable:
            self._executable.close()


class _Turns:
    """The loops, ours and the peers, one after another on the same cores."""

    def __init__(self, graph: Graph, executable: CpuExecutable, peers: Sequence[Peer], progress: Progress) -> None:
        self.graph, self.executable, self.peers, self.progress = graph, executable, peers, progress
        self.reading, self.multiplying = ReadLoop(executable.threads), DotLoop(executable.threads)
        self.reads: list[float] = []
        self.products: list[float] = []
        self.theirs: list[dict[str, tuple[float, ...]]] = [{} for _ in peers]

    def run(self, work: Work, pairs: int) -> Measured:
        """All blocks of one kind of work."""
        tokens = _tokens(self.graph, work.tokens)
        self.executable.layout.cache.bytes[:] = FILL
        for peer in self.peers:
            peer.start(work, self.executable.threads, pairs)
        ours: list[tuple[float, ...]] = []
        for pair in range(pairs):
            self.progress(work.name, pair, pairs)
            self.reads += [self.reading.measure() * 1e9 for _ in range(PASSES)]
            self.products += [self.multiplying.measure() for _ in range(PASSES)]
            ours.append(_block(self.executable, work, tokens))
            for peer, rates in zip(self.peers, self.theirs, strict=True):
                rates[work.name] = (*rates.get(work.name, ()), peer.block())
        self.progress(work.name, pairs, pairs)
        return Measured(work, need(self.graph, self.executable, work), tuple(ours))

    def machine(self) -> Rates:
        """Medians of the two loops."""
        return Rates(units.percentile(self.reads, 50), units.percentile(self.products, 50))

    def close(self) -> None:
        """Release threads, memory and peers."""
        for each in (*self.peers, self.reading, self.multiplying, self.executable):
            each.close()


def _tokens(graph: Graph, count: int) -> tuple[int, ...]:
    return tuple(draw(0, 0, i) % graph.config.vocab for i in range(count))


def _block(executable: Executable, work: Work, tokens: tuple[int, ...]) -> tuple[float, ...]:
    """The times of a block's runs."""
    return _together(executable, tokens) if work.together else _answers(executable, work.context, tokens)


def _together(executable: Executable, tokens: tuple[int, ...]) -> tuple[float, ...]:
    """The time of a prompt; the first run of a block is short and finds the caches full of others' data."""
    _seconds(executable, 0, tokens[:1])
    return (_seconds(executable, 0, tokens),)


def _answers(executable: Executable, start: int, tokens: tuple[int, ...]) -> tuple[float, ...]:
    """Times of single tokens behind ``start`` others, in whole answers; a first token is not counted."""
    _seconds(executable, start, tokens[:1])
    times: list[float] = []
    while sum(times) < BLOCK_S:
        times += [_seconds(executable, start + at, (token,)) for at, token in enumerate(tokens)]
    return tuple(times)


def _seconds(executable: Executable, start: int, tokens: tuple[int, ...]) -> float:
    begin = perf_counter()
    executable.run([Chunk(0, start, tokens)])
    return perf_counter() - begin
