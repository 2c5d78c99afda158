"""Nothing in, this machine's prices out: the real kernels on small models drawn so that their costs come apart.

Each specimen stresses something else: rows, heads, a long cache, matrices that stay in a cache or do not, 4-bit
blocks.  Its stages run kind by kind, as plans of their own, so a price is found among the few that share its
measurement; what a whole step takes beyond its stages is priced last.  Samples of all specimens alternate, and each
point is the median of its own: what disturbs the machine for a moment disturbs no price.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openlpu._base import units
from openlpu._base.progress import Progress, silent
from openlpu.arch.truepoint.sparse import PAIRS
from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.numerics.draw import draw
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.cpu import cost, kernels
from openlpu.target.cpu.bandwidth import ReadLoop
from openlpu.target.cpu.crew import Crew
from openlpu.target.cpu.machine import PERCENTS, Machine, Spread, processor
from openlpu.target.cpu.native import kernels_hash
from openlpu.target.cpu.plan import Plan
from openlpu.target.cpu.run import CpuExecutable, load

ROUNDS = 6  # of samples over all points
POINT_S = 0.01  # wall seconds of samples of a point in a round, as long as they are
LEAST, MOST, LONG = 4, 15, 5  # at least so many, even if that takes some times as long, and at most so many
FILL = 60  # in every byte of a cache: a scale of 0.0115, so that nothing is subnormal; untouched pages would all be one
SIZES_MB = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 192)  # what the reading loop walks through
TICK = 1e-9  # seconds that anything takes at least
CORE_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
KINDS = ("linear", "rows", "attention")
NOTHING = "nothing"  # a step without stages: what calling native code takes

Clock = Callable[[], float]
Answers = Callable[[CpuExecutable, bool, float], list[float]]
"""An executable, whether tokens are drawn at random, seconds of answers -> wall seconds between their tokens."""


@dataclass(frozen=True)
class Specimen:
    """A model's shape, the bits of its weights, the (rows, positions seen by the last) of its steps, and how its
    weights are pruned."""

    config: ModelConfig
    bits: float
    steps: tuple[tuple[int, int], ...]
    prune: str = ""


def _shape(hidden: int, layers: int, heads: tuple[int, int, int], intermediate: int, vocab: int) -> ModelConfig:
    query, kv, dim = heads
    return ModelConfig("llama", hidden=hidden, layers=layers, heads=query, kv_heads=kv, head_dim=dim,
                       intermediate=intermediate, vocab=vocab, context=4096, norm_eps=1e-5, rope=Rope(1e5), tied=True)


BLOCKS = ((2, 2), (4, 4), (7, 7), (8, 8), (64, 64))
NEAR = ((1, 16), (1, 256), (1, 1000), (1, 4000), *BLOCKS, (64, 500))
FAR = ((1, 16), (1, 1000), (1, 4000), *BLOCKS)
SPECIMENS = {
    "tiny": Specimen(_shape(64, 4, (4, 2, 16), 192, 256), 8, NEAR),
    "square": Specimen(_shape(512, 1, (2, 2, 64), 256, 64), 8, NEAR),
    "groups": Specimen(_shape(128, 6, (16, 2, 64), 512, 512), 8, NEAR),
    "heads": Specimen(_shape(1024, 3, (6, 6, 128), 128, 256), 8, NEAR),
    "layers": Specimen(_shape(384, 8, (6, 2, 64), 1024, 1024), 8, NEAR),
    "words": Specimen(_shape(64, 4, (4, 2, 16), 192, 1024), 8, ((1, 16),)),
    "vocabulary": Specimen(_shape(64, 1, (1, 1, 64), 64, 65536), 8, ((1, 16), (8, 8))),
    "deep": Specimen(_shape(320, 120, (8, 4, 64), 1280, 2048), 8, FAR),
    "broad": Specimen(_shape(2048, 4, (16, 8, 64), 6144, 8192), 8, FAR),
    "nibbles": Specimen(_shape(384, 8, (6, 2, 64), 1024, 1024), 4.5, ((1, 16), *BLOCKS)),
    "deep nibbles": Specimen(_shape(576, 60, (8, 2, 64), 1536, 2048), 4.5, FAR),
    "pairs": Specimen(_shape(384, 8, (6, 2, 64), 1024, 1024), 8, ((1, 16), *BLOCKS), PAIRS),
    "deep pairs": Specimen(_shape(576, 60, (8, 2, 64), 1536, 2048), 8, FAR, PAIRS),
}
# How steady times are: wall seconds of tokens that take some ten microseconds, some hundred, some thousand.
STEADY = {"tiny": 0.3, "layers": 0.6, "deep": 2.4}
VOCABULARIES = ("tiny", "words", "vocabulary")  # what the engine does to a token follows the number of its logits
ENGINE_S = 0.06  # wall seconds of answers of each in a round, likeliest and drawn

Key = tuple[str, str, int, int]  # specimen, kind, rows, seen


class Bench:
    """One loaded specimen, whose stages can be run kind by kind."""

    def __init__(self, specimen: Specimen, threads: int, path: str) -> None:
        graph = draw(specimen.config, Scheme(weight_bits=specimen.bits, prune=specimen.prune))
        self.executable = load(graph, threads=threads, path=path)
        self.executable.layout.cache.bytes[:] = FILL
        plan = self.executable.plan
        self.plans = {kind: replace(plan, stages=tuple(s for s in plan.stages if s.kind == kind)) for kind in KINDS}
        self.plans["step"] = plan
        self._crews = {kind: self._crew(kind) for kind in (*KINDS, NOTHING)}

    def _crew(self, kind: str) -> Crew:
        """Threads that walk the stages of one kind, on the executable's memory and the rows of its last step."""
        loaded = self.executable
        entries = [e for e, s in zip(loaded.entries, loaded.plan.stages, strict=True) if s.kind == kind]
        scratch = kernels.scratch_bytes(loaded.plan, loaded.path)
        return Crew(loaded.module, entries, loaded.layout.step_address, scratch, loaded.threads)

    def samples(self, kind: str, rows: int, seen: int, budget: float, clock: Clock) -> list[float]:
        """Wall seconds of steps of this kind's stages, or of whole steps as a caller sees them.

        The first of them, which finds the caches full of others' data, is left out.
        """
        chunk = Chunk(0, seen - rows, tuple(range(rows)))
        self.executable.run([chunk])  # leaves the rows in the step's header
        run = self._crews[kind].run if kind in self._crews else lambda: self.executable.run([chunk])
        times: list[float] = []
        while sum(times) < budget and len(times) < MOST or (len(times) < LEAST and sum(times) < LONG * budget):
            start = clock()
            run()
            times.append(clock() - start)
        return times[1:] or times

    def close(self) -> None:
        """Release threads and memory."""
        for crew in self._crews.values():
            crew.close()
        self.executable.close()


