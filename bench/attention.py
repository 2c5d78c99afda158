"""A shape in, the time of a decode token's attention at growing contexts out, beside its two bounds.

``python bench/attention.py [SHAPE [THREADS [KV_BITS]]]`` (``llama-3.2-1b``, 1, 8).  Every layer has a cache of its
own, as in a token step, so keys and values come from memory.  The bounds: the bytes of the cache over the plain
reading loop's rate, and the products of the dot instruction over the rate of a loop of nothing else, both measured
between the attention's own runs.  ``bound`` is the larger; the last column is its share of the time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

from openlpu._base import units
from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.shapes import SHAPES
from openlpu.target.cpu import attention, path, rows
from openlpu.target.cpu.attention import AttentionKernel
from openlpu.target.cpu.attention_block import Areas, AttentionStage
from openlpu.target.cpu.bandwidth import ReadLoop
from openlpu.target.cpu.cache import CacheLayout
from openlpu.target.cpu.crew import Crew, Entry
from openlpu.target.cpu.emit import Function
from openlpu.target.cpu.kernels import PARAMS, team_text
from openlpu.target.cpu.linear import code_stride, value_stride
from openlpu.target.cpu.memory import Arena
from openlpu.target.cpu.native import Module
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.rate import DotLoop

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
ROUNDS = 7


class DecodeAttention:
    """The attention stages of one decode token, and nothing else of it."""

    def __init__(self, config: ModelConfig, context: int, threads: int, kv_bits: int, vectors: Path) -> None:
        self.config, self.context = config, context
        layout = CacheLayout(config.kv_heads, config.head_dim, kv_bits, context)
        stage = AttentionStage(config.heads, layout, float(np.float32(config.head_dim**-0.5)), config.window)
        fn = Function("attention", "void", PARAMS)
        AttentionKernel(fn, vectors, stage, threads).emit()
        fn.line("ret void")
        self._module = Module(path.DECLARES[vectors.name] + fn.text() + team_text(vectors), vectors)
        size = config.heads * config.head_dim
        layer = layout.layer_bytes(1)
        self._caches, self._rest = Arena(layer * config.layers), Arena(attention.shared_bytes(stage) + (1 << 20))
        self._caches.bytes[:] = np.resize(np.random.default_rng(0).integers(0, 64, 4099, np.uint8), 1)  # finite scales
        self._caches.bytes[::64] = 1
        step = self._take(rows.ROWS_AT + rows.ROW_BYTES)
        header = self._rest.view(step, rows.ROWS_AT + rows.ROW_BYTES).view(np.int32)
        header[:2], header[rows.ROWS_AT // 4 :][:3] = 1, (0, 0, context - 1)
        codes, meta = self._take(code_stride(vectors, size, size)), self._take(16)
        self._rest.view(codes, size * vectors.code_bytes)[:] = 3
        self._rest.view(meta, 4).view(np.float32)[:] = 0.01
        out, parts = self._take(4 * value_stride(size)), self._take(attention.shared_bytes(stage))
        places = [self._rest.address + at for at in (codes, meta, 0, out, parts)]
        entries = []
        for i in range(config.layers):
            places[2] = self._caches.address + i * layer
            args = self._take(8 * 6)
            self._rest.view(args, 8 * 6).view(np.int64)[:] = [i, *places]
            entries.append(Entry(self._module.address("attention"), self._rest.address + args,
                                 attention.tiles(threads), 0))
        self._crew = Crew(self._module, entries, self._rest.address + step, Areas(stage).size, threads)
        self.layout = layout

    def _take(self, size: int) -> int:
        return self._rest.take(size)

    @property
    def bytes(self) -> int:
        """Bytes of keys, values and scales that a token reads."""
        return self.layout.bytes_read(self.context) * self.config.layers

    @property
    def products(self) -> int:
        """Products of two bytes: two planes of the query and of the probabilities."""
        c = self.config
        return 4 * self.layout.planes * self.context * c.heads * c.head_dim * c.layers

    def measure(self) -> float:
        """Wall seconds of one token's attention."""
        start = time.perf_counter()
        self._crew.run()
        return time.perf_counter() - start

    def close(self) -> None:
        """Release the threads."""
        self._crew.close()


def measured(config: ModelConfig, threads: int, kv_bits: int, contexts: tuple[int, ...]) -> Iterator[str]:
    """A line per context: time, both bounds, share."""
    read, dots, vectors = ReadLoop(threads), DotLoop(threads), path.choose("auto")
    for context in contexts:
        target = DecodeAttention(config, context, threads, kv_bits, vectors)
        target.measure()
        times, reading, dotting = [], [], []
        for _ in range(ROUNDS):
            times.append(target.measure())
            reading.append(target.bytes / (read.measure() * 1e9))
            dotting.append(target.products / dots.measure())
        target.close()
        t, r, d = (units.percentile(values, 50) for values in (times, reading, dotting))
        yield f"{context:8,} {t * 1e3:10.3f} {r * 1e3:10.3f} {d * 1e3:10.3f} {max(r, d) / t:8.1%}"
    read.close()
    dots.close()


def main(shape: str, threads: int, kv_bits: int, contexts: tuple[int, ...]) -> None:
    """Print the table."""
    print(f"{shape}, {threads} threads, {kv_bits}-bit cache: milliseconds of attention per token (wall)")
    print(f"{'context':>8} {'time':>10} {'reading':>10} {'products':>10} {'share':>8}")
    for line in measured(SHAPES[shape], threads, kv_bits, contexts):
        print(line, flush=True)


def contexts_of(text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", choices=SHAPES)
    parser.add_argument("threads", nargs="?", type=int, default=1, choices=range(1, 1025), metavar="THREADS")
    parser.add_argument("kv_bits", nargs="?", type=int, default=8, choices=(4, 8, 16))
    parser.add_argument("contexts", nargs="?", type=contexts_of, default=CONTEXTS, metavar="N,M,…")
    given = parser.parse_args()
    main(given.shape, given.threads, given.kv_bits, given.contexts)
