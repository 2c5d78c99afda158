"""The threads of the CPU target: every tile once and in order, whoever is taken off a core, asleep or on the bench."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from random_models import CASES, random_graph, same, tokens

from openlpu.target.base import Chunk
from openlpu.target.cpu import path as paths
from openlpu.target.cpu import run as cpu
from openlpu.target.cpu import waiting
from openlpu.target.cpu.crew import Crew, Entry
from openlpu.target.cpu.emit import Function
from openlpu.target.cpu.kernels import PARAMS, team_text
from openlpu.target.cpu.native import Module
from openlpu.target.cpu.waiting import MS, PENALTY_AT, PLAYERS_AT, RETURN_AT, TEAM_BYTES

STAGES = (1, 8, 3, 1, 1, 40, 2, 16)  # tiles


def _tally() -> Function:
    """A kernel that counts: its tile in its own cell, and a violation if the stage before it is not complete.

    Arguments: number, own cells, the stage's total, the total before it, what that must be, violations, and
    nanoseconds that tile 0 sleeps.
    """
    fn = Function("tally", "void", PARAMS)
    args, tile = fn.params["args"], fn.params["tile"]
    cells, total, before, want, wrong, pause = (args.at(8 * i).load("ptr", 8) for i in range(1, 7))
    add = "atomicrmw add ptr {}, i64 1 seq_cst"
    with fn.when(before.load("i64", 8).compare("ne", want.load("i64", 8))):
        fn.define("i64", add.format(wrong.ref))
    with fn.when(tile.compare("eq", 0)):
        moment = fn.slot("<2 x i64>").pointer
        moment.at(8).store(pause.load("i64", 8), 8)
        fn.call("i32", "@nanosleep", moment, moment)
    fn.define("i64", add.format(cells.at(tile * 8).ref))
    fn.define("i64", add.format(total.ref))
    fn.line("ret void")
    return fn


class Tally:
    """A crew of ``threads`` whose stages only count."""

    def __init__(self, threads: int) -> None:
        path = paths.choose("portable")
        self.module = Module(_tally().text() + team_text(path), path)
        self.header = np.zeros(32, np.int32)
        self.header[:2] = 1
        self.cells = [np.zeros(tiles, np.int64) for tiles in STAGES]
        self.totals, self.wants = np.zeros(len(STAGES) + 1, np.int64), np.zeros(len(STAGES) + 1, np.int64)
        self.wrong, self.pause = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.args, entries = [], []
        for i, tiles in enumerate(STAGES):
            before, want = (words[i : i + 1].ctypes.data for words in (self.totals, self.wants))
            words = (i, self.cells[i].ctypes.data, before + 8, before, want, self.wrong.ctypes.data,
                     self.pause.ctypes.data)
            self.args.append(np.array(words, np.int64))
            entries.append(Entry(self.module.address("tally"), self.args[-1].ctypes.data, tiles, 0))
        self.steps, self.crew = 0, Crew(self.module, entries, self.header.ctypes.data, 4096, threads)

    def step(self, pause: int = 0) -> None:
        """One step, in which tile 0 of every stage sleeps ``pause`` ns; checks what it did."""
        self.steps += 1
        self.wants[1:] = np.array(STAGES) * self.steps
        self.pause[0] = pause
        self.crew.run()
        assert self.wrong[0] == 0, "a stage began before the one before it was complete"
        assert all((cells == self.steps).all() for cells in self.cells), "every tile once"


def _in_time(work, seconds: float = 60) -> None:
    """Run ``work``; a deadlock fails the test instead of stopping it."""
    failures = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the threads wait for one another"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_tile_once(threads):
    """Back to back, then with pauses around the time after which workers sleep: nobody misses a wake or a close."""
    def work() -> None:
        rng = random.Random(threads)
        tally = Tally(threads)
        for _ in range(300):
            tally.step()
        for _ in range(150):
            time.sleep(rng.choice((0, 0.0003, 0.0006, 0.0015, 0.003)))
            tally.step(rng.choice((0, 0, 0, 100_000)))
        tally.crew.close()

    _in_time(work)


def test_closing_at_any_moment():
    """Right after the start, in the middle of spinning, asleep."""
    def work() -> None:
        for pause in (0, 0, 0.0002, 0.0005, 0.001, 0.01):
            tally = Tally(4)
            tally.step()
            time.sleep(pause)
            tally.crew.close()

    _in_time(work)


def test_a_worker_goes_to_the_bench_and_comes_back():
    """A step whose tiles are held up again and again runs with fewer threads, later ones with all of them."""
    def work() -> None:
        tally = Tally(2)
        tally.step()
        deadline = time.monotonic() + 20
        while tally.crew.players == 2 and time.monotonic() < deadline:
            tally.step(5 * MS)
        assert tally.crew.players == 1
        while tally.crew.players == 1 and time.monotonic() < deadline:
            time.sleep(0.005)
            tally.step()
        assert tally.crew.players == 2
        while tally.crew.players == 2 and time.monotonic() < deadline:
            tally.step(5 * MS)
        tally.crew.close()  # also from the bench a worker goes home

    _in_time(work)


@pytest.fixture
def strikes():
    """A team of four, and its policy as functions of explicit times."""
    wrapper = "define void @poke(ptr %team, i64 %now) {\ncall void @strike(ptr %team, i64 %now)\nret void\n}\n" \
        "define void @look(ptr %team) {\ncall void @recall(ptr %team)\nret void\n}\n"
    path = paths.choose("portable")
    module = Module(team_text(path) + wrapper, path)
    memory = np.zeros(TEAM_BYTES + 64, np.uint8)
    start = -memory.ctypes.data % 64
    words = memory[start : start + TEAM_BYTES].view(np.int64)
    words[waiting.PLAN_AT // 8 + 5] = 4
    address = memory.ctypes.data + start
    module.function("prepare", ctypes.c_void_p)(address)
    poke, look = module.function("poke", ctypes.c_void_p, ctypes.c_int64), module.function("look", ctypes.c_void_p)
    yield lambda now: poke(address, now), lambda: look(address), words
    module.close()


def test_only_what_repeats_is_a_reason(strikes):
    """A single stall, and several threads that notice the same one, bench nobody."""
    strike, _, words = strikes
    for now in (1000, 2000, 3000):
        for moment in (0, 0.3, 0.6):
            strike(int((now + moment) * MS))
    assert words[PLAYERS_AT // 8] == 4


def test_the_longer_it_goes_on_the_longer_the_bench(strikes):
    """Each repetition sends one more, for twice as long up to a second; the calling thread always plays."""
    strike, _, words = strikes
    strike(now := 1000 * MS)
    seen = []
    for _ in range(8):
        strike(now := now + 10 * MS)
        seen.append((int(words[PLAYERS_AT // 8]), (int(words[RETURN_AT // 8]) - now) // MS))
    assert seen == [(3, 20), (2, 40), (1, 80), (1, 160), (1, 320), (1, 640), (1, 1000), (1, 1000)]
    strike(now := now + 1100 * MS)
    strike(now := now + 10 * MS)
    assert int(words[RETURN_AT // 8]) - now == 20 * MS, "after a quiet time it starts from the beginning"


def test_workers_return_one_by_one(strikes):
    """Each when the penalty is over, and a strike right after that counts as a repetition."""
    strike, recall, words = strikes
    words[PLAYERS_AT // 8], words[RETURN_AT // 8], words[PENALTY_AT // 8] = 2, 0, 1000 * MS
    recall()
    assert words[PLAYERS_AT // 8] == 3 and words[RETURN_AT // 8] > time.monotonic_ns()
    recall()
    assert words[PLAYERS_AT // 8] == 3, "the next one waits"
    strike(time.monotonic_ns() + 10 * MS)
    assert words[PLAYERS_AT // 8] == 2


def test_steps_of_several_threads_run_one_after_another(monkeypatch):
    """A step's rows lie in one header: a second thread waits for its turn."""
    graph = random_graph(*CASES["tied"])
    target, inside, overlaps = cpu.load(graph, threads=1), [], []
    run = target._crew.run

    def slow() -> None:
        inside.append(1)
        overlaps.append(len(inside))
        time.sleep(0.002)
        run()
        inside.pop()

    monkeypatch.setattr(target._crew, "run", slow)
    ids = tokens(6, graph.config)
    want = [target.run([Chunk(0, 0, ids[: i + 1])]) for i in range(len(ids))]
    got: dict[int, object] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: target.run([Chunk(0, 0, ids[: i + 1])])}))
               for i in range(len(ids))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(overlaps) == 1 and all(same(got[i], want[i]) for i in range(len(ids)))
    target.close()


