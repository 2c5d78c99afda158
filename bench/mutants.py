"""Mutants of a compiled decode step in, the table of ``docs/09-target-chip.md`` out.

``python bench/mutants.py [COUNT]`` compiles one layer of a tiny model for the tiny chip, runs three tokens, and breaks
the fourth COUNT times (1,000), one instruction at a time.  Exit status 1 when a mutant ended with other bits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.place.host import Step
from openlpu.target.base import Chunk
from openlpu.target.chip import run
from openlpu.target.chip.mutants import step_mutants

MODEL = Path(__file__).resolve().parents[1] / "tests" / "golden" / "models" / "smollm"
TOKENS = (1, 2, 3)


def main(count: int) -> int:
    """Run ``count`` mutants and print what became of them."""
    executable = run.load(lower(build(load(MODEL)).truncate(1), Scheme()), chip="tiny")
    executable.run([Chunk(0, 0, TOKENS)])
    instructions = sum(map(len, executable.program.segments[0].queues.values()))
    print(f"{count:,} mutants of {instructions:,} instructions")
    report = step_mutants(executable, Step(len(TOKENS), (4,)), count)
    print(report)
    print(*report.escaped, sep="\n", end="")
    return 1 if report.escaped else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=1000, choices=range(1, 10**6), metavar="COUNT")
    sys.exit(main(parser.parse_args().count))
