"""An integer graph in, speeds of the native target out: decode, prefill, and the share of memory bandwidth.

The plain reading loop runs between blocks of tokens, on the same cores, so that both see the same machine.
Every time here is of the wall clock and of this machine; none is promised.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from openlpu._base import units
from openlpu._base.progress import Progress, silent
from openlpu.graph.ir import Graph
from openlpu.target.base import Chunk, Executable
from openlpu.target.cpu.bandwidth import ReadLoop
from openlpu.target.cpu.run import load
from openlpu.tokens.sample import draw

PREFILL = 512  # tokens of the measured prompt
BLOCKS = 12  # of decode, each after one pass of the reading loop
BLOCK_S = 0.5  # wall seconds of tokens in a block, at least eight
LEAST = 8


@dataclass(frozen=True)
class Speeds:
    """What one benchmark measured; seconds and rates are of the wall clock, bytes are decimal."""

    threads: int
    path: str
    load_s: float
    weight_bytes: int  # read for every token
    prefill_tokens: int
    prefill_s: float
    token_s: tuple[float, ...]
    read_bytes_per_s: float  # the plain loop's median

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens over the sum of their times."""
        return len(self.token_s) / sum(self.token_s)

    @property
    def share(self) -> float:
        """Rate at which a median token reads the weights over the plain loop's rate."""
        return self.weight_bytes / units.percentile(self.token_s, 50) / self.read_bytes_per_s

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        fields = {name: value for name, value in asdict(self).items() if name != "token_s"}
        return {
            "clock": "wall",
            **fields,
            "prefill_tokens_per_s": self.prefill_tokens / self.prefill_s,
            "decode_tokens": len(self.token_s),
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "token_p50_s": units.percentile(self.token_s, 50),
            "token_p99_s": units.percentile(self.token_s, 99),
            "bandwidth_share": self.share,
        }


def bench(graph: Graph, *, threads: int = 0, progress: Progress = silent) -> Speeds:
    """Measure an integer graph on the native target; ``threads`` 0 means its own choice."""
    progress("load", 0, BLOCKS + 2)
    start = perf_counter()
    prompt = min(PREFILL, graph.config.context // 2)
    executable = load(graph, context=min(graph.config.context, 2 * prompt), threads=threads)
    load_s = perf_counter() - start
    loop = ReadLoop(executable.threads)
    try:
        progress("prefill", 1, BLOCKS + 2)
        tokens = tuple(draw(0, 0, i) % graph.config.vocab for i in range(prompt))
        prefill_s = min(_seconds(executable, 0, tokens) for _ in range(2))
        rates, times = [], []
        for block in range(BLOCKS):
            progress("decode", 2 + block, BLOCKS + 2)
            rates.append(loop.measure() * 1e9)
            times += _decode(executable, prompt, tokens)
        progress("decode", BLOCKS + 2, BLOCKS + 2)
    finally:
        loop.close()
        executable.close()
    return Speeds(executable.threads, executable.path.name, load_s, weight_bytes(graph), prompt, prefill_s,
                  tuple(times), units.percentile(rates, 50))


def weight_bytes(graph: Graph) -> int:
    """Bytes of codes, scales and biases that the linear layers read for one token."""
    linears = [node for node in graph.nodes if node.op == "linear"]
    return sum(graph.params[key].nbytes for node in linears for key in node.params.values())


def _decode(executable: Executable, start: int, tokens: tuple[int, ...]) -> list[float]:
    """Times of single tokens behind the prompt; the first, which finds the caches full of others' data, is left out."""
    times: list[float] = []
    while sum(times) < BLOCK_S or len(times) <= LEAST:
        at = len(times) % len(tokens)
        times.append(_seconds(executable, start + at, tokens[at : at + 1]))
    return times[1:]


def _seconds(executable: Executable, start: int, tokens: tuple[int, ...]) -> float:
    begin = perf_counter()
    executable.run([Chunk(0, start, tokens)])
    return perf_counter() - begin
