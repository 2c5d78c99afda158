"""Programs of every kind in, a table of ``docs/09-target-chip.md`` out: what becomes of their mutants.

``python bench/mutants.py [COUNT] [KIND ...]`` compiles tiny models for tiny chips, runs a few tokens, and breaks the
next step COUNT times (1,000), one instruction at a time; so it does with collectives.  Exit status 1 when a mutant
ended with other bits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from openlpu.arch.chip import load_chip
from openlpu.arch.group import Group
from openlpu.arch.system import System, load_system, of_spec
from openlpu.checkpoint.config import Rope
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.graph.ir import Graph
from openlpu.numerics.draw import draw
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.partition.split import Split
from openlpu.place.host import Step
from openlpu.schedule import sweeps
from openlpu.schedule.collective import Collective, all_gather, all_reduce, swap
from openlpu.target.base import Chunk
from openlpu.target.chip import host, pipeline, run, system
from openlpu.target.chip.machine import Machine
from openlpu.target.chip.mutants import OUTCOMES, Subject, run_mutants, stage_of, step_of

MODEL = Path(__file__).resolve().parents[1] / "tests" / "golden" / "models" / "smollm"
TOKENS, NEXT = (1, 2, 3), Step(3, (4,))
ENCODER = EncoderConfig("bert", 64, 1, 4, 4, 16, 96, 50, 40, 1e-12, Rope(1.0, "none"), True, positions=40)
SEQUENCE = (2, 17, 44, 3, 9, 31)


def model(layers: int = 1) -> Graph:
    """The first layers of a tiny model."""
    return lower(build(load(MODEL)).truncate(layers), Scheme())


def one_chip(requests: int = 1) -> Subject:
    """A step of the last request, behind tokens of all."""
    executable = run.load(model(), chip="tiny", slots=requests)
    executable.run([Chunk(slot, 0, TOKENS) for slot in range(requests)])
    return step_of(executable, replace(NEXT, request=requests - 1))


def stage(split: Split, s: int = 0, requests: int = 1) -> Subject:
    """The same of one stage of a split."""
    executable = system.load(model(split.stages), system="tiny-node", split=split, slots=requests)
    executable.run([Chunk(slot, 0, TOKENS) for slot in range(requests)])
    return stage_of(executable, s, replace(NEXT, request=requests - 1))


def sweep(number: int) -> Subject:
    """The last step of one of an encoder's sweeps, with all states and caches of the steps before it."""
    executable = run.load(draw(ENCODER), chip="tiny", chunks=(4,))
    for step, part in sweeps.steps(executable.program, SEQUENCE):
        if part.number == number and step.end == len(SEQUENCE):
            return step_of(executable, step, part)
        executable.step(step, part)
    raise AssertionError("every sweep has a last step")


def wired(name: str, chips: int, node: int) -> System:
    """Tiny chips wired as another system's, in nodes of so many."""
    spec = load_system(name, 8).spec
    shape = replace(spec.shape, chips=node, nodes=chips // node, spares=0)
    return of_spec(replace(spec, chip=replace(load_chip("tiny"), c2c_links=16), shape=shape))


def collective(made: Collective) -> Subject:
    """Chips that have something to give."""
    roles, chip = made.system.chips, made.system.chip
    machine = Machine(chip, roles, pipeline.inside(made.system, Group(made.ways, (), ())))
    rng = np.random.default_rng(1)
    for role in range(roles):
        host.fill(machine, made.resident, {}, role)
        for home in made.given:
            data = rng.integers(0, 256, (len(home.slices), chip.lanes), np.uint8)
            machine.load(np.array(home.slices), np.full(len(home.slices), home.address), data, role)
    return Subject(machine, made.queues, made.claims, made.words)


KINDS: dict[str, Callable[[], Subject]] = {
    "layer": one_chip,
    "requests": lambda: one_chip(requests=2),
    "sums": lambda: stage(Split(2, exchange="sums")),
    "codes": lambda: stage(Split(2, exchange="codes")),
    "stage-of-sums": lambda: stage(Split(2, 2, "sums"), 1),
    "stage-of-requests": lambda: stage(Split(1, 2), 1, requests=2),
    "first-sweep": lambda: sweep(0),
    "last-sweep": lambda: sweep(1),
    "all-reduce": lambda: collective(all_reduce(wired("node", 8, 8), 9)),
    "three-hops": lambda: collective(all_reduce(wired("dragonfly", 18, 2), 1)),
    "all-gather": lambda: collective(all_gather(wired("dragonfly", 18, 2), 1)),
    "several-routes": lambda: collective(swap(wired("node", 8, 8), 40)),
}


def main(count: int, kinds: list[str]) -> int:
    """Run ``count`` mutants of each kind of program and print what became of them."""
    escaped = []
    print(f"| {count:,} mutants of | chips | instructions | {' | '.join(OUTCOMES)} | other without claims |")
    print("|---|" + "---:|" * 7)
    for kind in kinds or KINDS:
        subject = KINDS[kind]()
        for among in ("", "c2c") if subject.machine.links else ("",):
            instructions = sum(len(rows) for name, rows in subject.queues.items() if name.startswith(among))
            report = run_mutants(subject, count, among=among)
            numbers = [subject.machine.roles, instructions, *map(report.outcome, OUTCOMES), report.silent]
            name = f"{kind}, queues of links" if among else kind
            print(f"| {name} | " + " | ".join(f"{n:,}" for n in numbers) + " |", flush=True)
            escaped += [f"{name}: {text}" for text in report.escaped]
    print(*escaped, sep="\n", end="")
    return 1 if escaped else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=1000, choices=range(1, 10**6), metavar="COUNT")
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], metavar="KIND", help=", ".join(KINDS))
    args = parser.parse_args()
    sys.exit(main(args.count, args.kinds))
