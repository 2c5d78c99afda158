"""An integer graph in, logits and cycles out: compile for a chip, fill its SRAM, run step after step.

A step is a token, or a part of a prompt where the program has segments for several; bits are those of token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from openlpu._base.errors import NumericsError
from openlpu.arch.chip import Chip, load_chip
from openlpu.arch.system import load_system
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph.ir import Graph
from openlpu.partition.split import Split
from openlpu.place.host import Step
from openlpu.place.layout import place
from openlpu.schedule import sweeps
from openlpu.schedule.program import Program, Rows, Segment, StageProgram
from openlpu.schedule.step import buckets, schedule
from openlpu.target.base import F32, Chunk
from openlpu.target.chip import encoders, host
from openlpu.target.chip import system as several
from openlpu.target.chip.machine import Machine, Trace, resolve_segment
from openlpu.target.chip.system import SystemExecutable


class ChipExecutable:
    """One chip with a sequence for each of the program's requests; ``cycles`` of a step are the program's, known before
    it runs.

    With ``check`` every operand of every step is compared with the program's claims.
    """

    def __init__(self, program: Program, params: Mapping[str, np.ndarray], check: bool = True) -> None:
        self.program, self.context, self.slots = program, program.context, program.requests
        self.machine = Machine(program.chip)
        self.check = check
        self.traces: dict[str, Trace] = {}
        self.cycles = program.segments[0].cycles
        host.fill(self.machine, program.resident, params)

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        """Logits per chunk, step after step; ``cycles`` is then what the last step took.

        Logits of every token take a step for each; otherwise prefill takes as many together as the program can.
        """
        out = []
        for chunk in chunks:
            assert chunk.slot < self.slots, "the program has no cache for this request"
            rows = [self._logits(step, segment) for step, segment in host.steps(self.program, chunk)]
            out.append(np.stack(rows if chunk.every else rows[-1:]))
        return out

    def _logits(self, step: Step, number: int) -> F32:
        segment = self.program.segments[number]
        self.step(step, segment)
        logits = self.value(segment.logits)
        if not np.isfinite(logits).all():
            raise NumericsError("a logit is not finite", where=f"position {step.end - 1}")
        return logits

    def step(self, step: Step, segment: Segment) -> None:
        """Run one step in a segment that has room for its positions."""
        assert 0 < step.end <= segment.context, "a position lies outside the segment's context"
        if segment.name not in self.traces:
            self.traces[segment.name] = resolve_segment(self.program.chip, segment, self.check)
        self.write_host_rows(step)
        self.machine.execute(self.traces[segment.name])
        self.cycles = segment.cycles

    def write_host_rows(self, step: Step) -> None:
        """What the host does before a step: which tokens, and where."""
        host.write_rows(self.machine, self.program, step)

    def value(self, rows: Rows) -> F32:
        """An fp32 value of the last token, by channel, from where the segment left it."""
        return host.value(self.machine, [rows])

    def close(self) -> None:
        """Nothing to release."""


class EncoderExecutable(ChipExecutable):
    """One chip that runs an encoder; ``cycles`` of a sequence are known before it runs."""

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        """Hidden states [n, hidden] of each sequence, all of them or the last; ``cycles`` is then of the last one."""
        out = []
        for chunk in chunks:
            assert not chunk.start and not chunk.slot, "an encoder takes a sequence whole, one at a time"
            for step, part in sweeps.steps(self.program, chunk.tokens, chunk.types):
                self.step(step, part)
            self.cycles = sweeps.cycles(self.program, len(chunk.tokens))
            hidden = host.hidden(self.machine, StageProgram(self.program, 1), len(chunk.tokens))
            out.append(hidden[0 if chunk.every else -1 :])
        return out


def load(
    graph: Graph, *, slots: int = 1, context: int = 0, chip: Chip | str = "lpu-v1", split: Split | None = None,
    system: str = "", chunks: Sequence[int] = (),
) -> ChipExecutable | SystemExecutable | encoders.SystemEncoder:
    """Compile for a chip, or with a ``split`` for chips of a node, or of a ``system`` built with as many, and load.

    ``slots`` requests have a KV cache each; ``context`` 0 means the model's own; ``chunks`` are how many tokens of a
    prompt a step may take, beside one.  An encoder has one request and one size of chunk, the largest of them.
    """
    if split and isinstance(graph.config, EncoderConfig):
        chips = load_system(system, split.chips) if system else "node"
        return encoders.load(graph, context=context, split=split, system=chips, chunk=max(chunks, default=0))
    if split:
        chips = load_system(system, split.chips) if system else "node"
        return several.load(graph, slots=slots, context=context, split=split, system=chips, chunks=chunks)
    layout = place(graph, load_chip(chip) if isinstance(chip, str) else chip, context, slots)
    if isinstance(graph.config, EncoderConfig):
        return EncoderExecutable(sweeps.schedule(graph, layout, max(chunks, default=0)), graph.params)
    return ChipExecutable(schedule(graph, layout, buckets(layout.context), chunks), graph.params)
