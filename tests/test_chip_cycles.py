"""The chip model agrees with the obvious simulator, on random programs full of overwritten streams and words."""

from __future__ import annotations

import numpy as np
import pytest
from chip_programs import TINY, assemble
from cycle_simulator import Generator

from openlpu.target.chip.machine import Machine


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed: int) -> None:
    program = Generator(TINY, seed)
    slices, addresses = np.array(list(program.sim.words)).T
    machine = Machine(TINY)
    machine.load(slices, addresses, np.concatenate(list(program.sim.words.values())))
    program.run(60)
    queues = assemble(program.lines)
    assert sum(map(len, queues.values())) > 500
    machine.run(queues)
    expected = np.concatenate([program.sim.words[int(s), int(a)] for s, a in zip(slices, addresses, strict=True)])
    different = np.flatnonzero((machine.peek(slices, addresses) != expected).any(axis=1))
    assert not len(different), f"words {[(slices[i], addresses[i]) for i in different[:9]]}"
