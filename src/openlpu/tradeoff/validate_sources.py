"""What the table of published results rests on: where they stand, constants set with them, results not yet compared."""

from __future__ import annotations

from openlpu.arch.chip import load_chip
from openlpu.arch.energy import load_constants
from openlpu.arch.system import load_system
from openlpu.tradeoff.validate import Constant, Open

SOURCES = {
    "T": "Abts et al., Think Fast: A Tensor Streaming Processor for Accelerating Deep Learning Workloads, ISCA 2020",
    "S": "Abts et al., A Software-defined Tensor Streaming Multiprocessor for Large-scale Machine Learning, ISCA 2022",
    "B": "GroqChip Processor specification sheet v1.5, 2022",
    "R": "GroqRack brief v1.0",
    "SHIP": "Bitar et al., SHIP: SRAM-Based Huge Inference Pipelines for Fast LLM Serving, MLSys 2026, through digests",
    "press": "statements that circulate without a primary source",
}

NOT_COMPARED = (
    Open("C10.2", "accuracy of ResNet-50 with layers of 320", "network and training are not published; its time "
         "is row C10"),
    Open("C18", "beside TPUv3 and Goya", "other machines are not modelled; the LPU's side of it is row C7"),
    Open("L9", "388 W provisioned for a chip", "hosts, fans and network included, which are not modelled; the "
         "chip's own power is row C17"),
    Open("N10b", "240 GB/s of a node, 2.5 µs across 320 chips", "of 2020, before the wiring that the later papers "
         "describe"),
    Open("N7", "all-reduce bandwidth by size", "published as a curve only, no number in the text"),
    Open("M2", "products of N × N on 100 to 300 chips", "a curve, no number in the text but X4's; input over PCIe is "
         "not modelled"),
)


def calibrated() -> list[Constant]:
    """The constants that were set with rows of the table."""
    link, energy = load_system("quadfour").links[0], load_constants()
    install = load_chip("lpu-v1").latency["install"]
    return [
        Constant("latency.install", "arch/chips/lpu_v1.toml", install, "cycles", ("C3",)),
        Constant("link.latency", "arch/systems/*.toml", link.latency, "cycles", ("N4",)),
        Constant("link.cycles", "arch/systems/quadfour.toml", link.cycles, "cycles", ("N9",)),
        Constant("energy.static_mw_per_mib", "arch/energy.toml", energy.static_mw_per_mib, "mW/MiB", ("C17",)),
        Constant("energy.stream_hop", "arch/energy.toml", energy.stream_hop, "fJ", ("C17",)),
    ]
