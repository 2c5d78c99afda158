"""Rows for values inside a token: what one segment had, the next one has too."""

from __future__ import annotations

from dataclasses import replace

from openlpu.arch.chip import load_chip
from openlpu.place.sram import Sram
from openlpu.schedule.temporaries import Temporaries


def test_a_segment_has_the_rows_that_the_one_before_filled() -> None:
    chip = replace(load_chip("tiny"), words_per_slice=64)
    sram, taken = Sram(chip, ()), []
    for _ in range(2):
        sram.clear()
        rows, mine = Temporaries(sram), []
        while rows.possible(0):
            mine.append(rows.take(0, 0)[0])
        taken.append(mine)
    assert taken[0] == taken[1] and len(taken[0]) == chip.words_per_slice
