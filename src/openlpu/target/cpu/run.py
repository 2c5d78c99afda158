"""Integer graph in, native executable out: the whole token step in generated code, memory fixed at load time.

``load`` plans the stages, compiles one module, packs the weights and starts the threads; a step then writes the
rows into a header, calls one native function and copies the logits.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from openlpu._base.cores import usable_cores
from openlpu._base.errors import BadRequest, NumericsError
from openlpu.graph.ir import Graph
from openlpu.target.base import F32, Chunk
from openlpu.target.cpu import kernels
from openlpu.target.cpu.ahead import Ahead
from openlpu.target.cpu.crew import Crew, Entry
from openlpu.target.cpu.image import build, parameters
from openlpu.target.cpu.layout import MAX_ROWS, Layout
from openlpu.target.cpu.linear import ERROR_AT, value_stride
from openlpu.target.cpu.mover import Mover
from openlpu.target.cpu.native import Module
from openlpu.target.cpu.path import Path, choose
from openlpu.target.cpu.plan import LINEAR, Planner, Stage
from openlpu.target.cpu.rows import ROWS_AT
from openlpu.target.cpu.stored import Stored, code_key
from openlpu.target.cpu.team import LOGITS_ONLY, PER_ROW

NO_ERROR = 0x7FFFFFFF
MOST_THREADS = 1024
SMALL_STEP = 4 << 20  # bytes of weights below which meeting other threads costs more than they save
DRY_ROWS = 8  # of the step before the first: as many as reach every kernel's widest block


@dataclass(frozen=True)
class Row:
    """One token of a step, and where its logits go: (chunk, row of the chunk's result), or nowhere."""

    token: int
    slot: int
    position: int
    goal: tuple[int, int] | None


class CpuExecutable:
    """A loaded model on this processor; see :class:`openlpu.target.base.Executable`.

    ``params`` gives the graph's parameters back, so that nobody else needs to keep them.  Steps of several threads
    that call at once run one after another.
    """

    def __init__(self, graph: Graph, slots: int, context: int, threads: int, path: Path) -> None:
        self.slots, self.context, self.path = slots, context, path
        self.vocab = graph.values[graph.output].size
        self.plan = Planner(graph, context).plan()
        stored = graph.params if isinstance(graph.params, Stored) else None
        mapped = stored.image(path) if stored else None
        image = mapped or build(self.plan, path, graph.params)
        self._mover = Mover(image) if mapped else None
        self.params: Mapping[str, np.ndarray] = stored or parameters(self.plan, path, image, graph.params)
        self.layout = Layout(graph, self.plan, path, slots, image)
        self.threads = threads or usable_threads(image.weight_bytes)
        self.module = self._compiled(stored)
        names = kernels.names(self.plan)
        self._ahead = Ahead(self.plan.stages, self.layout.args, path, self.threads)
        self.entries: list[Entry] = []
        for i, stage in enumerate(self.plan.stages):
            tiles, per_row = kernels.tiles(stage, path, self.threads)
            flags = (PER_ROW if per_row else 0) | (LOGITS_ONLY if stage.logits_only else 0)
            kernel = self.module.address(names[stage.spec])
            self.entries.append(Entry(kernel, self.layout.args[i], tiles, flags, self._ahead.entries[i]))
        scratch = kernels.scratch_bytes(self.plan, path)
        self._crew = Crew(self.module, self.entries, self.layout.step_address, scratch, self.threads)
        header = self.layout.step
        self._counts, self._rows = header[:ROWS_AT].view(np.int32), header[ROWS_AT:].view(np.int32).reshape(-1, 4)
        logits = self.layout.value(graph.output, MAX_ROWS * value_stride(self.vocab) * 4)
        self._logits = logits.view(np.float32).reshape(MAX_ROWS, -1)
        self._turn = threading.Lock()
        self._finalizer = weakref.finalize(self, _release, self._crew, self._mover)
        if not self.moving:
            self._dry_run()

    def _dry_run(self) -> None:
        """A step that answers nobody, so that the first that does finds pages, code and threads there.

        It writes to positions that whoever gets the slot writes first.  From a file map it would read all weights
        once more than needed, at the price of half a start: there the first step stays cold.
        """
        with suppress(NumericsError):  # whoever asks first is told
            self.run([Chunk(0, 0, (0,) * min(DRY_ROWS, self.context))])

    def _compiled(self, stored: Stored | None) -> Module:
        """Machine code from the folder the model was stored in, where it fits; otherwise made now."""
        code = stored.code(code_key(self.plan, self.path, self.threads)) if stored else None
        if code:
            return Module.stored(code, self.path)
        return Module(kernels.module(self.plan, self.path, self.threads), self.path)

    def run(self, chunks: Sequence[Chunk]) -> list[F32]:
        """One step: all chunks together.  Returns per chunk fp32 logits [1 or len(tokens), vocab]."""
        assert self._finalizer.alive, "the executable is closed"
        results = [np.empty((len(c.tokens) if c.every else 1, self.vocab), np.float32) for c in chunks]
        with self._turn:
            for rows in _batches(chunks):
                self._step(rows, results)
            if self._mover:
                self._move(self._mover)
        return results

    @property
    def moving(self) -> bool:
        """Whether the weights are still read from a file map."""
        return self._mover is not None

    def _move(self, mover: Mover) -> None:
        """After the first step, begin to copy the mapped image; once that is done, use the copy."""
        mover.start()
        if copy := mover.finished():
            self.layout.move(copy)
            self._mover = None

    def _step(self, rows: list[Row], results: list[F32]) -> None:
        """One native step of at most ``MAX_ROWS`` rows, those with logits first."""
        rows = sorted(rows, key=lambda row: row.goal is None)
        wanted = sum(row.goal is not None for row in rows)
        for i, row in enumerate(rows):
            assert 0 <= row.token < self.vocab, f"token {row.token} is outside the vocabulary"
            assert 0 <= row.slot < self.slots, f"slot {row.slot} does not exist"
            assert 0 <= row.position < self.context, f"position {row.position} is outside the context"
            self._rows[i, :3] = row.token, row.slot, row.position
        self._counts[:3] = len(rows), wanted, NO_ERROR
        self._crew.run()
        if self._counts[ERROR_AT // 4] != NO_ERROR:
            self._refuse(self.plan.stages[self._counts[ERROR_AT // 4]])
        for i, row in enumerate(rows[:wanted]):
            if row.goal:
                results[row.goal[0]][row.goal[1]] = self._logits[i, : self.vocab]

    def _refuse(self, stage: Stage) -> NoReturn:
        if stage.kind == LINEAR:
            raise NumericsError("a logit is not finite", where=stage.where)
        raise NumericsError("a NaN or an infinity reached a quantisation", where=stage.where,
                            fix="check the checkpoint's tensors for NaN; `openlpu accuracy` names the layer")

    def close(self) -> None:
        """Release threads and memory; the executable cannot be used afterwards."""
        self._finalizer()


def _batches(chunks: Sequence[Chunk]) -> Iterator[list[Row]]:
    """Rows in chunk order, at most ``MAX_ROWS`` together.

    All keys and values of a step are written before any is read, so a chunk that returns to a slot already in
    the batch must not write below what that batch has run: it begins the next one.
    """
    batch: list[Row] = []
    ends: dict[int, int] = {}
    for c, chunk in enumerate(chunks):
        assert chunk.tokens, "a chunk has at least one token"
        if chunk.start < ends.get(chunk.slot, chunk.start):
            yield batch
            batch, ends = [], {}
        for i, token in enumerate(chunk.tokens):
            if len(batch) == MAX_ROWS:
                yield batch
                batch, ends = [], {}
            last = i == len(chunk.tokens) - 1
            goal = (c, i) if chunk.every else ((c, 0) if last else None)
            batch.append(Row(token, chunk.slot, chunk.start + i, goal))
            ends[chunk.slot] = chunk.start + i + 1
    if batch:
        yield batch


def _release(crew: Crew, mover: Mover | None) -> None:
    crew.close()
    if mover:
        mover.stop()


def usable_threads(weight_bytes: int) -> int:
    """All cores this process may use; one for a model too small to share."""
    if weight_bytes < SMALL_STEP:
        return 1
    return usable_cores()


def load(
    graph: Graph, *, slots: int = 1, context: int = 0, threads: int = 0, path: str = "auto"
) -> CpuExecutable:
    """An executable with ``slots`` caches of ``context`` positions (0: the model's own).

    ``threads`` 0 means all usable cores, or one for a small model; ``path`` forces one of the vector paths
    (:mod:`openlpu.target.cpu.path`).  Raises :class:`~openlpu._base.errors.Unsupported` for a path this processor
    does not have or an encoder, and :class:`~openlpu._base.errors.BadRequest` for a number of threads out of range.
    """
    assert graph.level == "int", "the CPU target runs integer graphs"
    context = context or graph.config.context
    assert context <= graph.config.context, "the rotary tables end at the model's context"
    if not 0 <= threads <= MOST_THREADS:
        raise BadRequest(f"{threads} is out of range", where="threads",
                         fix=f"threads is 0 (all cores) to {MOST_THREADS}")
    return CpuExecutable(graph, slots, context, threads, choose(path))