FORKED = """
import ctypes, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from random_models import CASES, random_graph, same, tokens
from openlpu.target.base import Chunk
from openlpu.target.cpu import run as cpu
from openlpu.target.cpu.waiting import MUTEX_AT

graph = random_graph(*CASES["tied"])
target, ids = cpu.load(graph, threads=3), tokens(9, graph.config)
want = target.run([Chunk(0, 0, ids)])
time.sleep(0.05)  # the workers sleep
mutex, libc = ctypes.c_void_p(target._crew._team + MUTEX_AT), ctypes.CDLL(None)
libc.pthread_mutex_lock(mutex)  # as a worker does on its way to sleep
child = os.fork()
if not child:
    signal.alarm(20)
    right = all(same(target.run([Chunk(0, 0, ids)]), want) for _ in range(50))
    right = right and all(worker.is_alive() for worker in target._crew._workers)
    target.close()
    os._exit(0 if right else 1)
libc.pthread_mutex_unlock(mutex)
assert os.waitpid(child, 0)[1] == 0, "the child ended otherwise"
assert same(target.run([Chunk(0, 0, ids)]), want)
target.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process forks")
def test_a_forked_process_has_workers_of_its_own():
    """Also where a worker held the lock when it was left behind."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED, os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


SPIN = "import os, time\nos.sched_setaffinity(0, {%d})\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process is pinned to a core")
def test_the_same_bits_beside_a_busy_process():
    """More threads than cores, one core taken by somebody else: threads are descheduled wherever they are."""
    graph = random_graph(*CASES["head norms"])
    ids = tokens(40, graph.config)
    alone = cpu.load(graph, threads=1)
    want = [alone.run([Chunk(0, i, ids[i : i + 1])]) for i in range(len(ids))]
    alone.close()
    core = min(os.sched_getaffinity(0))
    busy = subprocess.Popen([sys.executable, "-S", "-c", SPIN % core])
    for threads in (2, 5):
        target, turns, end = cpu.load(graph, threads=threads), 0, time.monotonic() + 0.7
        while time.monotonic() < end or not turns:
            assert all(same(target.run([Chunk(0, i, ids[i : i + 1])]), want[i]) for i in range(len(ids)))
            turns += 1
        assert same(target.run([Chunk(0, 0, ids)]), want[-1])
        target.close()
    busy.kill()
    busy.wait()