def calibrate(threads: int, path: str = "auto", *, answers: Answers, clock: Clock = time.perf_counter,
              progress: Progress = silent) -> Machine:
    """Measure this machine with a vector path and a number of threads; takes some ten seconds of the wall clock.

    ``answers`` makes tokens as a user's request does: what that takes beside the steps, and how steady it is.
    """
    total = len(SPECIMENS) + ROUNDS + 1
    with ExitStack() as stack:
        benches: dict[str, Bench] = {}
        for i, (name, specimen) in enumerate(SPECIMENS.items()):
            progress("draw specimens", i, total)
            benches[name] = Bench(specimen, threads, path)
            stack.callback(benches[name].close)
        times: dict[Key, list[float]] = {}
        steady: dict[str, list[float]] = {name: [] for name in STEADY}
        whole: dict[tuple[str, bool], list[float]] = {}
        for turn in range(ROUNDS):
            progress("measure", len(SPECIMENS) + turn, total)
            for key in _keys():
                name, kind, rows, seen = key
                times.setdefault(key, []).extend(benches[name].samples(kind, rows, seen, POINT_S, clock))
            for name, found in steady.items():
                found += answers(benches[name].executable, False, STEADY[name] / ROUNDS)
            for name in VOCABULARIES:
                for drawn in (False, True):
                    found = answers(benches[name].executable, drawn, ENGINE_S)
                    whole.setdefault((name, drawn), []).extend(found)
        progress("memory", total - 1, total)
        reach = _reach(threads, clock)
        first = next(iter(benches.values()))
        loaded, setting = first.executable, cost.Setting(first.executable.path, threads, reach)
        call = units.percentile([t for _ in range(ROUNDS) for t in first.samples(NOTHING, 1, 1, POINT_S, clock)], 50)
        medians = {key: units.percentile(found, 50) - call * (key[1] in KINDS) for key, found in times.items()}
        prices = _prices({name: bench.plans for name, bench in benches.items()}, setting, medians)
        prices |= _engine({key: units.percentile(found, 50) - medians[key[0], "step", 1, 16]
                           for key, found in whole.items()})
    spreads = tuple(map(_spread, steady.values()))
    return Machine(processor(), loaded.path.name, threads, reach, prices, spreads, kernels_hash())


