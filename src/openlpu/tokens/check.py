"""A loaded integer graph in, one hash per way of running it out; there must be one distinct hash.

Every case runs the same requests, greedy and sampled, and hashes all their logits and tokens in order.  What
differs between cases is what promise 1 says cannot matter: target, threads, prefill chunk, batch, neighbours,
vector path, whether a step checks guessed tokens, and how many chips share the model, and how.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from time import perf_counter
from typing import Any

from openlpu._base.errors import DoesNotFit, Unsupported
from openlpu._base.processes import Workers
from openlpu._base.progress import Progress, silent
from openlpu.graph.ir import Graph
from openlpu.partition.split import CODES, SUMS, Split
from openlpu.target.base import Executable
from openlpu.tokens.engine import Engine, Running
from openlpu.tokens.request import Request, Sampling
from openlpu.tokens.sample import draw
from openlpu.tokens.speculate import Speculation

Loader = Callable[..., Executable]

# Few tokens, because the chip model takes a good part of a second for each.
PROMPTS = (3, 1, 65, 4, 6, 2, 7, 5)  # tokens of each prompt: a batch stands at eight positions
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=1.0, seed=1),
    Sampling(),
    Sampling(temperature=0.8, top_k=20, seed=2),
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=1.2, top_p=0.9, seed=3),
    Sampling(),
    Sampling(temperature=0.7, top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.1, seed=2**63),
)
TOKENS = 5  # generated for each request
SPLITS = (  # tensor parallel, pipeline parallel and both, on 2, 4 and 8 chips
    Split(2), Split(4, exchange=CODES), Split(4, exchange=SUMS), Split(8, exchange=SUMS), Split(1, 2), Split(1, 4),
    Split(2, 2), Split(2, 4, CODES), Split(4, 2),
)
TOGETHER = {Split(2, 2): 3}  # requests at once, so that every stage works on another
WIRED = (("tiny-ring", Split(4)), ("dragonfly", Split(16)))  # where some vectors are sent on by chips in between
MIXED, APART = "greedy+sampled", "greedy first"


@dataclass(frozen=True)
class Case:
    """One way to run the requests.  ``chunk`` 0 is a whole prompt; ``order`` says who shares a step.

    ``greedy+sampled`` takes both kinds in turns, ``greedy first`` all greedy requests before the sampled ones.
    ``guess`` is how many guessed tokens a step checks behind each request's next one, right and wrong ones.
    ``threads`` and ``path`` (the vector path) are for native targets; 0 and empty: the target has no such choice.
    ``split`` spreads the model over several chips, of a node or of ``system`` built with as many.
    ``together``: tokens of a prompt that a chip takes in a step; 1 is one by one.
    """

    target: str
    batch: int = 1
    chunk: int = 0
    order: str = MIXED
    guess: int = 0
    threads: int = 0
    path: str = ""
    split: Split | None = None
    system: str = ""
    together: int = 1

    def __str__(self) -> str:
        native = f" threads={self.threads} path={self.path}" if self.threads else ""
        guess = f" guess={self.guess}" if self.guess else ""
        split = f" {self.split}" if self.split else ""
        split += f" of {self.system}" if self.system else ""
        split += f" together={self.together}" if self.together > 1 else ""
        return f"{self.target}{native}{split} batch={self.batch} chunk={self.chunk or 'whole'} {self.order}{guess}"


@dataclass(frozen=True)
class Row:
    """A case, the hash of its logits and tokens, and the seconds it took on this machine's clock."""

    case: Case
    digest: str
    wall_s: float


