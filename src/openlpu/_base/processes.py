"""Independent pieces of work in, their results out in the order of the pieces, from processes that share the work.

Each process is a new interpreter that knows this one's module path and nothing else: threads do no harm to it, and the
script that was started is not run again.  Function, pieces and results are pickled.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from traceback import format_exc
from typing import Any, TypeVar

from openlpu._base.errors import OpenLpuError

T = TypeVar("T")
R = TypeVar("R")

SERVE = "import sys; sys.path[:] = sys.argv[1:]; from openlpu._base.processes import serve; serve()"


def in_order(
    function: Callable[[T], R], pieces: Sequence[T], processes: int, done: Callable[[int, R], None] | None = None
) -> list[R]:
    """``function``, which a module has by its name, of each piece; pieces are begun in their order.

    ``done`` hears of each result, with the number of its piece, when it is there.  With one process it is this one.
    The error of the first piece that has one is raised, and
    :class:`~openlpu._base.errors.OpenLpuError` where a process was ended from outside.
    """
    count, done = min(processes, len(pieces)), done or _unheard
    if count < 2:
        results = []
        for number, piece in enumerate(pieces):
            results.append(function(piece))
            done(number, results[-1])
        return results
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    started: list[subprocess.Popen[bytes]] = []

    def ask(piece: T) -> R:
        process = idle.get()
        try:
            return _ask(process, function, piece)
        finally:
            idle.put(process)

    try:
        with ThreadPoolExecutor(count) as pool:
            try:
                for _ in range(count):
                    started.append(_start())
                    idle.put(started[-1])
                return _results([pool.submit(ask, piece) for piece in pieces], done)
            finally:
                for process in started:  # now: the pool waits for its threads, and they for answers
                    process.kill()
    finally:
        for process in started:
            process.communicate()


def _results(futures: list[Future[R]], done: Callable[[int, R], None]) -> list[R]:
    """All of them, or the error of the first that has one; nothing is begun after an error."""
    try:
        for future in as_completed(futures):
            if future.exception():
                break
            done(futures.index(future), future.result())
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _unheard(number: int, result: object) -> None:
    """Nobody waits for single results."""


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SERVE, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(process: subprocess.Popen[bytes], function: Callable[[T], R], piece: T) -> R:
    assert process.stdin and process.stdout, "both are pipes"
    try:
        pickle.dump((function, piece), process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        result, error = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        raise OpenLpuError(f"a process that shared the work ended with status {process.wait()}",
                           where=f"process {process.pid}", fix="if memory ran out, leave it more") from None
    if error is not None:
        raise error
    return result


def serve() -> None:
    """Answer what comes on standard input until it ends; what is printed goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked gets it too, and ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            function, piece = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = function(piece), None
        except Exception as error:
            if not isinstance(error, OpenLpuError):  # a bug, which lies in lines that the asker does not see
                error.add_note(format_exc())
            answer = None, error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
