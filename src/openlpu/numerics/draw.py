"""A shape in, an integer graph with random codes out: what a benchmark runs when there is no checkpoint.

The operators are those of a real model of this shape, because they come out of the same decoder and the same
lowering; only the codes are drawn instead of rounded, so no fp32 weight ever exists.  Every matrix is a window of one
random stream of bytes: a model of any depth is drawn in the time, and the memory, of its largest matrix.  Pruned ones
are windows, whole strips apart, of one larger matrix per width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.truepoint import blocks
from openlpu.arch.truepoint.sparse import PAIRS, QUAD, STRIP, TILE
from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.ir import Graph
from openlpu.graph.models import of_tensors, shapes
from openlpu.numerics import prune
from openlpu.numerics.lower import lower, reduced
from openlpu.numerics.scheme import Scheme

STEP = 1009  # bytes between the windows of consecutive matrices; odd, so their rows never line up
CODE_DEVIATION = 73.6  # standard deviation of a uniform code within +-127
BIAS = 0.1  # largest magnitude of a bias
NARROW = 4 + 8 / blocks.BLOCK  # bits of a weight in 4-bit blocks
ZERO = 8  # of every drawn block

I8 = NDArray[np.int8]


def draw(config: ModelConfig, scheme: Scheme | None = None, *, seed: int = 0) -> Graph:
    """An integer graph of this shape under a scheme (None: the default); the same seed draws the same codes."""
    scheme = scheme or Scheme()
    drawing = _Drawing(shapes(config), scheme, seed)
    graph = of_tensors(config, drawing.params)
    drawing.reduced = reduced(graph, scheme)
    return lower(graph, scheme, drawing.code)


class _Drawing:
    """``params`` has the vectors of a float graph (gains of 1, small biases) and the shapes of its matrices."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], scheme: Scheme, seed: int) -> None:
        self.bits, self.scheme = scheme.weight_bits, scheme
        words = np.random.Philox(seed)
        self.rng = np.random.Generator(words)
        self.params = {name: self._param(name, shape) for name, shape in shapes.items()}
        matrices = [array.size for array in self.params.values() if array.ndim == 2]
        self.stream = words.random_raw((max(matrices) + STEP * len(matrices)) // 8 + 1).view(np.int8)
        np.maximum(self.stream, np.int8(-127), out=self.stream)
        self.drawn, self.credit = 0, 0.0
        self.reduced = frozenset[str]()  # weights that the scheme does not leave at 8 bits
        self.wholes: dict[int, I8] = {}  # by columns: pruned codes
        self.rows = {k: max(a.shape[0] for a in self.params.values() if a.shape[1:] == (k,)) for k in
                     {array.shape[1] for array in self.params.values() if array.ndim == 2}}
        self.count = len(matrices)

    @cached_property
    def nibbles(self) -> I8:
        """The stream as codes of 4-bit blocks that all have the same step and zero."""
        return ((self.stream & 15) - np.int8(ZERO)) * np.int8(blocks.MAX_STEP)

    def _param(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 2:  # one zero seen from everywhere: a shape that takes no memory
            return np.broadcast_to(np.float32(0), shape)
        if name.endswith(".bias"):
            return self.rng.uniform(-BIAS, BIAS, shape).astype(np.float32)
        return np.ones(shape, np.float32)

    def code(self, graph: Graph, weight: str, gain: str | None) -> Mapping[str, np.ndarray]:
        """The next window as codes [N, K], with scales [N] that keep a vector's length about the same.

        The drawn gains are 1, so there is none to fold in.  A matrix has 8 bits when the average allows.
        """
        rows, columns = graph.params[weight].shape
        if self.scheme.prune and weight in self.reduced:
            return self._pruned(rows, columns)
        wide = weight not in self.reduced or self.credit + (self.bits - 8) * rows * columns >= 0
        self.credit += (self.bits - (8 if wide else NARROW)) * rows * columns
        start, self.drawn = STEP * self.drawn, self.drawn + 1
        codes = (self.stream if wide else self.nibbles)[start : start + rows * columns].reshape(rows, columns)
        scale = self.rng.uniform(0.7, 1.3, rows) / (CODE_DEVIATION * np.sqrt(columns))
        found = {"codes": codes, "scale": scale.astype(np.float32)}
        if wide:
            return found
        byte = blocks.pair(np.array(blocks.MAX_STEP), np.array(ZERO))
        return found | {"blocks": np.broadcast_to(byte, (rows, blocks.count(columns)))}

    def _pruned(self, rows: int, columns: int) -> Mapping[str, np.ndarray]:
        """A window with the zeros of the scheme."""
        if columns not in self.wholes:
            self.wholes[columns] = self._whole(self.rows[columns] + STRIP * self.count, columns)
        start, self.drawn = STRIP * self.drawn, self.drawn + 1
        codes = self.wholes[columns][start : start + rows]
        spread = CODE_DEVIATION * np.sqrt(columns * np.count_nonzero(codes) / codes.size)
        return {"codes": codes, "scale": (self.rng.uniform(0.7, 1.3, rows) / spread).astype(np.float32)}

    def _whole(self, rows: int, columns: int) -> I8:
        codes, attrs = np.resize(self.stream, (rows, columns)), self.scheme.sparse(columns)
        if attrs["sparse"] == PAIRS:
            quads = -(-columns // QUAD)
            choice = np.resize(self.stream[STEP:].view(np.uint8), (rows, quads)) % len(prune.CHOICES)
            codes *= prune.CHOICES[choice, :, 0].reshape(rows, -1)[:, :columns]
            return codes
        size = self.rng.random((-(-rows // STRIP), blocks.count(columns)))
        keep = prune.largest(size, attrs["tiles"])
        for strip, kept in enumerate(keep):
            codes[strip * STRIP : (strip + 1) * STRIP] *= np.repeat(kept, TILE)[:columns]
        return codes
