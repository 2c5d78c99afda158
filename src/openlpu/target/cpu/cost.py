"""A plan and a step in, counts of work out: what a token costs before any of it has run.

A :class:`Step` says which rows run and how far each looks back; :func:`work` walks the plan's stages and counts
what they do, in units that a processor does at a steady pace: groups of 64 weight bytes met by a block of rows,
bytes that come from memory instead of a cache, elements of row work, positions of attention, stages and the
tiles in them.  Seconds are the counts times the prices that ``calibrate`` found for this machine.  Nothing here
asks for a model's name: two plans with the same counts have the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from openlpu.arch.truepoint.attention import BLOCK
from openlpu.target.cpu import kernels
from openlpu.target.cpu.attention import AttentionStage
from openlpu.target.cpu.layout import MAX_ROWS
from openlpu.target.cpu.linear import STEP, LinearStage, padded
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.plan import Plan, Stage
from openlpu.target.cpu.rows import Op

GROUP = 64  # weight bytes that meet four codes of a row at once
LANES = 16

Prices = Mapping[str, float]  # seconds of the wall clock per unit of each kind of work
Far = Callable[[float], float]  # bytes a step walks through -> the share of them that comes from memory

# What each row operator does to an element, in kinds of work that have a price.
ROW_WORK = {
    "embed": ("embed",), "quantize": ("quantize",), "rms": ("rms",), "rope": ("rope",), "store": ("quantize", "store"),
    "headnorm": ("quantize", "rms", "light"), "add": ("light",), "mul": ("light",), "silu_mul": ("silu",),
}


@dataclass(frozen=True)
class Step:
    """One native step: ``seen[i]`` positions are visible to row i (its own included); ``wanted`` rows give logits."""

    seen: tuple[int, ...]
    wanted: int = 1


def decode(context: int) -> Step:
    """The step that makes one token with ``context`` positions in view."""
    return Step((context,))


def prefill(start: int, end: int, chunk: int = 0) -> list[Step]:
    """The steps of prompt positions [start, end), asked for ``chunk`` at a time (0: all); each chunk's last row
    gives logits."""
    steps = []
    for first in range(start, end, chunk or end - start):
        last = min(end, first + chunk) if chunk else end
        for row in range(first, last, MAX_ROWS):
            stop = min(row + MAX_ROWS, last)
            steps.append(Step(tuple(range(row + 1, stop + 1)), int(stop == last)))
    return steps


@dataclass(frozen=True)
class Machine:
    """What turns counts into seconds: prices of work, and how memory gets slower as more of it is walked through.

    ``reach`` are (bytes, seconds per byte) of a plain reading loop, ascending in bytes.
    """

    prices: Prices
    reach: tuple[tuple[float, float], ...]

    def far(self, walked: float) -> float:
        """The share of bytes that comes from memory when a step walks through so many: 0 in cache, 1 out of it."""
        return far(self.reach, walked)

    def seconds(self, plan: Plan, path: Path, threads: int, step: Step) -> float:
        """Wall seconds of a step in the median."""
        counts = work(plan, path, threads, step, self.far)
        return sum(self.prices.get(kind, 0.0) * count for kind, count in counts.items())


def far(reach: Sequence[tuple[float, float]], walked: float) -> float:
    """Where the reading loop's time per byte at ``walked`` bytes lies between its ends, between measured sizes on
    a straight line."""
    low, high = reach[0][1], reach[-1][1]
    if high <= low or walked <= reach[0][0]:
        return 0.0
    for (size, time), (next_size, next_time) in zip(reach, reach[1:], strict=False):
        if walked < next_size:
            at = time + (next_time - time) * (walked - size) / (next_size - size)
            return min(1.0, max(0.0, (at - low) / (high - low)))
    return 1.0


def work(plan: Plan, path: Path, threads: int, step: Step, far: Far) -> Counter[str]:
    """Counts of every kind of work in one step, as one of ``threads`` does or waits for it."""
    counts: Counter[str] = Counter(step=1)
    share = far(walked(plan, path, step))
    for stage in plan.stages:
        rows = step.wanted if stage.logits_only else len(step.seen)
        if rows:
            counts["stage"] += 1
            _stage(counts, stage, plan, path, threads, step.seen[-rows:], share)
    return counts


def walked(plan: Plan, path: Path, step: Step) -> float:
    """Bytes of weights and caches that a step walks through once."""
    total = 0.0
    for stage in plan.stages:
        if isinstance(stage.spec, LinearStage) and (step.wanted or not stage.logits_only):
            total += weight_bytes(stage.spec, path)
        elif isinstance(stage.spec, AttentionStage):
            total += stage.spec.cache.heads * max(step.seen) * position_bytes(stage.spec)
    return total


def weight_bytes(stage: LinearStage, path: Path) -> int:
    """Bytes a linear stage streams: what a weight format changes."""
    return sum(_part_bytes(stage, part.rows, part.gate[0] >= 0, path) for part in stage.parts)


def _part_bytes(stage: LinearStage, rows: int, gated: bool, path: Path) -> int:
    return padded(rows, path.panel) * padded(stage.k, STEP) * (2 if gated else 1)


def position_bytes(stage: AttentionStage) -> int:
    """Bytes of one cached position of one head: codes of K and V and their scales."""
    cache = stage.cache
    return cache.planes * (cache.k_dim + cache.v_dim) + 8


def blocks(rows: int, path: Path) -> list[int]:
    """The blocks of token rows a panel meets one after another."""
    out = []
    for block in path.blocks:
        count, rows = divmod(rows, block)
        out += [block] * count
    return out


def _stage(counts: Counter[str], stage: Stage, plan: Plan, path: Path, threads: int, seen: Sequence[int],
           share: float) -> None:
    tiles, per_row = kernels.tiles(stage, path, threads)
    tiles *= len(seen) if per_row else 1
    mine = -(-tiles // threads) / tiles  # the part of a stage that the busiest thread does
    if isinstance(stage.spec, LinearStage):
        _linear(counts, stage.spec, path, len(seen), mine, share)
        counts["tile"] += mine * tiles
    elif isinstance(stage.spec, AttentionStage):
        _attention(counts, stage.spec, seen, mine, share)
    else:
        for op in stage.spec:
            _row(counts, op, plan, mine * len(seen), share)


def _linear(counts: Counter[str], stage: LinearStage, path: Path, rows: int, mine: float, share: float) -> None:
    """Every block of rows meets every group; the first also waits for what is not in a cache."""
    counts["linear"] += 1
    counts["linear far"] += share
    groups = weight_bytes(stage, path) / GROUP * mine
    wide = groups * padded(stage.wide, STEP) / padded(stage.k, STEP)  # these meet a second plane of codes
    first, *_ = sizes = blocks(rows, path)
    for size in sizes:
        counts[f"dot {size}"] += groups + wide
    counts[f"far {first}"] += groups * share
    for part in stage.parts:
        vectors = padded(part.rows, path.panel) / LANES * rows * mine
        gated = part.gate[0] >= 0
        counts["epilogue"] += vectors * (2 if gated else 1)
        counts["silu"] += vectors * LANES if gated else 0
        counts["panel"] += len(sizes) * padded(part.rows, path.panel) / path.panel * mine * (2 if gated else 1)


def _attention(counts: Counter[str], stage: AttentionStage, seen: Sequence[int], mine: float, share: float) -> None:
    cache, group = stage.cache, stage.group
    heads = cache.heads * mine
    counts["attention"] += heads * len(seen)
    positions = sum(seen) * heads
    chunks = sum(padded(count, LANES) for count in seen) * heads
    counts["block"] += sum(-(-count // BLOCK) for count in seen) * heads * group
    counts["score"] += chunks * group * cache.k_dim * cache.planes / GROUP
    counts["weigh"] += chunks * group * cache.v_dim * cache.planes / GROUP
    counts["probability"] += chunks * group
    counts["key"] += chunks
    counts["kv far"] += max(seen) * heads / len(seen) * position_bytes(stage) / GROUP * share
    del positions


def _row(counts: Counter[str], op: Op, plan: Plan, rows: float, share: float) -> None:
    cache = plan.cache
    size = cache.heads * cache.dim if op.name == "store" else op.number("size")
    counts["op"] += rows
    for kind in ROW_WORK[op.name]:
        counts[kind] += rows * size
    if op.name == "embed":
        counts["embed far"] += rows * size * share
