"""Published results of matrix products and of networks that are chains of them in; rows measured on programs out.

Every program is scheduled and the referee has accepted it.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

from openlpu.arch.chip import load_chip
from openlpu.place.product import Product
from openlpu.schedule.product import ProductProgram, compile_product
from openlpu.target.chip.machine import resolve
from openlpu.tradeoff.validate import Kind, Row

CHIP = "lpu-v1"
NARROW, WIDE = 1376, 3500  # N of the published products
BATCH = "products one after the other; not modelled: requantising, pooling and making windows beside them"
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # bottlenecks of each stage of a ResNet
Shapes = Counter[tuple[int, int, int]]


def rows() -> list[Row]:
    """C11, C7 and C9."""
    fp16 = "[2304 × 4096] × [4096 × N], fp16"
    return [
        Row("C11", "utilisation of a matrix product", f"{fp16}, N = 1376", 80, None, "%", "S §5.2",
            lambda: percent(NARROW), Kind.PREDICTED, long=True),
        Row("C11.2", "the lowest at any N", f"{fp16}, N = 1376 to 3500", 80, None, "%", "S §5.2",
            lowest, Kind.PREDICTED, long=True),
        Row("C11.3", "the same in int8", "[2304 × 4096] × [4096 × 1376]", 80, None, "%", "S §5.2",
            lambda: percent(NARROW, "int8"), Kind.PREDICTED, missing="the paper does not say which of both it was",
            long=True),
        Row("C7", "ResNet-50, an image", "int8, batch 1, 224²", 43, 49, "µs", "T abstract, §V",
            lambda: microseconds(resnet(50)), Kind.PREDICTED, missing=f"{BATCH}; the clock of the run is not said"),
        Row("C9", "ResNet-101, each of 17 more blocks", "int8, 14², as projected", 1107, 1107, "cycles", "T §IV-F",
            lambda: cycles(resnet(101) - resnet(50)) / 17, Kind.PREDICTED, missing=BATCH),
        Row("C9.2", "ResNet-152, each of 34 more blocks", "int8, 28² and 14², as projected", 1176, 1176, "cycles",
            "T §IV-F", lambda: cycles(resnet(152) - resnet(50)) / 34, Kind.PREDICTED, missing=BATCH),
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


def cycles(shapes: Shapes) -> int:
    """Of int8 products one after the other."""
    return sum(_cycles(*shape) * count for shape, count in shapes.items())


@cache
def _cycles(m: int, k: int, n: int) -> int:
    return accepted(m, k, n, "int8").cycles


def microseconds(shapes: Shapes) -> float:
    """The same in time."""
    return cycles(shapes) / load_chip(CHIP).clock_hz * 1e6
