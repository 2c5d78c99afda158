"""What a chip keeps from run to run: SRAM contents and which of them were ever written."""

from __future__ import annotations

import numpy as np

from openlpu.arch.chip import Chip


class State:
    """``sram`` uint8 [slices, words, lanes]; ``written`` bool [slices, words, superlanes].

    Memory of words never touched is never claimed from the system.
    """

    def __init__(self, chip: Chip) -> None:
        self.sram = np.zeros((chip.slices, chip.words_per_slice, chip.lanes), np.uint8)
        self.written = np.zeros((chip.slices, chip.words_per_slice, chip.superlanes), bool)
