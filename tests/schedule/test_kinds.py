"""Kinds of stages: shared by processes, or scheduled bucket by bucket, they have the same programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from random_models import BASE, LLAMA, random_graph

from openlpu._base import text
from openlpu._base.errors import DoesNotFit, OpenLpuError
from openlpu._base.processes import Workers
from openlpu.arch.system import load_system
from openlpu.numerics.scheme import Scheme
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.schedule.kinds import Programs
from openlpu.schedule.system import cables, schedule_system

SYSTEM = load_system("tiny-node")
GRAPH = random_graph(replace(BASE, layers=3), LLAMA, Scheme())
SPLIT = Split(2, 2)


def made(programs: Programs, contexts: tuple[int, ...]) -> str:
    program = schedule_system(shard(GRAPH, SPLIT), SYSTEM.chip, *cables(SYSTEM, SPLIT), contexts=contexts,
                              programs=programs)
    return text.dump(program)


def in_order(function: Callable, pieces: list) -> list:
    with Workers(2) as workers:
        return list(workers.in_order(function, pieces))


def refuse(what: str) -> None:
    """Raise an error of the kind that place and schedule raise."""
    print(what)
    raise DoesNotFit(what, where="here", fix="there")


def test_processes_and_steps_change_no_program() -> None:
    want = made(Programs(SYSTEM.chip), (32, 64))
    with Workers(2) as workers:
        assert made(Programs(SYSTEM.chip, workers=workers), (32, 64)) == want
        steps = Programs(SYSTEM.chip, workers=workers)
        first = made(steps, (32,))
        assert first != want and made(steps, (32, 64)) == want and made(steps, (32, 64)) == want
        assert made(steps, (32,)) == first, "who asks for fewer has no more"


def test_an_error_comes_back_from_a_process() -> None:
    with pytest.raises(DoesNotFit, match="here: one\n  fix: there") as error:
        in_order(refuse, ["one", "two"])
    assert (error.value.what, error.value.where, error.value.fix) == ("one", "here", "there")


def test_a_process_that_ends_is_named() -> None:
    with pytest.raises(OpenLpuError, match="ended with status 3\n  fix: "):
        in_order(os._exit, [3, 3])


def test_a_bug_in_a_process_shows_its_lines() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        in_order(eval, ["1 / 0", "1"])
    assert "in <module>" in error.value.__notes__[0]


def test_who_is_interrupted_waits_for_no_process() -> None:
    """Pieces under way are of no use to anyone then."""
    before, began = signal.signal(signal.SIGALRM, signal.default_int_handler), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_order(time.sleep, [20, 20, 20])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 10


BUSY = """
from openlpu._base.processes import Workers
with Workers(2) as workers:
    list(workers.in_order(eval, ["print('at work', flush=True) or __import__('time').sleep(60)"] * 2))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no signal that nobody can catch")
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_processes_end_with_the_one_that_started_them(end: str) -> None:
    """Whatever ends it: they hold its standard error, which ends when the last of them has ended."""
    parent = subprocess.Popen([sys.executable, "-c", BUSY], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert parent.stderr
    said = b""
    while said.count(b"at work") < 2:
        said += os.read(parent.stderr.fileno(), 100) or pytest.fail("it ended by itself")
    parent.send_signal(getattr(signal, end))
    parent.communicate(timeout=10)
