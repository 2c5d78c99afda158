"""A system, the programs of its chips and a seed in; whether real clocks and links keep the schedule, and when it ends.

The referee counts aligned cycles: those of chip 0's clock.  Real chips have clocks of their own, each with an offset
and a drift, and a link's latency varies from packet to packet.  Here every draw gives each chip and packet such numbers
and follows the published protocol (ISCA 2022, section 3), all draws side by side:

1. Alignment.  Once an epoch each chip compares its hardware aligned counter (HAC) with what its parent in the spanning
   tree sends, adds the mean latency L of the link, and steps towards it, `STEP` cycles at most.
2. Start.  Chip 0 waits for its HAC to overflow (DESKEW) and tells its children (TRANSMIT).  They look once an epoch and
   pass it on.  All start in one epoch, the sum of floor(L / epoch) + 1 over the longest path later.
3. Run.  A chip's program runs on its own clock; the HAC is still kept aligned.  RUNTIME_DESKEW waits until the
   program's clock (SAC) is back at the HAC.

**The bound.**  A step moves a chip towards where its parent is, give or take the jitter J = max(maximum - L,
L - minimum), half a cycle of rounding, and the drift 2 * D of an epoch; it never goes beyond.  So once aligned a chip
stays within the sum of (J + 1/2 + 2 * D * epoch) over the wires to chip 0; a system file states that as each link's
`align`.  A program that runs at most c cycles between two alignments ends within

    sum of align over the longest path to chip 0  +  2 * D * c

of its stated cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.alignment import PPM, STEP, startup_epochs
from openlpu.arch.link import Link
from openlpu.arch.system import System
from openlpu.target.chip.packets import Packets, Stretches

F64 = NDArray[np.float64]
Ints = NDArray[np.int64]

DRIFT = PPM * 1e-6  # a clock's largest deviation from nominal
BLOCK = 1 << 22  # events of draws looked at together


@dataclass(frozen=True)
class Timing:
    """What became of every draw.  Cycles are chip 0's, from the start of the program; arrays have one entry per draw.

    ``end``: when the last instruction of any chip is done.  ``slack``: least time between a vector's arrival and the
    receive that takes it.  ``misaligned``: most cycles between two HACs at a start or a RUNTIME_DESKEW.  ``startup``:
    epochs from the first DESKEW to the start.
    """

    cycles: int
    bound: float
    startup: int
    end: F64
    slack: F64
    misaligned: F64


class Latencies:
    """The latency of packets on one class of link: a binomial distribution of the published mean and variance, cut at
    the published minimum and maximum."""

    def __init__(self, link: Link) -> None:
        trials = max(round(4 * link.sigma * link.sigma), 1)
        weight = np.array([comb(trials, k) for k in range(trials + 1)], np.float64) / 2.0**trials
        whole, part = divmod(link.mean - trials / 2, 1.0)
        first, span = int(whole), np.arange(link.minimum, link.maximum + 1)
        chance = np.zeros(len(span))
        for shift, share in ((0, 1 - part), (1, part)):
            k = span - first - shift
            inside = (k >= 0) & (k <= trials)
            chance[inside] += share * weight[k[inside]]
        total = np.cumsum(chance)
        assert total[-1] > 0, "the mean lies between minimum and maximum"
        self.minimum, self.mean = link.minimum, round(link.mean)
        self.limit = np.floor(total / total[-1] * 2.0**32).astype(np.uint64)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Ints:
        """Latencies in cycles."""
        at = rng.integers(0, 1 << 32, shape, np.uint64)
        return self.minimum + np.searchsorted(self.limit, at, "right")


class Clocks:
    """The clocks of a system's chips in every draw.

    ``late`` [draws, chips]: cycles by which a HAC is behind chip 0's.  ``rate`` [draws, chips]: by how much a chip's
    cycle is longer than chip 0's.
    """

    def __init__(self, system: System, draws: int, seed: int, drift: float = DRIFT) -> None:
        self.system, self.tree, self.draws = system, system.tree, draws
        self.rng = np.random.Generator(np.random.Philox(seed))
        self.links = [Latencies(link) for link in system.links]
        shape = draws, len(self.tree.parent)
        rate = drift * (2 * self.rng.random(shape) - 1)
        self.rate: F64 = rate - rate[:, :1]
        self.late: F64 = system.epoch * (self.rng.random(shape) - 0.5)
        self.late[:, 0] = 0
        self.chips = [np.flatnonzero(self.tree.level == level) for level in range(len(self.links))]

    def settle(self) -> None:
        """Align from any offset: an epoch of steps for each wire of the longest path to chip 0.

        Half would do, but a counter half an epoch off does not know for a while which way is shorter.
        """
        for _ in range(self.system.epoch // STEP * int(self.tree.depth.max())):
            self.align()
        self.late = self._wrapped(self.late)

    def _wrapped(self, cycles: F64) -> F64:
        """A HAC counts one epoch: of equal counts the one nearest 0."""
        half = self.system.epoch / 2
        return (cycles + half) % self.system.epoch - half

    def align(self) -> None:
        """One epoch: clocks drift, and every chip steps towards its parent."""
        self.late += self.system.epoch * self.rate
        change = np.zeros_like(self.late)
        for chips, link in zip(self.chips, self.links, strict=True):
            if len(chips):
                noise = link.draw(self.rng, (self.draws, len(chips))) - link.mean
                ahead = self.late[:, chips] - self.late[:, self.tree.parent[chips]] - noise
                change[:, chips] = np.clip(np.rint(self._wrapped(ahead)), -STEP, STEP)
        self.late -= change

    def start(self) -> int:
        """DESKEW and TRANSMIT down the tree: epochs until all chips start, aligned.

        Raises :class:`ProgramError` naming the draw and the chip that the signal reached in another epoch.
        """
        epoch = self.system.epoch
        for chips, link in zip(self.chips, self.links, strict=True):
            if not len(chips):
                continue
            wait = link.mean // epoch + 1
            arrival = self.late[:, self.tree.parent[chips]] + link.draw(self.rng, (self.draws, len(chips)))
            early, late = (self.late[:, chips] + k * epoch for k in (wait - 1, wait))
            for draw, k in np.argwhere((arrival <= early) | (arrival > late))[:1]:
                raise ProgramError(
                    f"the start signal comes {arrival[draw, k]:.0f} cycles after its parent's epoch began, and is "
                    f"expected between cycle {early[draw, k]:.0f} and {late[draw, k]:.0f}",
                    where=f"draw {draw}, chip {chips[k]} of system {self.system.name}",
                )
        total = startup_epochs(self.tree, [link.mean for link in self.links], epoch)
        for _ in range(total):
            self.align()
        return total


def simulate(
    system: System, packets: Packets, stretches: Stretches, draws: int = 1000, seed: int = 0, drift: float = DRIFT
) -> Timing:
    """Run a token's sends and receives in ``draws`` draws.

    Raises :class:`ProgramError` naming the draw, link, packet and time when a vector comes after its receive or finds a
    buffer full, or naming the chip when its clock is farther off than RUNTIME_DESKEW can wait.
    """
    clocks = Clocks(system, draws, seed, drift)
    clocks.settle()
    startup = clocks.start()
    run = Passage(clocks, packets, stretches)
    step = max(BLOCK // max(len(packets.sent), 1), 1)
    slack = np.concatenate([run.slack(slice(i, min(i + step, draws))) for i in range(0, draws, step)])
    chips = np.arange(len(stretches.end))
    end = run.real(slice(None), stretches.end, chips).max(axis=1)
    cycles, bound = int(stretches.end.max()), _bound(system, stretches, drift)
    for draw in np.flatnonzero(end > cycles + bound)[:1]:
        what = f"ends in cycle {end[draw]:.1f}, later than the {cycles} stated and the bound of {bound:.1f}"
        raise ProgramError(what, where=f"draw {draw} of system {system.name}")
    return Timing(cycles, bound, startup, end, slack, np.abs(run.late).max(axis=(1, 2)))


def _bound(system: System, stretches: Stretches, drift: float) -> float:
    """The module's formula, over the chips that run."""
    chips = np.arange(len(stretches.end))
    path = system.tree.path_sums(chips, np.zeros_like(chips), [link.align for link in system.links])
    edges = np.minimum(np.append(stretches.begins, stretches.end[:, None], axis=1), stretches.end[:, None])
    alone = np.diff(edges, axis=1).max(initial=0)
    return float(path.max(initial=0) + 2 * drift * alone)


