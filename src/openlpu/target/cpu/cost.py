"""A plan and a step in, counts of work out: what a token costs before any of it has run.

A :class:`Step` says which rows run and how far each looks back; :func:`work` walks the plan's stages and counts
what they do, in units that a processor does at a steady pace: groups of 64 codes met by a block of rows, lines
that come from memory instead of a cache, elements of row work, positions of attention, meetings of the threads.
Seconds are counts times the prices that ``calibrate`` found on this machine.  Nothing here asks for a model's
name: steps with the same counts have the same time.

A kind of work is named ``stage: what``.  A weight format brings kinds of its own by its ``mark``: it states the bytes
of a panel, and what it does with a group has one price (:meth:`_Counting._part` is where); ``calibrate`` needs a
specimen of it in a cache and one out of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openlpu.arch.truepoint.attention import BLOCK
from openlpu.target.cpu import kernels
from openlpu.target.cpu.attention_block import AttentionStage
from openlpu.target.cpu.layout import MAX_ROWS
from openlpu.target.cpu.linear import LinearStage, Part
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.plan import Plan, Stage
from openlpu.target.cpu.rows import Op
from openlpu.target.cpu.sparse import Tiles
from openlpu.target.cpu.weights import STEP, padded

GROUP = 64  # codes that one dot instruction meets
LINE = 64  # bytes that memory hands over at once
LANES = 16
AT_ONCE = 2  # query heads that share what they load of the cache
POSITIONS = 64  # of the cache that a row looks at together, whether or not it sees them all

Counts = defaultdict[str, float]

# What each row operator does to an element.
ROW_WORK = {
    "embed": ("embed",), "quantize": ("quantize",), "rms": ("rms",), "rope": ("rope",), "store": ("quantize", "store"),
    "headnorm": ("quantize", "rms", "plain"), "add": ("plain",), "mul": ("plain",), "silu_mul": ("silu",),
    "route": ("plain",), "group": ("plain",), "coded": ("quantize",), "mix": ("plain",),
}


@dataclass(frozen=True)
class Step:
    """One native step: row i sees ``seen[i]`` positions, its own included; ``wanted`` rows give logits."""

    seen: tuple[int, ...]
    wanted: int = 1


def decode(context: int) -> Step:
    """The step of one token that sees ``context`` positions."""
    return Step((context,))


def prefill(start: int, end: int, chunk: int = 0) -> list[Step]:
    """The steps of a prompt's positions from ``start`` to ``end``, asked for ``chunk`` at a time (0: all).

    Each chunk's last row gives logits.
    """
    steps = []
    for first in range(start, end, chunk or max(1, end - start)):
        last = min(end, first + chunk) if chunk else end
        for row in range(first, last, MAX_ROWS):
            stop = min(row + MAX_ROWS, last)
            steps.append(Step(tuple(range(row + 1, stop + 1)), int(stop == last)))
    return steps


@dataclass(frozen=True)
class Reach:
    """Where the bytes of a step come from, by how many it walks through.

    ``near`` is what a core's own cache holds; ``loop`` are (bytes, seconds per byte) of a plain reading loop,
    ascending in bytes, the first in a cache and the last far beyond every cache.
    """

    near: int
    loop: tuple[tuple[int, float], ...]

    def shares(self, walked: float, threads: int) -> tuple[float, float]:
        """The shares of bytes from a cache that cores share, and from memory; the rest is in the cores' own."""
        far = self._far(walked)
        room = self.near * threads / 2  # the other half holds activations, code, and what happens to collide
        return min(1.0, max(0.0, walked / room - 1)) * (1 - far), far

    def _far(self, walked: float) -> float:
        """Where the loop's time lies between its ends; a straight line between sizes."""
        low, high = self.loop[0][1], self.loop[-1][1]
        for (size, time), (next_size, next_time) in zip(self.loop, self.loop[1:], strict=False):
            if walked < next_size and high > low:
                time += (next_time - time) * max(0.0, walked - size) / (next_size - size)
                return min(1.0, max(0.0, (time - low) / (high - low)))
        return 1.0


@dataclass(frozen=True)
class Setting:
    """What counts depend on beside plan and step."""

    path: Path
    threads: int
    reach: Reach


def seconds(counts: Mapping[str, float], prices: Mapping[str, float]) -> float:
    """Wall seconds of counted work."""
    return sum(prices.get(kind, 0.0) * count for kind, count in counts.items())


def work(plan: Plan, setting: Setting, step: Step) -> Counts:
    """Counts of every kind of work in a step, as the busiest thread does it and the others wait for it."""
    near, far = setting.reach.shares(walked(plan, setting.path, step), setting.threads)
    counts: Counts = defaultdict(float, {"step: call": 1.0, "step: row": len(step.seen)})
    alike = {(stage.spec, stage.logits_only): stage for stage in plan.stages}
    times = Counter((stage.spec, stage.logits_only) for stage in plan.stages)
    for key, stage in alike.items():
        rows = step.wanted if stage.logits_only else len(step.seen)
        if rows:
            one: Counts = defaultdict(float, {"step: stage": 1.0, "step: cold stage": far})
            _Counting(one, setting, near, far).stage(stage, plan, step.seen[-rows:])
            for what, count in one.items():
                counts[what] += count * times[key]
    return counts


def walked(plan: Plan, path: Path, step: Step) -> int:
    """Bytes of weights and caches that a step walks through."""
    seen = max(step.seen)
    caches = [stage.spec for stage in plan.stages if isinstance(stage.spec, AttentionStage)]
    return weight_bytes(plan, path, len(step.seen)) + sum(
        spec.cache.bytes_read(padded(min(seen, spec.window or seen), POSITIONS)) for spec in caches
    )


