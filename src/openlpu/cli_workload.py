"""``openlpu compile --workload``: a plain matrix product as a program for chips, and what is printed of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from openlpu._base import units
from openlpu._base.errors import BadRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from openlpu.arch.chip import Chip
    from openlpu.arch.system import System
    from openlpu.place.product import Product
    from openlpu.schedule.product import ProductProgram
    from openlpu.schedule.product_group import Share

SMALL = 1 << 27  # products that are also run on values
# Options of `compile` that say something of a model, and what they are when nobody gives them.
OF_MODELS = {"model": None, "output": None, "target": None, "tensor": None, "stages": None, "exchange": None,
             "aim": None, "latency_limit": None, "context": None, "kv_bits": None, "bits": None, "prune": None,
             "shapes_only": False, "dump": None, "chunk": (), "requests": None}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to compile instead of a model."""
    parser.add_argument("--workload", metavar="matmul:MxKxN[:FORM]", help="instead of MODEL, [M, K] times [K, N] in "
                        "int8 or fp16 (default): report its program, checked by the chip model, on values if small")


def compile_workload(args: argparse.Namespace) -> int:
    """Schedule the product, have the referee check it, print what it takes."""
    from openlpu.arch.chip import load_chip
    from openlpu.arch.system import load_system
    from openlpu.place.product import Product
    from openlpu.schedule.product import compile_product
    from openlpu.schedule.product_group import spread

    for name, default in OF_MODELS.items():
        if getattr(args, name) != default:
            raise BadRequest("this is for models", where=name.replace("_", "-"), fix="leave it out, or --workload")
    product = Product.parse(args.workload)
    if args.system is not None:
        if args.chip is not None:
            raise BadRequest("the system's file names its chip", where="chip", fix="leave one of both out")
        system = load_system(args.system, args.chips)
        ways = spread(product, system)
        assert ways[0].program, "the first way has a program"
        result = _report(ways[0].program, product, system.chips) | {"system": system.name, "ways": [_choice(way)
                 for way in ways], "checked": _check_way(ways[0], system)}
    else:
        if args.chips is not None:
            raise BadRequest("this is for several chips", where="chips", fix="add --system NAME")
        program = compile_product(product, load_chip("lpu-v1" if args.chip is None else args.chip))
        result = _report(program, product, 1) | {"ways": [], "checked": check(program)}
    print(json.dumps(result) if args.json else "\n".join(_summary(result)))
    return 0


def _choice(way: Share) -> dict[str, Any]:
    cycles = way.program.cycles if way.program else 0
    return {"columns": way.columns, "sections": way.sections, "cycles": cycles, "why": way.why}


def _check_way(way: Share, system: System) -> str:
    """:func:`check` of one of several chips; of a group, of all its chips."""
    from openlpu.target.chip import product
    from openlpu.target.chip.machine import resolve

    assert way.program, "there is a program"
    group = way.group
    if group is None:
        return check(way.program)
    links = product.wiring(system, group)
    resolve(system.chip, way.program.queues, way.program.claims, links)
    return _same(group.product, lambda a, w: product.run_group(group, links, a, w), system.chip, way.sections)


def check(program: ProductProgram) -> str:
    """Run the referee: on values where the product is small, else without.

    Raises :class:`~openlpu._base.errors.ProgramError` where it refuses the program or its values are not those of the
    definition.
    """
    from openlpu.target.chip import product
    from openlpu.target.chip.machine import resolve

    resolve(program.tiling.chip, program.queues, program.claims)
    return _same(program.tiling.product, lambda a, w: product.run(program, a, w), program.tiling.chip, 1)


def _same(p: Product, run: Callable[[NDArray, NDArray], NDArray], chip: Chip, sections: int) -> str:
    """Compare a run on values, of a small product, with the definition; what was checked."""
    from openlpu._base.errors import ProgramError
    from openlpu.arch.truepoint import half
    from openlpu.arch.truepoint.draw import integers, normal

    if p.macs > SMALL:
        return "rules"
    if p.form == "int8":
        a, w = (integers(name, shape, -128, 127) for name, shape in (("a", (p.m, p.k)), ("w", (p.k, p.n))))
        made, wanted = run(a.astype("int8"), w.astype("int8")), a @ w
    else:
        a, w = (normal(name, shape).astype("float16") for name, shape in (("a", (p.m, p.k)), ("w", (p.k, p.n))))
        made, wanted = run(a, w), half.product(a, w, p.chunk(chip), sections)
    if (made != wanted).any():
        raise ProgramError("the chip makes other numbers than the definition", where=str(p))
    return "rules and values"


def _report(program: ProductProgram, p: Product, chips: int) -> dict[str, Any]:
    """Plain data for ``--json``."""
    from openlpu.arch.encoding import instruction_bytes

    t, chip = program.tiling, program.tiling.chip
    seconds, peak = program.cycles / chip.clock_hz, 2 * chips * p.peak(chip) * chip.clock_hz / 1e12
    tops = 2 * p.macs / seconds / 1e12
    return {
        "workload": str(p), "chip": chip.name, "chips": chips, "clock": "cycles", "clock_hz": chip.clock_hz,
        "cycles": program.cycles, "microseconds": seconds * 1e6, "tops": tops, "peak_tops": peak,
        "utilisation": tops / peak, "split": t.split, "engines": len(t.engines), "chunk": p.chunk(chip),
        "parts": program.parts(), "sram": dict(program.homing.homes.sram.used),
        "sram_rows": chip.slices * chip.words_per_slice,
        "instructions": sum(len(q) for q in program.queues.values()),
        "instruction_bytes": instruction_bytes(program.queues),
    }


def _summary(result: dict[str, Any]) -> Iterator[str]:
    used = sum(result["sram"].values())
    many = f"{result['chips']} x " if result["chips"] > 1 else ""
    yield (f"{result['workload']} on {many}{result['chip']}: {units.cycles(result['cycles'])}, "
           f"{result['microseconds']:,.2f} µs at {result['clock_hz'] / 1e6:,.0f} MHz, {result['tops']:.4g} of "
           f"{result['peak_tops']:.4g} TOPS: {result['utilisation']:.1%}")
    yield (f"{result['engines']} planes or pairs of them share the {result['split']}; {used / result['sram_rows']:.1%} "
           f"of SRAM; {result['instructions']:,} instructions in {units.size(result['instruction_bytes'])}")
    for i, way in enumerate(result["ways"]):
        cost = way["why"] or units.cycles(way["cycles"])
        yield (f"{'* '[i > 0]} {way['columns']:>5} share{'s'[: way['columns'] != 1]} of the columns, "
               f"{units.count(way['sections'], 'section')} of k: {cost}")
    width = max(map(len, result["parts"]))
    for name, cycles in result["parts"].items():
        yield f"    {name:<{width}} {cycles:>11,} cycles {cycles / result['cycles']:7.2%}"
    yield f"bound by: {max(result['parts'], key=result['parts'].__getitem__)}"
    yield f"the referee accepts it: {result['checked']}"
