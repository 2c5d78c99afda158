"""Compiled code and a table of stages in, threads that run steps out."""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass

import numpy as np

from openlpu._base.errors import DoesNotFit
from openlpu.target.cpu.layout import MAX_ROWS
from openlpu.target.cpu.memory import Arena, padded
from openlpu.target.cpu.native import Module
from openlpu.target.cpu.team import ENTRY_BYTES, PER_ROW, STAGE_BITS, TILE_BITS
from openlpu.target.cpu.waiting import OWN_BYTES, PLAN_AT, PLAYERS_AT, TEAM_BYTES


@dataclass(frozen=True)
class Entry:
    """One stage of the table: addresses of kernel and arguments, its tiles, flags of ``team``, what waiting
    threads fetch meanwhile (an entry of ``ahead``, or 0)."""

    kernel: int
    args: int
    tiles: int
    flags: int
    ahead: int = 0


class Crew:
    """The calling thread and ``threads - 1`` native workers, walking one table of stages.

    Workers do not survive a fork: a forked process gets its own at its first step.
    """

    def __init__(self, module: Module, entries: list[Entry], step: int, scratch: int, threads: int) -> None:
        assert len(entries) < 1 << STAGE_BITS, "the step has more stages than the team's word can count"
        most = max((e.tiles * (MAX_ROWS if e.flags & PER_ROW else 1) for e in entries), default=0)
        assert most < 1 << TILE_BITS, "a stage has more tiles than a segment's word can count"
        scratch = padded(OWN_BYTES + scratch, 4096)
        self._arena = Arena(TEAM_BYTES + len(entries) * ENTRY_BYTES + 4096 + scratch * threads)
        self._team = self._arena.address + self._arena.take(TEAM_BYTES)
        table = self._arena.take(len(entries) * ENTRY_BYTES)
        rows = [(e.kernel, e.args, e.tiles, e.flags, e.ahead) for e in entries]
        self._arena.view(table, len(rows) * ENTRY_BYTES).view(np.int64)[:] = np.array(rows, np.int64).ravel()
        area = self._arena.take(scratch * threads)
        plan = (self._arena.address + table, len(rows), step, self._arena.address + area, scratch, threads)
        self._arena.view(PLAN_AT, 8 * len(plan)).view(np.int64)[:] = plan
        self._lines = [self._arena.view(area + scratch * i, OWN_BYTES) for i in range(threads)]
        self._run, self._quit, self._prepare = (
            module.function(name, ctypes.c_void_p) for name in ("run_step", "quit", "prepare"))
        self._work = module.function("worker", ctypes.c_void_p, ctypes.c_int64)
        self._begin()

    def _begin(self) -> None:
        """An idle team that nobody has worked in yet, and its workers."""
        self._process = os.getpid()
        for words in (self._arena.view(0, PLAN_AT), *self._lines):
            words[:] = 0
        self._prepare(self._team)
        self._workers: list[threading.Thread] = []
        threads = len(self._lines)
        for i in range(1, threads):
            thread = threading.Thread(target=self._work, args=(self._team, i), daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self.close()
                raise DoesNotFit(f"the system starts no more than {i} of {threads} threads", where="threads",
                                 fix="ask for fewer") from error
            self._workers.append(thread)

    def run(self) -> None:
        """One step of the rows in the header."""
        if self._process != os.getpid():
            self._begin()
        self._run(self._team)

    @property
    def players(self) -> int:
        """Threads that may work now; the others sit on the bench."""
        return int(self._arena.view(PLAYERS_AT, 8).view(np.int64)[0])

    def close(self) -> None:
        """Send the workers home."""
        if self._process == os.getpid():
            self._quit(self._team)
            for thread in self._workers:
                thread.join()
        self._workers = []
