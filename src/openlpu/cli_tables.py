"""What the reports of one chip and of several have in common: room, energy and shares as data and as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from openlpu._base import units

if TYPE_CHECKING:
    from openlpu.schedule.joules import Energy
    from openlpu.schedule.program import Program
    from openlpu.schedule.report import Report


def rooms(program: Program) -> dict[str, int]:
    """Rows of SRAM by what they hold, the most first."""
    room: dict[str, int] = {}
    for item in program.resident:
        kind = item.name.split(".")[0]
        room[kind] = room.get(kind, 0) + item.slices.size
    return dict(sorted(room.items(), key=lambda item: -item[1]))


def sram(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of :func:`rooms`."""
    yield "SRAM, rows of one vector:"
    for kind, rows in result["sram"].items():
        yield f"  {kind:<14} {rows:>9,}  {rows / result['sram_rows']:7.2%}"


def joules(spent: Energy) -> dict[str, Any]:
    """The energy of a token in femtojoules, and the mean power of a chip; one request alone, and the pipeline full."""
    return {
        "process": spent.process, "femtojoules": spent.alone, "femtojoules_full": spent.full,
        "static": spent.static_alone, "static_full": spent.static_full, "dynamic": spent.dynamic,
        "watts": spent.watts_alone, "watts_full": spent.watts_full,
    }


def energy(spent: Mapping[str, Any], unit: str) -> Iterator[str]:
    """The lines of :func:`joules`; ``unit``: what was run, a token say."""
    columns = {"alone": "for one request alone", "full": "with the pipeline full"}  # how a token runs
    totals = {"alone": spent["femtojoules"], "full": spent["femtojoules_full"]}
    static = {"alone": spent["static"], "full": spent["static_full"]}
    watts = {"alone": spent["watts"], "full": spent["watts_full"]}
    sums = [f"{units.joules(totals[how])} per {unit} and {watts[how]:.0f} W a chip {words}"
            for how, words in columns.items()]
    yield f"  energy, constants of {spent['process']}: {', '.join(sums)}"
    if totals["alone"] == totals["full"]:
        del columns["full"]
    dynamic = sorted(spent["dynamic"].items(), key=lambda item: -item[1])
    for name, parts in (("static", static), *((name, {how: part for how in columns}) for name, part in dynamic)):
        cells = (f"{units.joules(parts[how]):>9} {parts[how] / totals[how]:8.2%}" for how in columns)
        yield f"    {name:<24} {'   '.join(cells)}"


def account(use: Report, spent: Energy) -> dict[str, Any]:
    """Where cycles and joules of one chip go."""
    return {
        "busy": {unit: {"dispatches": count, "share": share} for unit, (count, share) in use.busy.items() if count},
        "path": use.path, "operators": use.operators, "energy": joules(spent),
    }


def accounted(of: Mapping[str, Any], unit: str) -> Iterator[str]:
    """The lines of :func:`account`; ``unit`` as of :func:`energy`."""
    yield "  units in use:"
    for name, use in of["busy"].items():
        yield f"    {name:<16} {use['dispatches']:>9,} dispatches {use['share']:7.2%} of its slots"
    yield "  critical path by what happens:"
    yield from shares(of["path"], of["cycles"])
    yield "  critical path by operator, over all layers:"
    yield from shares(over_layers(of["operators"]), of["cycles"])
    yield from energy(of["energy"], unit)


def shares(parts: Mapping[str, int], total: int) -> Iterator[str]:
    """Cycles by name, the most first; they add up to the total."""
    assert sum(parts.values()) == total, "every cycle has one name"
    for name, cycles in sorted(parts.items(), key=lambda item: -item[1]):
        yield f"    {name:<24} {cycles:>9,} cycles {cycles / total:7.2%}"


def over_layers(operators: Mapping[str, int]) -> dict[str, int]:
    """Cycles by operator, those of all layers together."""
    out: dict[str, int] = {}
    for name, cycles in operators.items():
        parts = name.split(".")
        short = ".".join(parts[2:]) if parts[0] == "layers" else name
        out[short] = out.get(short, 0) + cycles
    return out