@dataclass(frozen=True)
class Verdict:
    """All rows; ``difference`` names the first case, and the first layer, that is not like the first row.

    ``skipped`` maps a case that its target has no room or no schedule for to the reason: it has no bits to compare.
    """

    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    difference: str = ""

    @property
    def distinct(self) -> int:
        """How many different hashes: 1 when the promise holds."""
        return len({row.digest for row in self.rows})

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``; times are seconds of the wall clock."""
        cases = [
            {"case": str(r.case), **asdict(r.case), "sha256": r.digest, "wall_s": r.wall_s} for r in self.rows
        ]
        return {
            "distinct": self.distinct, "cases": cases, "skipped": dict(self.skipped),
            "difference": self.difference or None,
        }


def cases(paths: Sequence[str], chip: bool, layers: int = 0) -> list[Case]:
    """Each factor alone from one base, then cases until every pair of native values has met.

    ``paths`` are the native target's vector paths, best first; ``chip`` adds the chip model at batch 1, alone and in
    the splits that a model of so many ``layers`` has.
    """
    ref = Case("ref")
    listed = [ref, replace(ref, chunk=7), replace(ref, batch=8, order=APART), replace(ref, guess=3)]
    if paths:
        factors = {
            "threads": (1, 2), "chunk": (0, 1, 7, 64), "batch": (1, 3, 8), "order": (MIXED, APART),
            "guess": (0, 3), "path": tuple(paths),
        }
        base = {name: values[0] for name, values in factors.items()}
        rows = [base]
        rows += [base | {name: value} for name, values in factors.items() for value in values[1:]]
        listed += [Case("cpu", **row) for row in _cover_pairs(factors, rows)]
    if chip:
        listed += [Case("chip"), Case("chip", together=8)]
        listed += [Case("chip", TOGETHER.get(s, 1), split=s) for s in SPLITS if s.stages <= layers]
        listed += [Case("chip", split=split, system=system) for system, split in WIRED if layers]
    return listed


def requests(graph: Graph) -> list[Request]:
    """The eight requests of every case: prompts drawn from the vocabulary, half of them greedy."""
    vocab, room = graph.config.vocab, graph.config.context - TOKENS
    built = []
    for i, (length, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True)):
        prompt = tuple(draw(2026, i, at) % vocab for at in range(min(length, room)))
        built.append(Request(prompt, sampling, max_tokens=TOKENS))
    return built


def run_case(case: Case, graph: Graph, load: Loader) -> str:
    """The hash of all logits and tokens of one case on an integer graph."""
    asked = requests(graph)
    longest = max(len(r.prompt) for r in asked) + TOKENS
    options: dict[str, Any] = {"threads": case.threads, "path": case.path} if case.threads else {}
    if case.split:  # a model cut to find a difference has fewer stages
        options["split"] = replace(case.split, stages=max(1, min(case.split.stages, graph.config.layers)))
        options |= {"system": case.system} if case.system else {}
    if case.together > 1:
        options["chunks"] = (case.together,)
    executable = load(graph, slots=case.batch, context=longest, **options)
    try:
        finished = _answers(case, graph, executable, asked)
        if case.guess:
            known = {one.request.prompt: one.generated for one in finished}
            finished = _answers(case, graph, executable, asked, Rehearsed(known, case.guess, graph.config.vocab))
    finally:
        executable.close()
    return _digest(finished)


@dataclass(frozen=True)
class Rehearsed:
    """A speculation that knows the ``answers`` by prompt, and gets every third token of them wrong."""

    answers: Mapping[tuple[int, ...], Sequence[int]]
    guess: int
    vocab: int

    def propose(self, running: Sequence[Running]) -> list[tuple[int, ...]]:
        """The next ``guess`` tokens of each request."""
        return [tuple(self._next(one)) for one in running]

    def _next(self, running: Running) -> Iterator[int]:
        made = len(running.generated)
        for at, token in enumerate(self.answers[running.request.prompt][made : made + self.guess], made):
            yield (token + (at % 3 == 0)) % self.vocab

    def plain(self, requests: int, seconds: float) -> int:
        """Time decides nothing here."""
        return 0

    def checked(self, requests: int, rows: int, made: int, seconds: float) -> None:
        """Time decides nothing here."""


def _answers(
    case: Case, graph: Graph, executable: Executable, asked: Sequence[Request], speculation: Speculation | None = None
) -> list[Running]:
    """The requests run to their ends, in the order they were asked."""
    engine = Engine(executable, vocab=graph.config.vocab, chunk=case.chunk, speculation=speculation)
    order = range(len(asked))
    if case.order == APART:
        order = sorted(order, key=lambda i: asked[i].sampling.temperature > 0)
    running = {i: engine.add(asked[i]) for i in order}
    while not engine.idle:
        engine.step()
    return [running[i] for i in range(len(asked))]


def check(
    graph: Graph, cases: Sequence[Case], loaders: Mapping[str, Loader], progress: Progress = silent,
    processes: int = 1,
    told: Callable[[Case, Row | str], object] = lambda case, row: None,
) -> Verdict:
    """Run every case; when hashes differ, bisect the layers of the first case that disagrees with row one.

    ``processes`` share the cases, those of most chips first; ``told`` hears of each row, or of why there is none, when
    it is there.
    """
    turns = sorted(cases, key=lambda case: -_chips(case)) if processes > 1 else cases
    progress("check", 0, len(cases))
    by_case: dict[Case, Row | str] = {}
    with Workers(processes) as workers:
        for number, row in workers.as_done(_row, [(case, graph, loaders[case.target]) for case in turns]):
            by_case[turns[number]] = row
            progress(f"check: {turns[number]}", len(by_case), len(cases))
            told(turns[number], row)
    rows = [row for case in cases if isinstance(row := by_case[case], Row)]
    skipped = {str(case): row for case, row in by_case.items() if isinstance(row, str)}
    odd = next((row.case for row in rows if row.digest != rows[0].digest), None)
    if odd is None:
        return Verdict(tuple(rows), skipped)
    where = first_difference(graph, rows[0].case, odd, loaders, progress)
    return Verdict(tuple(rows), skipped, f"{odd} differs from {rows[0].case}: {where}")


def _chips(case: Case) -> int:
    return case.split.chips if case.split else int(case.target == "chip")


def _row(work: tuple[Case, Graph, Loader]) -> Row | str:
    """What a case gives, or why its target has no room or no schedule for it."""
    case, graph, load = work
    start = perf_counter()
    try:
        return Row(case, run_case(case, graph, load), perf_counter() - start)
    except (DoesNotFit, Unsupported) as report:
        return str(report)


def first_difference(
    graph: Graph, a: Case, b: Case, loaders: Mapping[str, Loader], progress: Progress = silent
) -> str:
    """The first layer at which two cases part, found by running both on models cut after n layers."""
    layers = graph.config.layers

    def differ(n: int) -> bool:
        progress(f"bisect: {n} of {layers} layers", n, layers)
        cut = graph.truncate(n) if n < layers else graph
        return run_case(a, cut, loaders[a.target]) != run_case(b, cut, loaders[b.target])

    if not differ(layers):
        return "not reproducible: a second run of both agreed"
    if differ(0):
        return "outside the layers (embed, norm or head)"
    same, parted = 0, layers
    while parted - same > 1:
        middle = (same + parted) // 2
        if differ(middle):
            parted = middle
        else:
            same = middle
    return f"first in layers.{parted - 1}"


def _digest(finished: Sequence[Running]) -> str:
    total = hashlib.sha256()
    for running in finished:
        total.update(running.rows.digest())
        total.update(b"".join(token.to_bytes(4, "little") for token in running.generated))
    return total.hexdigest()


def _cover_pairs(factors: Mapping[str, Sequence[Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` and as many more as it takes, greedily, until every two values of two factors share a row."""
    pairs = {
        ((x, u), (y, v))
        for x, y in combinations(factors, 2) for u in factors[x] for v in factors[y]
    }
    rows = list(rows)
    for row in rows:
        pairs -= set(combinations(row.items(), 2))
    while pairs:
        row: dict[str, Any] = {}
        for pair in sorted(pairs, key=repr):  # fill the row with pairs it can still hold
            if all(row.get(name, value) == value for name, value in pair):
                row |= dict(pair)
        row = {name: row.get(name, values[0]) for name, values in factors.items()}
        rows.append(row)
        pairs -= set(combinations(row.items(), 2))
    return rows