def _keys() -> Iterator[Key]:
    for name, specimen in SPECIMENS.items():
        for rows, seen in specimen.steps:
            for kind in (*KINDS, "step"):
                # Nothing but attention looks at how far a row sees.
                if kind in ("step", "attention") or (rows, seen) not in ((1, 256), (1, 1000), (1, 4000), (64, 500)):
                    yield name, kind, rows, seen


def _engine(beside: dict[tuple[str, bool], float]) -> dict[str, float]:
    """Prices of a token by its number of logits, which only grow, from what answers take beside their steps."""
    prices: dict[str, float] = {}
    for drawn, way in ((False, "likeliest"), (True, "drawn")):
        most = 0.0
        for name in VOCABULARIES:
            most = max(most, beside[name, drawn])
            prices[f"engine: {way} {SPECIMENS[name].config.vocab}"] = most
    return prices


def _spread(times: Sequence[float]) -> Spread:
    ranked, middle = sorted(times), units.percentile(times, 50)
    at = [min(len(ranked) - 1, int(len(ranked) * percent / 100)) for percent in PERCENTS]
    return Spread(middle, tuple(ranked[i] / middle for i in at))


def _reach(threads: int, clock: Clock) -> cost.Reach:
    """The reading loop's time per byte over the sizes, each no less than at the size before."""
    loop = ReadLoop(threads, SIZES_MB[-1] << 20)
    curve: list[tuple[int, float]] = []
    try:
        for size in (mb << 20 for mb in SIZES_MB):
            times = [loop.seconds(size, clock) for _ in range(max(8, (256 << 20) // size))]
            curve.append((size, max(units.percentile(times[1:], 50) / size, curve[-1][1] if curve else 0.0)))
    finally:
        loop.close()
    return cost.Reach(_core_cache(), tuple(curve))


def _core_cache() -> int:
    """Bytes of a core's own second-level cache: what the system says, or a common size."""
    try:
        return int(CORE_CACHE.read_text("ascii").strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 1 << 20


def _prices(plans: dict[str, dict[str, Plan]], setting: cost.Setting, medians: dict[Key, float]) -> dict[str, float]:
    """Prices of every kind of work: each kind of stage from its own plans, then what is left of whole steps."""
    prices: dict[str, float] = {}
    for kind in (*KINDS, "step"):
        points = [key for key in medians if key[1] == kind]
        counts = [cost.work(plans[name][kind], setting, _step(rows, seen)) for name, _, rows, seen in points]
        kinds = sorted({what for count in counts for what in count if what.startswith(f"{kind}: ")})
        took = np.maximum([medians[key] for key in points], TICK)
        rest = took - np.array([cost.seconds(count, prices) for count in counts])
        matrix = np.array([[count[what] for what in kinds] for count in counts])
        prices |= dict(zip(kinds, nonnegative(matrix / took[:, None], rest / took).tolist(), strict=True))
    return prices


def _step(rows: int, seen: int) -> cost.Step:
    return cost.Step(tuple(range(seen - rows + 1, seen + 1)))


def nonnegative(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x >= 0 that makes a x nearest to b: a [points, kinds], b [points].

    Lawson and Hanson's method: kinds join one at a time, the one that helps most first, and leave when they would
    turn negative.
    """
    scale = np.sqrt((a * a).sum(axis=0))
    scale[scale == 0] = 1
    a = a / scale
    x, used = np.zeros(a.shape[1]), np.zeros(a.shape[1], bool)
    for _ in range(3 * a.shape[1]):
        gain = np.where(used, -np.inf, a.T @ (b - a @ x))
        if gain.max() <= 1e-9:
            break
        used[gain.argmax()] = True
        while True:
            best = np.zeros_like(x)
            best[used] = np.linalg.lstsq(a[:, used], b, rcond=None)[0]
            low = used & (best <= 0)
            if not low.any():
                break
            share = (x[low] / np.maximum(x[low] - best[low], 1e-300)).min()
            x = x + share * (best - x)
            used &= x > 1e-12
        x = best
    return x / scale