def weight_bytes(plan: Plan, path: Path, rows: int = 1) -> int:
    """Bytes of weights that a step of so many rows reads; of experts, as many as the rows can choose."""
    return sum(stage.spec.weight_bytes(path, rows) for stage in plan.stages if isinstance(stage.spec, LinearStage))


def logits(plan: Plan) -> int:
    """Logits of a token."""
    linears = [stage.spec for stage in plan.stages if isinstance(stage.spec, LinearStage)]
    return sum(part.rows for spec in linears for part in spec.parts if part.logits)


def blocks(rows: int, path: Path) -> list[int]:
    """The blocks of token rows that a panel meets, one after another."""
    met: list[int] = []
    for block in path.blocks:
        count, rows = divmod(rows, block)
        met += [block] * count
    return met


@dataclass(frozen=True)
class _Counting:
    """Adds a stage's work to ``counts``; ``near`` and ``far`` are the shares of bytes from beyond a core's cache."""

    counts: Counts
    setting: Setting
    near: float
    far: float

    def stage(self, stage: Stage, plan: Plan, seen: Sequence[int]) -> None:
        """One stage of the rows that see so many positions."""
        tiles, per_row = kernels.tiles(stage, self.setting.path, self.setting.threads)
        tiles *= len(seen) if per_row else 1
        each = -(-tiles // self.setting.threads)  # tiles of the busiest thread
        self.counts[f"{stage.kind}: stage"] += 1
        self.counts[f"{stage.kind}: tile"] += each
        if isinstance(stage.spec, LinearStage):
            active, rows = stage.spec.met(len(seen))
            for part in stage.spec.parts:
                self._part(part, stage.spec, rows, active * each / tiles)
        elif isinstance(stage.spec, AttentionStage):
            self._attention(stage.spec, seen, tiles)
        else:
            for op in stage.spec:
                self._op(op, plan, len(seen) * each / tiles)

    def _part(self, part: Part, stage: LinearStage, rows: int, mine: float) -> None:
        """Every block of rows meets every group; what is not in a cache is waited for once, by the first block."""
        path, add = self.setting.path, self.counts
        panels = padded(part.rows, path.panel) // path.panel * mine
        met = blocks(rows, path)
        for matrix in part.matrices():
            mark = "" if isinstance(matrix.format, Tiles) else matrix.format.mark  # a tile is like any other step
            groups = panels * path.panel * matrix.format.steps(stage.k) * STEP / GROUP
            wide = groups * padded(stage.wide, STEP) / padded(stage.k, STEP)  # these meet a second plane of codes
            lines = panels * matrix.format.panel_bytes(path, stage.k) / LINE
            meets = mark
            if matrix.format.expands(path) and rows >= path.expand_rows:  # once, to what an unmarked one is in memory
                add[f"linear: expand{mark}"] += groups
                meets = ""
            for i, block in enumerate(met):
                here = 1.0 if i else 1 - self.far
                add[f"linear: dot {block}{meets}"] += groups * here
                add[f"linear: wide {block}"] += wide * here
                add["linear: panel"] += panels * here
                add["linear: result"] += panels * path.panel / LANES * block * here
            add[f"linear: near {met[0]}{mark}"] += lines * self.near
            add[f"linear: far {met[0]}{mark}"] += lines * self.far
            add["linear: far panel"] += panels * self.far
        if part.gate:
            add["linear: silu"] += panels * path.panel * rows
        if part.logits:
            add["step: logit"] += part.rows * rows

    def _attention(self, stage: AttentionStage, seen: Sequence[int], tiles: int) -> None:
        """Units of a block each in equal stretches: what a tile has of them, times the tiles of a thread."""
        cache, group = stage.cache, stage.group
        spans = [min(count, stage.window or count) for count in seen]
        units = sum(-(-span // BLOCK) for span in spans)
        each = -(-tiles // self.setting.threads)
        mine = cache.heads * min(1.0, max(each / tiles, 1 / (cache.heads * units)))
        vectors = sum(padded(span, POSITIONS) for span in spans) / LANES * mine
        quads = sum(span // POSITIONS * LANES + min(span % POSITIONS, LANES) for span in spans) * mine
        lines = cache.bytes_read(padded(max(spans), POSITIONS)) / cache.heads * mine / LINE
        far = "far" if group <= AT_ONCE else "far in turns"  # each turn over the heads waits for a part
        found = {
            "attention: row": len(seen) * mine, "attention: head": len(seen) * mine * group,
            "attention: unit": units * mine, "attention: part": units * mine * group,
            "attention: join": units * mine * group * cache.v_dim / LANES,
            "attention: scale": vectors, "attention: probability": vectors * group,
            "attention: score": vectors * group * cache.k_dim * cache.planes / 4,
            "attention: value": quads * group * cache.v_dim * cache.planes / LANES,
            "attention: near": lines * self.near, f"attention: {far}": lines * self.far,
            "attention: far head": mine * self.far,
        }
        for what, count in found.items():
            self.counts[what] += count

    def _op(self, op: Op, plan: Plan, rows: float) -> None:
        numbers = dict(op.numbers)
        size = plan.cache.heads * plan.cache.dim if op.name == "store" else numbers["size"]
        rows *= numbers.get("chosen", 1)  # of one token, where there are experts
        self.counts["rows: op"] += rows
        self.counts["rows: wide"] += rows * numbers.get("wide", 0)
        for what in ROW_WORK[op.name]:
            self.counts[f"rows: {what}"] += rows * size
        if numbers.get("format"):
            self.counts[f"rows: packed{numbers['format'].mark}"] += rows * size
