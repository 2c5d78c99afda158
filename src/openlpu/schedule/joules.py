"""A token on chips in, or a sequence on one, its energy out: what its instructions spend, and what the chips draw
while it lasts.

For one request alone every chip draws its static power from the token's first cycle to its last.  With the pipeline
full another request's token follows as soon as the busiest chip is done, so that a token pays for one interval only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openlpu.arch.chip import Chip
from openlpu.arch.energy import FJ_PER_JOULE, Counts, count, dynamic, load_constants, static
from openlpu.schedule.tracks import ChipRun, content, duration, interval


@dataclass(frozen=True)
class Energy:
    """Femtojoules of one token over all chips, with the constants of a ``process``: ``dynamic`` by what was worked,
    static for a request alone and full."""

    process: str
    counts: Counts
    dynamic: dict[str, int]
    static_alone: int
    static_full: int
    chips: int
    seconds_alone: float
    seconds_full: float

    @property
    def alone(self) -> int:
        """Femtojoules per token of one request alone."""
        return sum(self.dynamic.values()) + self.static_alone

    @property
    def full(self) -> int:
        """Femtojoules per token with a request in every chip."""
        return sum(self.dynamic.values()) + self.static_full

    @property
    def watts_alone(self) -> float:
        """Mean power of a chip, one request alone."""
        return self.alone / FJ_PER_JOULE / self.seconds_alone / self.chips

    @property
    def watts_full(self) -> float:
        """Mean power of a chip with the pipeline full."""
        return self.full / FJ_PER_JOULE / self.seconds_full / self.chips


def energy(chips: Sequence[ChipRun]) -> Energy:
    """What a token on these chips costs."""
    total = Counts()
    unlike = {id(run.queues): run for run in chips}
    keys = {key: content(run) for key, run in unlike.items()}
    done: dict[frozenset[tuple[int, int]], Counts] = {}  # chips with the same instructions are counted once
    for key, run in unlike.items():
        if keys[key] not in done:
            done[keys[key]] = count(run.chip, run.queues, run.packet_bytes)
    for run in chips:
        total += done[keys[id(run.queues)]]
    return _spent(chips[0].chip, len(chips), total, duration(chips), interval(chips))


def in_turn(steps: Sequence[tuple[ChipRun, int]], chips: int = 1, cycles: int = 0, interval: int = 0) -> Energy:
    """What steps cost, each taken so many times; they follow each other on one chip, or take all ``chips`` together so
    many ``cycles``, and another request's come after an ``interval``."""
    total = sum((count(run.chip, run.queues, run.packet_bytes) * times for run, times in steps), Counts())
    cycles = cycles or sum(run.cycles * times for run, times in steps)
    return _spent(steps[0][0].chip, chips, total, cycles, interval or cycles)


def _spent(chip: Chip, chips: int, total: Counts, cycles: int, interval: int) -> Energy:
    of, clock = load_constants(chip.name), chip.clock_hz
    alone, full = (chips * static(chip, of, c) for c in (cycles, interval))
    return Energy(of.name, total, dynamic(total, of), alone, full, chips, cycles / clock, interval / clock)
