"""Independent pieces of work in, their results out in the order of the pieces, from processes that share the work.

Each process is a new interpreter that knows this one's module path and nothing else: threads do no harm to it, and the
script that was started is not run again.  Function, pieces and results are pickled.  A process ends with the one that
started it, whatever ends that.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from queue import SimpleQueue
from threading import Thread
from traceback import format_exc
from types import TracebackType
from typing import Any, TypeVar

from openlpu._base.errors import OpenLpuError

T = TypeVar("T")
R = TypeVar("R")

SERVE = "import sys; sys.path[:] = sys.argv[1:]; from openlpu._base.processes import serve; serve()"


class Workers:
    """Up to ``count`` processes, started when there is work for them, which end with the ``with`` block."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def in_order(self, function: Callable[[T], R], pieces: Sequence[T]) -> Generator[R, None, None]:
        """:meth:`as_done` in the order of the pieces."""
        there: dict[int, R] = {}
        turn = 0
        with closing(self.as_done(function, pieces)) as results:
            for number, result in results:
                there[number] = result
                while turn in there:
                    yield there.pop(turn)
                    turn += 1

    def as_done(self, function: Callable[[T], R], pieces: Sequence[T]) -> Generator[tuple[int, R], None, None]:
        """``function``, which a module has by its name, of each piece, with the piece's number, when it is there;
        pieces are begun in their order.

        With one process it is this one.  The error of the first piece that has one is raised, and
        :class:`~openlpu._base.errors.OpenLpuError` where a process was ended from outside; nothing is begun after
        that.  Who asks for no more results waits for none.
        """
        count = min(self.count, len(pieces))
        if count < 2:
            yield from enumerate(map(function, pieces))
            return
        idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

        def ask(piece: T) -> R:
            process = idle.get()
            try:
                return _ask(process, function, piece)
            finally:
                idle.put(process)

        try:
            with ThreadPoolExecutor(count) as pool:
                try:
                    self.started += [_start() for _ in range(count - len(self.started))]
                    for process in self.started:
                        idle.put(process)
                    yield from _results([pool.submit(ask, piece) for piece in pieces])
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    self._kill()  # now: the pool waits for its threads, and they for answers
                    raise
        except BaseException:
            self._end()
            raise

    def _kill(self) -> None:
        for process in self.started:
            process.kill()

    def _end(self) -> None:
        self._kill()
        for process in self.started:
            process.communicate()
        self.started.clear()


def _results(futures: list[Future[R]]) -> Iterator[tuple[int, R]]:
    """All of them with their numbers, or the error of the first that has one."""
    for future in as_completed(futures):
        if future.exception():
            for other in futures[futures.index(future) + 1 :]:
                other.cancel()
            for other in futures:
                other.result()
        yield futures.index(future), future.result()


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
    asked: SimpleQueue[tuple[Callable[[Any], Any], Any]] = SimpleQueue()
    Thread(target=_listen, args=(asked,), daemon=True).start()
    while True:
        function, piece = asked.get()
        answer: tuple[Any, Exception | None]
        try:
            answer = function(piece), None
        except Exception as error:
            if not isinstance(error, OpenLpuError):  # a bug, which lies in lines that the asker does not see
                error.add_note(format_exc())
            answer = None, error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _listen(asked: SimpleQueue[tuple[Callable[[Any], Any], Any]]) -> None:
    """What comes on standard input; where it ends, nobody wants an answer any more, be one under way or not."""
    while True:
        try:
            asked.put(pickle.load(sys.stdin.buffer))
        except EOFError:
            os._exit(0)
