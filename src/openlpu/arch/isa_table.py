"""The instruction table in, its page of documentation out: ``python -m openlpu.arch.isa_table docs/isa.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from openlpu.arch.chip import load_chip
from openlpu.arch.encoding import size
from openlpu.arch.isa import OPCODE_BITS, TABLE, Instruction

UNITS = {
    "icu": "ICU: control, in every queue",
    "mem": "MEM: one queue per slice",
    "vxm": "VXM: one queue per ALU",
    "mxm.weights": "MXM: weights of a plane",
    "mxm.activations": "MXM: activations of a plane",
    "mxm.accumulate": "MXM: accumulators of a plane",
    "sxm.shift": "SXM: shift",
    "sxm.permute": "SXM: permute",
    "sxm.distribute": "SXM: distribute",
    "sxm.rotate": "SXM: rotate",
    "sxm.transpose": "SXM: transpose, two queues",
    "c2c": "C2C: one queue per link",
}


def render() -> str:
    """The page, Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# The instructions"
    yield ""
    yield "Printed by `python -m openlpu.arch.isa_table docs/isa.md` from the table in `arch/isa.py`; do not edit."
    yield f"An instruction word is {OPCODE_BITS} bits of opcode, then the fields in the order given, least significant"
    yield "bit first, in whole bytes. *Latency* names an entry of the chip file's latency table, with its cycles on"
    yield "`lpu-v1`: from dispatch to the result on the unit's stream register."
    for unit, title in UNITS.items():
        yield from ["", f"## {title}", ""]
        rows = [i for i in TABLE if i.unit == unit]
        if len({i.fields for i in rows}) == 1 and len(rows) > 4:
            yield f"All have the fields {_fields(rows[0])}: {size(rows[0])} bytes."
            yield from ["", "| instruction | opcode | latency | meaning |", "|---|---|---|---|"]
            yield from (f"| `{i.name}` | {i.opcode} | {_latency(i)} | {i.text} |" for i in rows)
        else:
            yield "| instruction | opcode | fields : bits | bytes | latency | meaning |"
            yield "|---|---|---|---|---|---|"
            yield from (
                f"| `{i.name}` | {i.opcode} | {_fields(i)} | {size(i)} | {_latency(i)} | {i.text} |" for i in rows
            )


def _fields(instruction: Instruction) -> str:
    return " ".join(f"`{f.name}:{f.bits}`" for f in instruction.fields) or "–"


def _latency(instruction: Instruction) -> str:
    name = instruction.latency
    return f"{name} {load_chip('lpu-v1').latency[name]}" if name else "–"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), "utf-8")
