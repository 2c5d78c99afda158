"""Published figures that other published figures contradict in; rows with the arithmetic out.

What a row gives as ours is the other side of the contradiction, from the chip's data and the published figures named
in ``why``.
"""

from __future__ import annotations

from openlpu.arch import published
from openlpu.arch.chip import load_chip
from openlpu.arch.system import load_system
from openlpu.tradeoff.validate import Kind, Row
from openlpu.tradeoff.validate_chip import half_macs, sram_bytes, sram_rate

WEIGHTS_7B = 7e9  # bytes, one for each weight
GPU_FLOPS = 2800e12  # of 432 V100, double precision, as the paper gives it
CHIPS, WATTS, TOKENS = 576, 185, 300  # Llama-2-70B as published: chips, average power, tokens/s of one request


def rows() -> list[Row]:
    """Capacity, bandwidth, speed, energy and distance."""
    chip, system = load_chip("lpu-v1"), load_system("scale-out")

    def row(name: str, what: str, configuration: str, low: float | None, high: float, unit: str, source: str,
            ours: float, why: str) -> Row:
        return Row(name, what, configuration, low, high, unit, source, lambda: ours, Kind.WRONG, why=why)

    return [
        row("X1", "chips that hold a 7-billion-parameter model", "230 MB a chip", 1, 1, "chips", "press",
            -(-WEIGHTS_7B // sram_bytes(chip)), "7·10⁹ weights of one byte / 230.7 MB, and nothing else stored"),
        row("X2", "bandwidth of the SRAM", "one chip, 900 MHz", 80, 80, "TB/s", "B",
            sram_rate(chip) * chip.clock_hz / 1e12, "88 slices × 2 ports × 320 B × 900 MHz: every port in every cycle"),
        row("X3", "memory on a chip", "one chip", 400, 400, "GB", "press",
            sram_bytes(chip) / 1e9, "88 slices × 8,192 words × 320 B; a chip has no other memory"),
        row("X4", "matrix product against 432 V100", "300 chips, N = 650,000 (M2)", 100, 100, "times", "S §5.2",
            300 * 2 * half_macs(chip) * chip.clock_hz / GPU_FLOPS,
            "300 chips × 102,400 MAC of fp16 × 2 × 900 MHz / 2,800 TFLOPS of fp64: the peak, in another precision"),
        row("X5", "energy per token, one request alone", "Llama-2-70B, 576 chips", 1, 3, "J", "press",
            CHIPS * WATTS / TOKENS, "576 chips × 185 W / 300 tokens/s; 1–3 J need 118 to 355 requests at once"),
        row("X6", "hops at most, chip by chip", "10,440 chips", 5, 5, "", "S §2.2",
            published.hops(system),
            "node, rack, node, global, node, rack, node; 5 are right where a node counts as one router (N11.4)"),
    ]
