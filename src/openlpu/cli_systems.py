"""``openlpu systems``: the systems of chips there are, or one of them in detail, as text or JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from openlpu._base import units
from openlpu._base.errors import BadRequest

if TYPE_CHECKING:
    from openlpu.arch.system import System


ABOUT = (
    "`openlpu systems NAME` describes one and names its file, which has the source of each number, or why it was",
    "chosen; a copy of it with other numbers is a system of your own: `--system FILE.toml`.  lpx is of the third",
    "generation; of the second nothing is published that a file needs.",
)


def add_commands(commands: Any) -> None:
    """Add systems to a parser's commands."""
    one = commands.add_parser("systems", help="systems of chips: sizes, links, distances")
    one.set_defaults(command=systems)
    one.add_argument("system", metavar="NAME", nargs="?", help="a system's name or a .toml file (default: list all)")
    one.add_argument("--chips", type=int, metavar="N", help="the system built with so many chips")
    one.add_argument("--json", action="store_true", help="print one JSON object")


def systems(args: argparse.Namespace) -> int:
    """List all systems, or describe one."""
    from openlpu.arch.system import load_system
    from openlpu.arch.system_file import system_file, system_names

    if args.system is None and args.chips is not None:
        raise BadRequest("of which system?", where="--chips", fix="name one: openlpu systems rack --chips 576")
    if args.system is not None:
        found = describe(load_system(args.system, args.chips))
        about = f"file         {system_file(args.system)}: the source of each number, or why it was chosen"
        print(json.dumps(found) if args.json else "\n".join([*_details(found), about]))
        return 0
    every = [describe(load_system(name)) for name in system_names()]
    print(json.dumps({"systems": every}) if args.json else "\n".join([*_table(every), "", *ABOUT]))
    return 0


def describe(system: System) -> dict[str, Any]:
    """What there is to say of a system, as JSON; cycles are of its chip's clock, bandwidths bytes per second."""
    from openlpu.arch import published, routes

    spec, shape = system.spec, system.spec.shape
    return {
        "name": spec.name, "chip": spec.chip.name, "clock_hz": spec.chip.clock_hz, "topology": shape.kind,
        "chips": system.chips, "chips_built": shape.built, "nodes": shape.nodes * shape.racks, "racks": shape.racks,
        "spare_nodes": shape.spares * shape.racks, "sram_bytes": system.sram_bytes, "epoch_cycles": spec.epoch,
        "ports_wired": int((system.wires.peer >= 0).sum(axis=1).max()),
        "links": [_link(system, level) for level in range(len(system.links))],
        "diameter_hops": published.hops(system), "router_hops": published.router_hops(system),
        "pairs_by_hops": system.wires.hop_counts,
        "bisection_links": sum(routes.bisection(system)),
        "bisection_bytes_per_second": published.bisection_bandwidth(system),
        "worst_cycles": routes.worst_cycles(system), "startup_epochs": published.startup_epochs(system),
    }


def _link(system: System, level: int) -> dict[str, Any]:
    from openlpu.arch import published

    link = system.links[level]
    return {
        "name": link.name, "wires": int((system.wires.level == level).sum()) // 2,
        "bytes_per_second": published.link_bandwidth(system, level), "cycles_per_vector": link.cycles,
        "packet_bytes": link.packet_bytes,
        "latency_cycles": link.latency, "hop_cycles": system.hop(level),
        "measured": {"mean": link.mean, "sigma": link.sigma, "minimum": link.minimum, "maximum": link.maximum},
        "misaligned_cycles": system.misaligned[level], "slack_cycles": system.slack(level),
        "buffer_vectors": link.buffer(system.misaligned[level]),
    }


def _table(every: list[dict[str, Any]]) -> Iterator[str]:
    yield (f"{'system':<11} {'chips':>6}  {'chip':<7} {'SRAM':>8}  {'topology':<10} {'hops':>4}  {'bisection':>10}  "
           "farthest")
    for s in every:
        yield (f"{s['name']:<11} {s['chips']:>6,}  {s['chip']:<7} {units.size(s['sram_bytes']):>8}  "
               f"{s['topology']:<10} {s['diameter_hops']:>4}  {_rate(s['bisection_bytes_per_second']):>10}  "
               f"{units.cycles(s['worst_cycles'])}")


def _details(s: dict[str, Any]) -> Iterator[str]:
    spare = f", {s['chips_built'] - s['chips']} more stand by" if s["chips_built"] > s["chips"] else ""
    yield f"{s['name']}: {units.count(s['chips'], 'chip')} {s['chip']}{spare}; {units.size(s['sram_bytes'])} of SRAM"
    racks = f" in {s['racks']:,} racks" if s["racks"] > 1 else ""
    yield (f"topology     {s['topology']}, {units.count(s['nodes'], 'node')}{racks}; "
           f"{units.count(s['ports_wired'], 'port')} of a chip wired")
    for link in s["links"]:
        seen = link["measured"]
        yield (f"{link['name'] + ' links':<12} {link['wires']:,}, {_rate(link['bytes_per_second'])} each way: a "
               f"vector, {link['packet_bytes']} bytes with its framing, in {link['cycles_per_vector']} cycles")
        yield (f"{'':<12} latency {seen['minimum']} to {seen['maximum']} cycles, scheduled as "
               f"{link['latency_cycles']}")
        yield (f"{'':<12} clocks at most {link['misaligned_cycles']} cycles apart once aligned, and "
               f"{link['slack_cycles']} to drift; {link['buffer_vectors']} vectors wait at most")
    routed = "" if s["router_hops"] == s["diameter_hops"] else f" ({s['router_hops']} with each node as one router)"
    yield (f"distance     {units.count(s['diameter_hops'], 'hop')} at most{routed}; "
           f"{units.cycles(s['worst_cycles'])} for one vector")
    yield f"bisection    {s['bisection_links']:,} links, {_rate(s['bisection_bytes_per_second'])} each way"
    yield (f"start        every chip runs after {units.count(s['startup_epochs'], 'epoch')} of "
           f"{s['epoch_cycles']} cycles")


def _rate(bytes_per_second: float) -> str:
    return f"{units.size(bytes_per_second)}/s"
