"""What a group of chips keeps from run to run: SRAM contents and which of them were ever written.

A group is held as one wide chip: role r has lanes r * lanes to (r + 1) * lanes of every vector.  Its chips run one
program, so whatever one of them does all do, and only what moves data between lanes sees where one chip ends.
"""

from __future__ import annotations

import numpy as np

from openlpu.arch.chip import Chip


class State:
    """``sram`` uint8 [slices, words, roles * lanes]; ``written`` bool [slices, words, roles * superlanes].

    Memory of words never touched is never claimed from the system.
    """

    def __init__(self, chip: Chip, roles: int = 1) -> None:
        self.roles = roles
        self.sram = np.zeros((chip.slices, chip.words_per_slice, roles * chip.lanes), np.uint8)
        self.written = np.zeros((chip.slices, chip.words_per_slice, roles * chip.superlanes), bool)
