"""``openlpu compile --workload``: a plain matrix product as a program for chips, and what is printed of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from openlpu._base import units
from openlpu._base.errors import BadRequest

if TYPE_CHECKING:
    from openlpu.schedule.product import ProductProgram

SMALL = 1 << 27  # products that are also run on values
# Options of `compile` that say something of a model, and what they are when nobody gives them.
OF_MODELS = {"model": None, "output": None, "target": "chip", "tensor": None, "stages": None, "exchange": None,
             "aim": None, "context": None, "kv_bits": 8, "bits": None, "prune": None, "shapes_only": False,
             "dump": None, "system": None, "chips": None}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to compile instead of a model."""
    parser.add_argument("--workload", metavar="matmul:MxKxN[:FORM]", help="instead of MODEL, [M, K] times [K, N] in "
                        "int8 or fp16 (default): report its program, checked by the chip model, on values if small")


def compile_workload(args: argparse.Namespace) -> int:
    """Schedule the product, have the referee check it, print what it takes."""
    from openlpu.arch.chip import load_chip
    from openlpu.place.product import Product
    from openlpu.schedule.product import compile_product

    for name, default in OF_MODELS.items():
        if getattr(args, name) != default:
            raise BadRequest("this is for models", where=name, fix="leave it out, or --workload")
    program = compile_product(Product.parse(args.workload), load_chip(args.chip or "lpu-v1"))
    result = _report(program) | {"checked": check(program)}
    print(json.dumps(result) if args.json else "\n".join(_summary(result)))
    return 0


def check(program: ProductProgram) -> str:
    """Run the referee: on values where the product is small, else without.

    Raises :class:`~openlpu._base.errors.ProgramError` where it refuses the program or its values are not those of the
    definition.
    """
    from openlpu._base.errors import ProgramError
    from openlpu.arch.truepoint import half
    from openlpu.arch.truepoint.draw import integers, normal
    from openlpu.target.chip import product
    from openlpu.target.chip.machine import resolve

    p, chip = program.tiling.product, program.tiling.chip
    if p.macs > SMALL:
        resolve(chip, program.queues, program.claims)
        return "rules"
    if p.form == "int8":
        a, w = (integers(name, shape, -128, 127) for name, shape in (("a", (p.m, p.k)), ("w", (p.k, p.n))))
        made, wanted = product.run(program, a.astype("int8"), w.astype("int8")), a @ w
    else:
        a, w = (normal(name, shape).astype("float16") for name, shape in (("a", (p.m, p.k)), ("w", (p.k, p.n))))
        made, wanted = product.run(program, a, w), half.product(a, w, p.chunk(chip))
    if (made != wanted).any():
        raise ProgramError("the chip makes other numbers than the definition", where=str(p))
    return "rules and values"


def _report(program: ProductProgram) -> dict[str, Any]:
    """Plain data for ``--json``."""
    from openlpu.arch.encoding import instruction_bytes

    t, chip = program.tiling, program.tiling.chip
    p, seconds = t.product, program.cycles / chip.clock_hz
    return {
        "workload": str(p), "chip": chip.name, "clock": "cycles", "clock_hz": chip.clock_hz, "cycles": program.cycles,
        "microseconds": seconds * 1e6, "tops": 2 * p.macs / seconds / 1e12,
        "peak_tops": 2 * p.peak(chip) * chip.clock_hz / 1e12, "utilisation": program.utilisation, "split": t.split,
        "engines": len(t.engines), "chunk": p.chunk(chip), "parts": program.parts(),
        "sram": dict(program.homing.homes.sram.used), "sram_rows": chip.slices * chip.words_per_slice,
        "instructions": sum(len(q) for q in program.queues.values()),
        "instruction_bytes": instruction_bytes(program.queues),
    }


def _summary(result: dict[str, Any]) -> Iterator[str]:
    used = sum(result["sram"].values())
    yield (f"{result['workload']} on {result['chip']}: {units.cycles(result['cycles'])}, "
           f"{result['microseconds']:,.2f} µs at {result['clock_hz'] / 1e6:,.0f} MHz, {result['tops']:.4g} of "
           f"{result['peak_tops']:.4g} TOPS: {result['utilisation']:.1%}")
    yield (f"{result['engines']} planes or pairs of them share the {result['split']}; {used / result['sram_rows']:.1%} "
           f"of SRAM; {result['instructions']:,} instructions in {units.size(result['instruction_bytes'])}")
    for name, cycles in result["parts"].items():
        yield f"    {name:<36} {cycles:>11,} cycles {cycles / result['cycles']:7.2%}"
    yield f"bound by: {max(result['parts'], key=result['parts'].__getitem__)}"
    yield f"the referee accepts it: {result['checked']}"
