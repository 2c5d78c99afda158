"""A known shape in, the seconds that each step of quantising takes out: weights are drawn, everything else is real.

``python tests/numerics/quantizing_time.py llama-3.2-1b --layers 1 2`` runs models of one and of two layers and says
what the whole shape would take.  Without ``--layers`` all of it is done.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from openlpu.checkpoint.config import ModelConfig
from openlpu.compile import runners
from openlpu.graph import decoder
from openlpu.graph.models import ARCHITECTURES
from openlpu.graph.shapes import shape
from openlpu.numerics.integer import integer
from openlpu.numerics.scheme import Scheme

CONTEXT = 512


class Drawn(Mapping[str, np.ndarray]):
    """Normal weights, gains of 1."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        rng = np.random.default_rng(0)
        self.shapes = shapes
        self.arrays = {name: _drawn(rng, name, size) for name, size in shapes.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _drawn(rng: np.random.Generator, name: str, size: tuple[int, ...]) -> np.ndarray:
    if len(size) == 1:
        return np.full(size, 0 if name.endswith("bias") else 1, np.float32)
    return rng.standard_normal(size, np.float32) / np.float32(size[1] ** 0.5)


def seconds(config: ModelConfig, scheme: Scheme) -> dict[str, tuple[float, float]]:
    """Wall and processor seconds by step."""
    variant = ARCHITECTURES.get(config.architecture)(config)
    graph = decoder.build(config, Drawn(decoder.shapes(config, variant)), variant)
    marks = [("order", time.perf_counter(), time.process_time())]

    def progress(name: str, at: int, total: int) -> None:
        if name != marks[-1][0]:
            marks.append((name, time.perf_counter(), time.process_time()))

    integer(graph, scheme, runners(), progress)
    marks.append(("", time.perf_counter(), time.process_time()))
    return {a[0]: (b[1] - a[1], b[2] - a[2]) for a, b in zip(marks, marks[1:], strict=False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("--bits", type=float, default=4.5)
    parser.add_argument("--layers", type=int, nargs=2, metavar=("FEW", "MORE"))
    args = parser.parse_args()
    config, scheme = shape(args.shape, CONTEXT), Scheme(weight_bits=args.bits)
    few, more = args.layers or (config.layers, config.layers)
    found = {count: seconds(replace(config, layers=count), scheme) for count in sorted({few, more})}
    print(f"{args.shape} at {args.bits:g} bits, {config.layers} layers\n{'wall':>9} {'processor':>9}  step")
    sums = [0.0, 0.0]
    for step in found[few]:
        each = []
        for kind in (0, 1):
            slope = (found[more][step][kind] - found[few][step][kind]) / max(1, more - few)
            each.append(found[few][step][kind] + slope * (config.layers - few))
            sums[kind] += each[-1]
        print(f"{each[0]:8.1f}s {each[1]:8.1f}s  {step}")
    print(f"{sums[0]:8.1f}s {sums[1]:8.1f}s  all")


if __name__ == "__main__":
    main()
