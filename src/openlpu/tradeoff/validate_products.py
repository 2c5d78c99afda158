"""Published results of matrix products and of networks that are chains of them in; rows measured on programs out.

Every program is scheduled and the referee has accepted it.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

from openlpu.arch.chip import load_chip
from openlpu.arch.system import load_system
from openlpu.place.product import Product, apart, engines, place_product, tilings
from openlpu.schedule.product import ProductProgram, compile_product, schedule_product
from openlpu.schedule.product_group import node_ways, schedule_group
from openlpu.target.chip.machine import resolve
from openlpu.target.chip.product import wiring
from openlpu.tradeoff.validate import Kind, Row

CHIP = "lpu-v1"
SECTIONS = {8: 1, 16: 2, 32: 2, 64: 2, 104: 4}  # of k, by chips, of the product that is spread over them
NARROW, WIDE = 1376, 3500  # N of the published products
BATCH = "products one after the other; not modelled: requantising, pooling and making windows beside them"
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # bottlenecks of each stage of a ResNet
Shapes = Counter[tuple[int, int, int]]
# The 1 × 1 layers of ResNet-50's last two stages, and the same with channels that fill their tiles.
POWERS: Shapes = Counter([(196, 1024, 256), (196, 256, 1024), (49, 2048, 512), (49, 512, 2048)])
ALIGNED: Shapes = Counter([(196, 1280, 320), (196, 320, 1280), (49, 2240, 640), (49, 640, 2240)])


def rows() -> list[Row]:
    """C11, C7 to C10, M1 and M3."""
    fp16 = "[2304 × 4096] × [4096 × N], fp16"
    return [
        Row("C11", "utilisation of a matrix product", f"{fp16}, N = 1376", 80, None, "%", "S §5.2",
            lambda: percent(NARROW), Kind.PREDICTED, long=True, share="percent"),
        Row("C11.2", "the lowest at any N", f"{fp16}, N = 1376 to 3500", 80, None, "%", "S §5.2",
            lowest, Kind.PREDICTED, long=True, share="percent"),
        Row("C11.3", "the same in int8", "[2304 × 4096] × [4096 × 1376]", 80, None, "%", "S §5.2",
            lambda: percent(NARROW, "int8"), Kind.PREDICTED, missing="the paper does not say which of both it was",
            long=True),
        Row("C7", "ResNet-50, an image", "int8, batch 1, 224²", 43, 49, "µs", "T abstract, §V",
            lambda: microseconds(resnet(50)), Kind.PREDICTED, missing=f"{BATCH}; the clock of the run is not said"),
        Row("C9", "ResNet-101, each of 17 more blocks", "int8, 14², as projected", 1107, 1107, "cycles", "T §IV-F",
            lambda: cycles(resnet(101) - resnet(50)) / 17, Kind.PREDICTED, missing=BATCH),
        Row("C9.2", "ResNet-152, each of 34 more blocks", "int8, 28² and 14², as projected", 1176, 1176, "cycles",
            "T §IV-F", lambda: cycles(resnet(152) - resnet(50)) / 34, Kind.PREDICTED, missing=BATCH),
        Row("C8", "ResNet-50, cycles less by overlap", "int8, loads beside the activations before or behind", 5500,
            5500, "cycles", "T §IV-C", lambda: cycles(resnet(50), overlap=False) - cycles(resnet(50)), Kind.PREDICTED,
            missing="published: banks, memory and layers that overlap; ours: loads of weights, banks play no part",
            long=True),
        Row("C10", "latency, channels in 320s by powers of two", "1 × 1 layers, 14² and 7²: 320, 640, 1280, 2240", 1,
            1, "times", "T §IV-E", lambda: cycles(ALIGNED) / cycles(POWERS), Kind.PREDICTED,
            missing="published: the same; which layers were widened is not said; 3 × 3 windows take 9 tiles, not 8"),
        *_spread(), *_input(),
    ]


def _spread() -> list[Row]:
    """M1: what was published is a curve; its floor is the products at the peak of all chips."""
    floors = {8: 290, 16: 145, 32: 72, 64: 36, 104: 22.3}  # µs by chips
    missing = "published as a curve, so the bound is the peak's; a chip's columns do not fill tiles of 320"
    return [
        Row(f"M1.{i}" if i > 1 else "M1", "product over several chips",
            f"[800 × 32576] × [32576 × 8192], fp16, {chips} chips, {SECTIONS[chips]} sections of k", floor, None, "µs",
            "S §5.2", lambda chips=chips: spread_microseconds(chips), Kind.PREDICTED, missing=missing, long=True)
        for i, (chips, floor) in enumerate(floors.items(), 1)
    ]


def _input() -> list[Row]:
    """M3: input that keeps a chip busy, by which operand stays while the other passes."""
    chip = load_chip(CHIP)
    pairs = len(engines("fp16", chip))
    tile = chip.lanes**2  # bytes
    return [
        Row("M3", "input to stay busy, a vector to every tile", "[100000 × 100000], fp16, column-major", 570, 570,
            "GB/s", "S §5.2", lambda: pairs * chip.lanes * chip.clock_hz / 1e9, Kind.PREDICTED),
        Row("M3.2", "the same, a tile to every 100,000 rows", "[100000 × 100000], fp16, row-major", 3.7, 3.7,
            "GB/s", "S §5.2", lambda: pairs * tile * chip.clock_hz / 100_000 / 1e9, Kind.PREDICTED,
            missing="half of it: the published figure fits tiles of twice the bytes, one to each of four planes"),
    ]


def accepted(m: int, k: int, n: int, form: str) -> ProductProgram:
    """The program of a product, and the referee has nothing against it."""
    chip = load_chip(CHIP)
    program = compile_product(Product(m, k, n, form), chip)
    resolve(chip, program.queues, program.claims)
    return program


@cache
def percent(n: int, form: str = "fp16") -> float:
    """Utilisation of the published product with ``n`` columns."""
    return 100 * accepted(2304, 4096, n, form).utilisation


def spread_microseconds(chips: int) -> float:
    """Of the published product over nodes of chips: :data:`SECTIONS` of k, and as many shares of the columns as that
    leaves."""
    sections = SECTIONS[chips]
    columns = -(-8192 * sections // chips)
    if sections == 1:
        program = accepted(800, 32576, columns, "fp16")
    else:
        system = load_system("node")
        ways = node_ways(system, sections)
        group = schedule_group(Product(800, 32576, columns, "fp16"), system.chip, sections, ways)
        program = group.program
        resolve(system.chip, program.queues, program.claims, wiring(system, group))
    return 1e6 * program.cycles / program.tiling.chip.clock_hz


def lowest() -> float:
    """Over all published N: with a number of tiles the fewest columns use the least."""
    lanes = load_chip(CHIP).lanes
    return min(percent(max(NARROW, lanes * tiles + 1)) for tiles in range(NARROW // lanes, -(-WIDE // lanes)))


def resnet(depth: int) -> Shapes:
    """The matrix products (m, k, n) of an image, and how many there are of each."""
    out: Shapes = Counter({(112 * 112, 7 * 7 * 3, 64): 1, (1, 2048, 1000): 1})
    wide = 64
    for stage, count in enumerate(BLOCKS[depth]):
        side, narrow = 56 >> stage, 64 << stage
        before = side << (stage > 0)  # the first block halves the sides, in its middle
        for block in range(count):
            out[(before if block == 0 else side) ** 2, wide, narrow] += 1
            out[side**2, 9 * narrow, narrow] += 1
            out[side**2, narrow, 4 * narrow] += 1
            if block == 0:
                out[side**2, wide, 4 * narrow] += 1
            wide = 4 * narrow
    return out


def cycles(shapes: Shapes, overlap: bool = True) -> int:
    """Of int8 products one after the other; without ``overlap`` a tile is loaded when the one before is done."""
    return sum(_cycles(*shape, overlap) * count for shape, count in shapes.items())


@cache
def _cycles(m: int, k: int, n: int, overlap: bool = True) -> int:
    if overlap:
        return accepted(m, k, n, "int8").cycles
    chip = load_chip(CHIP)
    program = schedule_product(place_product(apart(tilings(Product(m, k, n, "int8"), chip)[0])))
    resolve(chip, program.queues, program.claims)
    return program.cycles


def microseconds(shapes: Shapes) -> float:
    """The same in time."""
    return cycles(shapes) / load_chip(CHIP).clock_hz * 1e6
