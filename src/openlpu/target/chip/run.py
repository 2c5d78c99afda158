"""An integer graph in, logits and cycles out: compile for a chip, fill its SRAM, run token after token.

Prefill repeats the decode program, so its bits are those of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from openlpu._base.errors import NumericsError
from openlpu.arch.chip import Chip, load_chip
from openlpu.graph.ir import Graph
from openlpu.place import emplace, host
from openlpu.place.layout import place
from openlpu.schedule.program import Program, Rows, Segment
from openlpu.schedule.step import buckets, schedule
from openlpu.target.base import F32, Chunk
from openlpu.target.chip.machine import Machine, Trace, resolve


class ChipExecutable:
    """One chip with one sequence; ``cycles`` of a token are the program's, known before it runs.

    With ``check`` every operand of every token is compared with the program's claims.
    """

    slots = 1

    def __init__(self, program: Program, params: Mapping[str, np.ndarray], check: bool = True) -> None:
        self.program, self.context = program, program.context
        self.machine = Machine(program.chip)
        self.check = check
        self.traces: dict[int, Trace] = {}
        self.cycles = program.segments[0].cycles
        self.rows = {item.name: item for item in program.resident}
        for item in program.resident:
            count, planes = item.slices.shape
            data = emplace.vectors(item.source, count, planes, program.chip.lanes, params)
            self.machine.load(item.slices, item.addresses[:, None], data)

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        """Logits per chunk, token after token; ``cycles`` is then what the last token took."""
        out = []
        for chunk in chunks:
            assert chunk.slot == 0, "one chip holds one sequence"
            rows = [self._logits(t, chunk.start + i) for i, t in enumerate(chunk.tokens)]
            out.append(np.stack(rows if chunk.every else rows[-1:]))
        return out

    def _logits(self, token: int, position: int) -> F32:
        segment = self.program.segment(position)
        self.step(token, position, segment)
        logits = self.value(segment.logits)
        if not np.isfinite(logits).all():
            raise NumericsError("a logit is not finite", where=f"position {position}")
        return logits

    def step(self, token: int, position: int, segment: Segment) -> None:
        """Run one token in a segment that has room for its position."""
        assert 0 <= position < segment.context, "the position lies outside the segment's context"
        if segment.context not in self.traces:
            claims = segment.claims if self.check else None
            self.traces[segment.context] = resolve(self.program.chip, segment.queues, claims)
        self.write_host_rows(token, position)
        self.machine.execute(self.traces[segment.context])
        self.cycles = segment.cycles

    def write_host_rows(self, token: int, position: int) -> None:
        """What the host does before a token: which one it is, and where."""
        p = self.program
        for name in p.host:
            item = self.rows[f"host.{name}"]
            data = host.row(name, p.chip, token, position, p.v_rows)[None]
            self.machine.load(item.slices, item.addresses[:, None], data)

    def value(self, rows: Rows) -> F32:
        """An fp32 value of the last token, by channel, from where the segment left it."""
        planes = self.machine.peek(rows.slices, rows.addresses[:, None])
        words = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<f4")[..., 0]
        used = rows.channel >= 0
        out = np.empty(int(used.sum()), np.float32)
        out[rows.channel[used]] = words[used]
        return out

    def close(self) -> None:
        """Nothing to release."""


def load(graph: Graph, *, slots: int = 1, context: int = 0, chip: Chip | str = "lpu-v1") -> ChipExecutable:
    """Compile for a chip and load; ``context`` 0 means the model's own."""
    assert slots == 1, "one chip holds one sequence"
    layout = place(graph, load_chip(chip) if isinstance(chip, str) else chip, context)
    return ChipExecutable(schedule(graph, layout, buckets(layout.context)), graph.params)
