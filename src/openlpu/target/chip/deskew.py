"""Instructions and stream operands in; an error out where a value would be under way while the clocks are set right.

``runtime_deskew`` makes the chip wait for `delay` cycles, a few more or fewer on each chip.  Columns count `delay`.
What the chip holds then stays: SRAM, weights, sums.  What moves would come at another time than the columns say: so
nothing may be dispatched meanwhile, nothing be unfinished, and no operand taken afterwards come from before.
"""

from __future__ import annotations

from openlpu.target.chip.code import Code, Ints


def check(code: Code) -> None:
    """The chip is idle while it waits; ``deskew`` and ``transmit`` stand in front of cycle 0."""
    code.refuse(code.rows("deskew", "transmit"), "belongs to the start of all chips, in front of cycle 0")
    done = code.cycle + code.latency
    for row in code.rows("runtime_deskew"):
        start, end = code.cycle[row], code.cycle[row] + code.field["delay"][row]
        inside = (code.cycle >= start) & (code.cycle < end)
        inside[row] = False
        code.refuse(inside.nonzero()[0], f"is dispatched while the chip waits from cycle {start} to {end - 1}")
        open_ = (code.cycle < start) & (done > start)
        code.refuse(open_.nonzero()[0], f"is not done in cycle {start}, when the chip waits to set its clock")


def crossing(code: Code, taken: Ints, posted: Ints) -> None:
    """Operand i, a stream, is taken by ``taken[i]`` and was posted by ``posted[i]``: both on one side of each wait."""
    for row in code.rows("runtime_deskew"):
        start = code.cycle[row]
        code.refuse(
            taken[(code.cycle[posted] < start) & (code.cycle[taken] > start)],
            f"its operand is on a stream in cycle {start}, when the chip waits to set its clock",
        )
