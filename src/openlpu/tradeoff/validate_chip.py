"""The first LPU in; rows of what was published of one chip out: from its data, its encoding, and programs for it."""

from __future__ import annotations

from openlpu.arch.chip import Chip, load_chip
from openlpu.arch.encoding import NOP_MAX
from openlpu.tradeoff.validate import Kind, Row
from openlpu.tradeoff.validate_programs import dense_watts, install_cycles, weight_rate

STAGGER = "a cycle is that of superlane 0; whether the published 40 are is not said, see next row"
VXM = "not counted: operations of the VXM, which the sheet seems to add"
TILES = 40  # of each plane, to measure a rate


def macs(chip: Chip) -> int:
    """int8 products that all MXM planes add up in a cycle."""
    return 2 * chip.mxm_planes_per_hemisphere * chip.lanes**2


def half_macs(chip: Chip) -> int:
    """The same of fp16: two planes in tandem sum 160 products, two bytes each, where each alone would sum 320."""
    return macs(chip) // 4


def sram_bytes(chip: Chip) -> int:
    """SRAM of a chip."""
    return chip.slices * chip.words_per_slice * chip.lanes


def rows() -> list[Row]:
    """C1 to C6, and the power C17."""
    return [*_rates(), *_queues(), *_scheduled(), *_power()]


def _rates() -> list[Row]:
    """Peaks: geometry times clock."""
    chip = load_chip("lpu-v1")
    return [
        Row("C1", "peak, int8", "4 planes of 320 × 320, 1 GHz", 820, 820, "TOPS", "T §VII",
            lambda: 2 * macs(chip) * 1e9 / 1e12, Kind.EXACT),
        Row("C1.2", "peak, int8", "spec sheet, 900 MHz", 750, 750, "TOPS", "B",
            lambda: 2 * macs(chip) * chip.clock_hz / 1e12, Kind.PREDICTED,
            missing=VXM),
        Row("C1.3", "peak, fp16", "spec sheet, 900 MHz; planes in pairs, two passes", 188, 188, "TFLOPS", "B",
            lambda: 2 * half_macs(chip) * chip.clock_hz / 1e12, Kind.PREDICTED, missing=VXM),
        Row("C2", "stream bandwidth", "2 directions × 32 streams", 20_480, 20_480, "B/cycle", "T Eq 1",
            lambda: 2 * chip.streams_per_direction * chip.lanes, Kind.EXACT),
        Row("C2.2", "SRAM bandwidth", "88 slices × 2 banks", 56_320, 56_320, "B/cycle", "T Eq 2",
            lambda: sram_rate(chip), Kind.EXACT),
        Row("C2.3", "instruction fetch", "all queues", 2304, 2304, "B/cycle", "T §II-B",
            lambda: len(chip.queues) * chip.lanes_per_superlane, Kind.EXACT),
        Row("G1", "SRAM", "one chip", 220, 220, "MiB", "T §II-B", lambda: sram_bytes(chip) / 2**20, Kind.EXACT),
        Row("G2", "vector ALUs", "one chip", 5120, 5120, "", "T §VII",
            lambda: chip.vxm_alus * chip.lanes, Kind.EXACT),
    ]


def sram_rate(chip: Chip) -> int:
    """Bytes a cycle through all ports of the SRAM: a read and a write of each slice, in different banks."""
    return chip.slices * min(chip.banks, chip.mem_issue) * chip.lanes


def peak_weight_rate(chip: Chip) -> int:
    """Bytes of weights a cycle into the MXMs of both hemispheres: by streams, or by what the planes take."""
    return 2 * chip.lanes * min(chip.streams_per_direction, chip.mxm_planes_per_hemisphere * chip.weight_streams)


def _queues() -> list[Row]:
    """Instruction control: chip data and encoding."""
    chip = load_chip("lpu-v1")
    return [
        Row("C4", "barrier", "Notify to Sync retired", 35, 35, "cycles", "T §III-A2",
            lambda: chip.barrier_cycles, Kind.EXACT),
        Row("G3", "instruction queues", "one chip", 144, 144, "", "T §II", lambda: len(chip.queues), Kind.EXACT),
        Row("C5", "longest NOP", "16-bit count", 65_535, 65_535, "cycles", "T §III-A1",
            lambda: min(NOP_MAX, chip.nop_max), Kind.EXACT),
        Row("C6", "instruction fetch", "one Ifetch, two vectors", 640, 640, "B", "T §III-A3",
            lambda: chip.ifetch_bytes, Kind.EXACT),
    ]


def _scheduled() -> list[Row]:
    """Programs of the scheduler, accepted by the referee."""
    chip = load_chip("lpu-v1")
    return [
        Row("C3", "install all weights, SRAM and transit included", "409,600 int8 weights, as scheduled", None, 40,
            "cycles", "T §II, §III-D, §V-b", lambda: install_cycles(chip), Kind.CALIBRATED, ("latency.install",),
            missing=STAGGER),
        Row("C3.2", "the same, until the last superlane has them", "with the stagger of 20 superlanes", None, 40,
            "cycles", "T §II, §III-D, §V-b", lambda: install_cycles(chip) + chip.superlanes - 1, Kind.PREDICTED),
        Row("L8", "weights into the MXMs, peak", "576 chips, all streams outward", 10_616, 10_616, "TB/s", "SHIP",
            lambda: 576 * peak_weight_rate(chip) * chip.clock_hz / 1e12, Kind.EXACT),
        Row("L8.2", "the same, sustained", f"{TILES} tiles on each plane, as scheduled", 10_616, 10_616, "TB/s", "SHIP",
            lambda: 576 * weight_rate(chip, TILES) * chip.clock_hz / 1e12, Kind.PREDICTED,
            missing="an install takes the place of a load; the published figure is the peak"),
    ]


def _power() -> list[Row]:
    """Energy by instruction at the nominal clock."""
    chip = load_chip("lpu-v1")
    return [
        Row("C17", "power, average to design", "all planes, ALUs and streams busy", 185, 215, "W", "B",
            lambda: dense_watts(chip), Kind.CALIBRATED, ("energy.static_mw_per_mib", "energy.stream_hop"),
            missing="not said: what work the published figures were measured on"),
        Row("C17.2", "power, at most", "the same, and all SRAM ports and links", None, 300, "W", "B",
            lambda: dense_watts(chip, everything=True), Kind.PREDICTED),
    ]
