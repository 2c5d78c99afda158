"""A plan, SRAM and value tables in; the run's values computed and SRAM rewritten, out.

The rules that depend on address maps are checked here, on every chip of a group: words never written, writes in
flight, banks, maps that are no bijection, and claims about words found by address.  Vectors are as wide as all chips
together, see :mod:`openlpu.target.chip.state`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError, ProgramError
from openlpu.arch.isa import BY_NAME
from openlpu.target.chip import claims, kernels
from openlpu.target.chip.code import Code, Ints
from openlpu.target.chip.fetch import Pages
from openlpu.target.chip.links import Packet, Ports
from openlpu.target.chip.operands import Operands
from openlpu.target.chip.plan import Batch, Plan
from openlpu.target.chip.rules import banks, partners
from openlpu.target.chip.sram import RESIDENT
from openlpu.target.chip.state import State
from openlpu.target.chip.values import I32, U8, Bytes, Values, Words

DAMAGE = np.uint8(0x7F)  # bits that an uncorrectable error sets: in the high bytes of fp32 the worst there are


class Run:
    """One run.  ``damaged``: packets that arrive with an uncorrectable error; None: all values are what they should be.

    Otherwise a chip goes on with garbage, as real ones do: no value stops it.
    ``writer`` [dynamic slices, words, roles * superlanes] is 1 + the row of each tracked word's last writer, else 0.
    """

    def __init__(
        self, code: Code, operands: Operands, plan: Plan, pages: Pages, state: State, values: Values,
        expected: claims.Expected | None, damaged: Collection[Packet] | None = None, links: Ports | None = None,
    ) -> None:
        self.code, self.plan, self.pages, self.state, self.values = code, plan, pages, state, values
        self.memory, self.passing, self.expected, self.damaged = operands.memory, operands.passing, expected, damaged
        self.roles = state.roles
        self.sources = {port.peer: port.sources(self.roles) for port in (links or {}).values()}
        self.writer = values.zeros((len(self.memory.dynamic), *state.written.shape[1:]))
        self.scattered: dict[int, Ints] = {}  # words of each scatter that ran
        self.partner = partners(code)

    def all(self, arriving: U8 | None) -> U8:
        """The whole run: resident words, batches in order, last writes, claimed outputs.

        ``arriving`` [n, width]: what other stages sent.  Returns what is sent to another stage, likewise.
        """
        with np.errstate(all="ignore"):  # fp32 of the chip has no traps; to_int checks
            self._load()
            self._arrive(arriving)
            for batch in self.plan.batches:
                getattr(self, f"_{batch.name}", self._alu)(batch)
            self._store()
        if self.expected:
            self._outputs(self.expected)
        return self.plan.handed.take(self.values).copy()

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

    def _refuse(self, rows: Ints, wrong: NDArray[np.bool_], what: str) -> None:
        """``wrong`` [n, ...], the chips' parts side by side: refuse the earliest row with one, naming the role."""
        if wrong.any():
            places = np.argwhere(wrong.reshape(len(rows), self.roles, -1))
            i, role, _ = places[np.argmin(self.code.cycle[rows[places[:, 0]]])]
            raise ProgramError(what, where=self._where(int(rows[i]), int(role)))

    def _where(self, row: int, role: int) -> str:
        return self.code.where(row, role if self.roles > 1 else None)

    def _require_written(self, rows: Ints, written: NDArray[np.bool_]) -> None:
        """``written`` [n, roles * superlanes]."""
        self._refuse(rows, ~written, "reads a word that was never written")

    # ICU

    def _ifetch(self, batch: Batch) -> None:
        brought = self._take(batch, 0)
        chips = brought.reshape(*brought.shape[:2], self.roles, -1)
        wrong = chips != self.pages.of(batch.rows)[:, :, None]
        self._refuse(batch.rows, wrong.any(axis=(1, 3)), "what it fetches is not what comes next in this queue")

    # C2C

    def _arrive(self, arriving: U8 | None) -> None:
        rows = self.plan.arriving
        if len(rows):
            assert arriving is not None and len(arriving) == len(rows), "the stage before sends what this one receives"
            start = len(self.plan.fetched)
            self.values.bytes[start : start + len(rows)] = arriving
            self._damage(rows, start)

    def _receive(self, batch: Batch) -> None:
        """Every role takes what its peer sent; a batch has one link."""
        sent = self._take(batch, 0)
        peer = self.passing.peer[np.searchsorted(self.passing.receives, batch.rows[0])]
        chips = sent.reshape(len(sent), self.roles, -1)[:, self.sources[int(peer)]]
        self.values.bytes[batch.out] = chips.reshape(sent.shape)
        self._damage(batch.rows, batch.out.start)

    def _damage(self, rows: Ints, start: int) -> None:
        """Errors in what ``rows`` received, which is in the bytes table from ``start`` on."""
        for row, role in self.damaged or ():
            for i in np.flatnonzero(rows == row):
                lanes = self.code.chip.lanes
                self.values.bytes[start + i, role * lanes : (role + 1) * lanes] |= DAMAGE

    # VXM

    def _alu(self, batch: Batch) -> None:
        a, b = (self._number(batch, i) for i in range(2))
        meaning = BY_NAME[batch.name].meaning
        assert meaning is not None, f"{batch.name} has no meaning"
        try:
            self.values.words[batch.out] = meaning(a, b)
        except NumericsError:
            if self.damaged is not None:
                self.values.words[batch.out] = 0
                return
            for i, row in enumerate(batch.rows):
                self._alone(meaning, a[i], b[i], int(row))
            raise

    def _alone(self, meaning: Callable[[I32, I32], I32], a: I32, b: I32, row: int) -> None:
        """One instruction of a batch that failed, chip by chip, to name both."""
        width = self.roles * self.code.chip.lanes
        chips = [np.broadcast_to(x, width).reshape(self.roles, -1) for x in (a, b)]
        for role in range(self.roles):
            try:
                meaning(chips[0][role], chips[1][role])
            except NumericsError as error:
                raise NumericsError(error.what, where=self._where(row, role), fix=error.fix) from error

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
        self.values.words[batch.out] = kernels.activate(vectors, array, self.roles)

    def _activate_fp16(self, batch: Batch) -> None:
        vectors, array = self._take(batch, 0), self._take(batch, 1)
        try:
            self.values.words[batch.out] = kernels.activate_fp16(vectors, array, self.roles)
        except kernels.BadMap as bad:
            if self.damaged is None:
                raise NumericsError(bad.what, where=self._where(int(batch.rows[bad.index]), bad.role)) from bad
            self.values.words[batch.out] = 0

    def _accumulate_fp32(self, batch: Batch) -> None:
        arriving, *held = (self._number(batch, i) for i in range(len(batch.operands)))
        total = arriving.view(np.float32)
        self.values.words[batch.out] = (held[0].view(np.float32) + total if held else total).view(np.int32)

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
            raise self._bad(batch, bad) from bad
        self.values.bytes[batch.out] = out.reshape(-1, out.shape[-1])

    def _bad(self, batch: Batch, bad: kernels.BadMap) -> ProgramError:
        return ProgramError(bad.what, where=self._where(int(batch.rows[bad.index]), bad.role))

    def _shift(self, batch: Batch) -> None:
        amount, north = (int(self.code.field[name][batch.rows[0]]) for name in ("amount", "north"))
        self._put(batch, kernels.shift, self.roles, amount, bool(north))

    def _permute(self, batch: Batch) -> None:
        self._put(batch, kernels.permute, self.roles)

    def _distribute(self, batch: Batch) -> None:
        self._put(batch, kernels.distribute, self.roles)

    def _rotate(self, batch: Batch) -> None:
        self._put(batch, kernels.rotate)

    def _transpose(self, batch: Batch) -> None:
        self._put(batch, kernels.transpose)

    # MEM in slices with gathers or scatters: words and their writers are known only now

    def _read(self, batch: Batch) -> None:
        words = np.repeat(self.code.field["address"][batch.rows][:, None], self.writer.shape[2], axis=1)
        self.values.bytes[batch.out] = self._words(batch.rows, words)

    def _gather(self, batch: Batch) -> None:
        self.values.bytes[batch.out] = self._words(batch.rows, self._addresses(batch, 0))

    def _words(self, rows: Ints, words: Ints) -> U8:
        """Contents of words [n, roles * superlanes], -1: zeros; checks that they are there and claimed."""
        slices, lane = self.code.number[rows][:, None], np.arange(words.shape[1])
        part = words >= 0
        self._require_written(rows, self.state.written[slices, words, lane] | ~part)
        writer = self.writer[np.searchsorted(self.memory.dynamic, slices), words, lane].astype(np.int64) - 1
        landed = self.code.cycle[writer] + self.code.latency[writer] <= self.code.cycle[rows][:, None]
        early = part & (writer >= 0) & ~landed
        self._refuse(rows, early, "the write of this word is still in flight")
        if self.expected:
            claimed, either = self.expected.writer[rows][:, None], self.expected.or_resident[rows][:, None]
            wrong = part & (writer != claimed) & ~(either & (writer == RESIDENT))
            if wrong.any():
                i, k = np.argwhere(wrong)[0]
                where = self._where(int(rows[i]), int(k) * self.roles // words.shape[1])
                claims.refuse(self.code, where, 0, int(claimed[i, 0]), int(writer[i, k]))
        tiles = self.state.sram.reshape(*self.state.sram.shape[:2], words.shape[1], -1)
        data = tiles[slices, words, lane]
        return np.where(part[..., None], data, np.uint8(0)).reshape(len(rows), -1)

    def _addresses(self, batch: Batch, operand: int) -> Ints:
        code, rows = self.code, batch.rows
        maps = self._take(batch, operand)
        try:
            pair, base = code.field["pair"][rows], code.field["address"][rows]
            words = kernels.addresses(base, maps, self.roles, pair, code.chip.words_per_slice)
        except kernels.BadMap as bad:
            raise self._bad(batch, bad) from bad
        other = self.partner[rows]
        clash = (banks(code, words) == banks(code, code.field["address"])[other][:, None]) & (words >= 0)
        clash &= (other >= 0)[:, None]
        self._refuse(rows, clash, "bank conflict: its map meets the bank of the access beside it")
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
            self.writer[np.searchsorted(self.memory.dynamic, slice_), words[i, part], lane[part]] = row + 1
            self.scattered[int(row)] = words[i]

    def _write(self, batch: Batch) -> None:
        rows = batch.rows
        slices, words = self.code.number[rows], self.code.field["address"][rows]
        self.state.sram[slices, words] = self._take(batch, 0)
        self.state.written[slices, words] = True
        self.writer[np.searchsorted(self.memory.dynamic, slices), words] = rows[:, None] + 1

    def _outputs(self, expected: claims.Expected) -> None:
        """Claimed outputs in tracked slices: the last writer of each word is the claimed one."""
        for output, row in zip(expected.outputs, expected.output_writer.tolist(), strict=True):
            tracked = np.flatnonzero(self.memory.dynamic == output["slice"])
            if not len(tracked):
                continue
            words = self.scattered[row] if output["indirect"] else np.full(self.writer.shape[2], output["address"])
            last = self.writer[tracked[0], words, np.arange(len(words))]
            if ((last != row + 1) & (words >= 0)).any():
                claims.refuse_output(self.code, output, row)