class Passage:
    """A token on real clocks.  ``late`` [draws, chips, stretches]: how late each chip begins each stretch."""

    def __init__(self, clocks: Clocks, packets: Packets, stretches: Stretches) -> None:
        self.clocks, self.packets, self.stretches = clocks, packets, stretches
        chips, count = stretches.begins.shape
        self.late = np.zeros((clocks.draws, chips, count))
        self.late[:, :, 0] = clocks.late[:, :chips]
        now = 0
        for at, c, k in sorted((int(stretches.begins[c, k]), c, k) for c, k in np.argwhere(stretches.waits > 0)):
            while now + clocks.system.epoch <= at:
                clocks.align()
                now += clocks.system.epoch
            self._deskew(at, c, k)

    def _deskew(self, at: int, c: int, k: int) -> None:
        """The program of chip ``c`` waits until its clock is at the HAC, and begins stretch ``k``."""
        clocks, stretches = self.clocks, self.stretches
        self.late[:, c, k] = clocks.late[:, c]
        alone = at - stretches.begins[c, k - 1]
        off = self.late[:, c, k - 1] + alone * clocks.rate[:, c] - self.late[:, c, k]
        for draw in np.flatnonzero(np.abs(off) > stretches.waits[c, k])[:1]:
            what = f"its clock is {off[draw]:+.1f} cycles off; runtime_deskew has {stretches.waits[c, k]} to mend it"
            raise ProgramError(what, where=f"draw {draw}, chip {c} of system {clocks.system.name}, cycle {at}")

    def real(self, draws: slice, cycles: Ints, chips: Ints) -> F64:
        """[draws, n]: when a program's cycle is, by chip 0's clock."""
        stretch = self.stretches.of(chips, cycles)
        alone = cycles - self.stretches.begins[chips, stretch]
        return cycles + self.late[draws][:, chips, stretch] + self.clocks.rate[draws][:, chips] * alone

    def times(self, draws: slice) -> tuple[F64, F64]:
        """[draws, packets]: when each packet arrives, and when its receive is dispatched."""
        p = self.packets
        arrival, taken = self.real(draws, p.sent, p.source), self.real(draws, p.taken, p.target)
        for level, link in enumerate(self.clocks.links):
            on = np.flatnonzero(p.level == level)
            arrival[:, on] += link.draw(self.clocks.rng, (len(arrival), len(on)))
        # A link delivers in order: a packet cannot overtake the one before.
        apart = np.cumsum(np.diff(p.link, prepend=0) != 0) * (4.0 * (1 + p.taken.max(initial=0)))
        return np.maximum.accumulate(arrival + apart, axis=1) - apart, taken

    def slack(self, draws: slice) -> F64:
        """The least time between arrival and receive in each of some draws; refuses what is late or overflows."""
        p = self.packets
        arrival, taken = self.times(draws)
        late = arrival - taken
        self._refuse(late > 0, draws, "comes in cycle {:.1f}, {:.1f} cycles after its receive", arrival, late)
        before = np.arange(len(p.depth)) - p.depth
        wait = np.full(arrival.shape, -np.inf)
        same = (before >= 0) & (p.link[np.maximum(before, 0)] == p.link)
        wait[:, same] = taken[:, before[same]] - arrival[:, same]
        what = "comes in cycle {:.1f} and finds the buffer of the link full for {:.1f} more cycles"
        self._refuse(wait > 0, draws, what, arrival, wait)
        return -late.max(axis=1, initial=-np.inf)

    def _refuse(self, wrong: NDArray[np.bool_], draws: slice, what: str, *values: F64) -> None:
        if wrong.any():
            draw, k = (int(i) for i in np.argwhere(wrong)[0])
            where = f"draw {draws.start + draw} of system {self.clocks.system.name}, {self.packets.where(k)}"
            raise ProgramError(what.format(*(v[draw, k] for v in values)), where=where)
