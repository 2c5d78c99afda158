"""A plan, SRAM and value tables in; the run's values computed and SRAM rewritten, out.

The rules that depend on address maps are checked here: words never written, writes in flight, banks, maps that are
no bijection, and claims about words found by address.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError, ProgramError
from openlpu.arch.isa import BY_NAME
from openlpu.target.chip import claims, kernels
from openlpu.target.chip.code import Code, Ints
from openlpu.target.chip.fetch import Pages
from openlpu.target.chip.plan import Batch, Plan
from openlpu.target.chip.rules import banks, partners
from openlpu.target.chip.sram import RESIDENT, Sram
from openlpu.target.chip.state import State
from openlpu.target.chip.values import I32, U8, Bytes, Values, Words


class Run:
    """One run.  ``writer`` [dynamic slices, words, superlanes] is the row of each tracked word's last writer."""

    def __init__(
        self, code: Code, plan: Plan, memory: Sram, pages: Pages, state: State, values: Values,
        expected: claims.Expected | None,
    ) -> None:
        self.code, self.plan, self.memory, self.pages, self.state = code, plan, memory, pages, state
        self.values, self.expected = values, expected
        chip = code.chip
        self.writer = np.full((len(memory.dynamic), chip.words_per_slice, chip.superlanes), RESIDENT, np.int32)
        self.scattered: dict[int, Ints] = {}  # words of each scatter that ran
        self.partner = partners(code)

    def all(self) -> None:
        """The whole run: resident words, batches in order, last writes, claimed outputs."""
        with np.errstate(all="ignore"):  # fp32 of the chip has no traps; to_int checks
            self._load()
            for batch in self.plan.batches:
                getattr(self, f"_{batch.name}", self._alu)(batch)
            self._store()
        if self.expected:
            self._outputs(self.expected)

    def _load(self) -> None:
        rows = self.plan.fetched
        slices, words = self.code.number[rows], self.code.field["address"][rows]
        self._require_written(rows, self.state.written[slices, words])
        self.values.bytes[: len(rows)] = self.state.sram[slices, words]

    def _store(self) -> None:
        rows = self.plan.stored
        slices, words = self.code.number[rows], self.code.field["address"][rows]
        self.state.sram[slices, words] = self.plan.data.take(self.values)
        self.state.written[slices, words] = True

    def _require_written(self, rows: Ints, written: NDArray[np.bool_]) -> None:
        """``written`` [n, superlanes]."""
        self.code.refuse(rows[~written.all(axis=1)], "reads a word that was never written")

    # ICU

    def _ifetch(self, batch: Batch) -> None:
        wrong = (self._take(batch, 0) != self.pages.of(batch.rows)).any(axis=(1, 2))
        self.code.refuse(batch.rows[wrong], "what it fetches is not what comes next in this queue")

    # VXM

    def _alu(self, batch: Batch) -> None:
        a, b = (self._number(batch, i) for i in range(2))
        meaning = BY_NAME[batch.name].meaning
        assert meaning is not None, f"{batch.name} has no meaning"
        try:
            self.values.words[batch.out] = meaning(a, b)
        except NumericsError:
            for i, row in enumerate(batch.rows):
                self._alone(meaning, a[i : i + 1], b[i : i + 1], int(row))
            raise

    def _alone(self, meaning: Callable[[I32, I32], I32], a: I32, b: I32, row: int) -> None:
        """One instruction of a batch that failed, to name it."""
        try:
            meaning(a, b)
        except NumericsError as error:
            raise NumericsError(error.what, where=self.code.where(row), fix=error.fix) from error

    def _number(self, batch: Batch, i: int) -> I32:
        operand = batch.operands[i]
        if isinstance(operand, Words):
            return operand.take(self.values)
        if isinstance(operand, Bytes):
            return operand.take(self.values).view(np.int8).astype(np.int32)
        return operand

    # MXM

    def _activate(self, batch: Batch) -> None:
        vectors, array = self._take(batch, 0), self._take(batch, 1)
        self.values.words[batch.out] = kernels.activate(vectors, array)

    def _accumulate(self, batch: Batch) -> None:
        arriving, *held = (self._number(batch, i) for i in range(len(batch.operands)))
        self.values.words[batch.out] = arriving + held[0] if held else arriving

    # SXM

    def _take(self, batch: Batch, i: int) -> U8:
        operand = batch.operands[i]
        assert isinstance(operand, Bytes), "this operand is bytes"
        return operand.take(self.values)

    def _put(self, batch: Batch, kernel: Callable[..., U8], *arguments: object) -> None:
        operands = [self._take(batch, i) for i in range(len(batch.operands))]
        try:
            out = kernel(*operands, *arguments)
        except kernels.BadMap as bad:
            raise ProgramError(bad.what, where=self.code.where(int(batch.rows[bad.index]))) from bad
        self.values.bytes[batch.out] = out.reshape(-1, out.shape[-1])

    def _shift(self, batch: Batch) -> None:
        amount, north = (int(self.code.field[name][batch.rows[0]]) for name in ("amount", "north"))
        self._put(batch, kernels.shift, amount, bool(north))

    def _permute(self, batch: Batch) -> None:
        self._put(batch, kernels.permute)

    def _distribute(self, batch: Batch) -> None:
        self._put(batch, kernels.distribute)

    def _rotate(self, batch: Batch) -> None:
        self._put(batch, kernels.rotate)

    def _transpose(self, batch: Batch) -> None:
        self._put(batch, kernels.transpose)

    # MEM in slices with gathers or scatters: words and their writers are known only now

    def _read(self, batch: Batch) -> None:
        words = np.repeat(self.code.field["address"][batch.rows][:, None], self.code.chip.superlanes, axis=1)
        self.values.bytes[batch.out] = self._words(batch.rows, words)

    def _gather(self, batch: Batch) -> None:
        self.values.bytes[batch.out] = self._words(batch.rows, self._addresses(batch, 0))

    def _words(self, rows: Ints, words: Ints) -> U8:
        """Contents of words [n, superlanes], -1: zeros; checks that they are there and claimed."""
        slices, lane = self.code.number[rows][:, None], np.arange(words.shape[1])
        part = words >= 0
        self._require_written(rows, self.state.written[slices, words, lane] | ~part)
        writer = self.writer[np.searchsorted(self.memory.dynamic, slices), words, lane]
        landed = self.code.cycle[writer] + self.code.latency[writer] <= self.code.cycle[rows][:, None]
        early = part & (writer >= 0) & ~landed
        self.code.refuse(rows[early.any(axis=1)], "the write of this word is still in flight")
        if self.expected:
            claimed, either = self.expected.writer[rows][:, None], self.expected.or_resident[rows][:, None]
            wrong = part & (writer != claimed) & ~(either & (writer == RESIDENT))
            if wrong.any():
                i, k = np.argwhere(wrong)[0]
                claims.refuse(self.code, int(rows[i]), 0, int(claimed[i, 0]), int(writer[i, k]))
        tiles = self.state.sram.reshape(*self.state.sram.shape[:2], words.shape[1], -1)
        data = tiles[slices, words, lane]
        return np.where(part[..., None], data, np.uint8(0)).reshape(len(rows), -1)

    def _addresses(self, batch: Batch, operand: int) -> Ints:
        code, rows = self.code, batch.rows
        maps = self._take(batch, operand)
        try:
            pair = code.field["pair"][rows]
            words = kernels.addresses(code.field["address"][rows], maps, pair, code.chip.words_per_slice)
        except kernels.BadMap as bad:
            raise ProgramError(bad.what, where=code.where(int(rows[bad.index]))) from bad
        other = self.partner[rows]
        clash = (banks(code, words) == banks(code, code.field["address"])[other][:, None]) & (words >= 0)
        both = clash.any(axis=1) & (other >= 0)
        code.refuse(rows[both], "bank conflict: its map meets the bank of the access beside it")
        return words

    def _scatter(self, batch: Batch) -> None:
        words = self._addresses(batch, 1)
        data = self._take(batch, 0).reshape(*words.shape, -1)
        lane = np.arange(words.shape[1])
        tiles = self.state.sram.reshape(*self.state.sram.shape[:2], words.shape[1], -1)
        for i, row in enumerate(batch.rows):
            part = words[i] >= 0
            slice_ = int(self.code.number[row])
            tiles[slice_, words[i, part], lane[part]] = data[i, part]
            self.state.written[slice_, words[i, part], lane[part]] = True
            self.writer[np.searchsorted(self.memory.dynamic, slice_), words[i, part], lane[part]] = row
            self.scattered[int(row)] = words[i]

    def _write(self, batch: Batch) -> None:
        rows = batch.rows
        slices, words = self.code.number[rows], self.code.field["address"][rows]
        self.state.sram[slices, words] = self._take(batch, 0)
        self.state.written[slices, words] = True
        self.writer[np.searchsorted(self.memory.dynamic, slices), words] = rows[:, None]

    def _outputs(self, expected: claims.Expected) -> None:
        """Claimed outputs in tracked slices: the last writer of each word is the claimed one."""
        for output, row in zip(expected.outputs, expected.output_writer.tolist(), strict=True):
            tracked = np.flatnonzero(self.memory.dynamic == output["slice"])
            if not len(tracked):
                continue
            words = self.scattered[row] if output["indirect"] else np.full(self.writer.shape[2], output["address"])
            last = self.writer[tracked[0], words, np.arange(len(words))]
            if ((last != row) & (words >= 0)).any():
                claims.refuse_output(self.code, output, row)
