"""The experts of a mixture as one stage: tiles of whichever experts were chosen.

A graph has every expert's operators side by side.  Here the operators of all experts at the same place are one, with
the first expert's names: its rows are the step's (token, expert) pairs, grouped by expert, and only experts that have
rows are read.  A token's pairs are found through two tables that ``mixture_rows.py`` makes.
"""

from __future__ import annotations

from openlpu._base.errors import Unsupported
from openlpu.graph.ir import Node
from openlpu.target.cpu.emit import Value
from openlpu.target.cpu.linear import LinearKernel


def one_format(nodes: tuple[Node, ...]) -> None:
    """Refuses experts whose matrices of one kind are stored in several ways."""
    ways = {("blocks" in node.params, node.attrs.get("sparse"), node.attrs.get("tiles")) for node in nodes}
    if len(ways) > 1:
        raise Unsupported("the experts have weights of different formats", where=nodes[0].where,
                          fix="use --bits 4.5 or 8")


class ExpertKernel(LinearKernel):
    """Generates the kernel of a linear stage with experts; a matrix's argument slots are one per expert."""

    def emit(self) -> None:
        fn, stage, panels = self.fn, self.stage, self.stage.panels(self.path)
        starts, active, done = super().arg(stage.starts), fn.slot("i64"), fn.slot("i64")
        with fn.loop(stage.experts) as expert:
            _, count = _group(starts, expert)
            active.set(active.get() + count.compare("sgt", 0).cast("zext", "i64"))
        first, end = ((fn.params["tile"] + i) * active.get() * panels for i in range(2))
        first, end = first.udiv(self.tiles), end.udiv(self.tiles)
        with fn.loop(stage.experts) as expert:
            start, count = _group(starts, expert)
            with fn.when(count.compare("sgt", 0)):
                self.first, self.rows, self.expert = start, count, expert
                at = done.get()
                low = fn.select((first - at).compare("slt", 0), 0, first - at)
                high = fn.select((end - at).compare("sgt", panels), panels, end - at)
                with fn.loop(high - low) as i:
                    self._panel(stage.parts[0], i + low)
                done.set(at + panels)

    def weights(self, slot: int) -> Value:
        return self.args.at(8 * slot).at(self.expert * 8).load("ptr", 8)


def _group(starts: Value, expert: Value) -> tuple[Value, Value]:
    """Where an expert's rows begin, and how many it has."""
    first, after = (starts.at(expert * 4).at(4 * i).load("i32").cast("sext", "i64") for i in range(2))
    return first, after - first
