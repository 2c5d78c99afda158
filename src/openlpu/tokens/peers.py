"""Another engine's command and model file in, its speeds out, one block at a time.

A peer is one process, so that loading counts for nothing.  It is stopped (SIGSTOP) between its blocks: what waits,
waits without a core.  It inherits the cores this process may use, and takes as many threads as ours.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

from openlpu._base.errors import BadRequest
from openlpu.tokens.bench import Peer
from openlpu.tokens.bounds import Work

HOST = Path(__file__).with_name("peer_host.py")
LAST = 400  # characters of a failed peer's errors that are shown


class LlamaBench:
    """llama.cpp's ``llama-bench``: prints a line per test, and sleeps a second before the next, where it is stopped."""

    name = "llama-bench"

    def __init__(self, command: Sequence[str], model: Path) -> None:
        self.command, self.model = tuple(command), model
        self.about = {"version": "", "model": model.name}
        self._process: _Process | None = None

    def start(self, work: Work, threads: int, blocks: int) -> None:
        """All tests of this work in one process: the prompt behind a context is run once."""
        self.close()
        tests = ",".join([str(work.tokens)] * blocks)
        prompt, answer = (tests, "0") if work.together else ("0", tests)
        self._process = _Process([
            *self.command, "-m", str(self.model), "-t", str(threads), "-p", prompt, "-n", answer,
            "-d", str(work.context), "-r", "1", "--delay", "1", "-o", "jsonl",
        ])

    def block(self) -> float:
        """Tokens per second of the next test."""
        assert self._process, "a peer is started before its blocks"
        said = self._process.line()
        self.about["version"] = f"{said.get('build_number', 0)} ({said.get('build_commit', 'unknown')})"
        return float(said["avg_ts"])

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.close()
            self._process = None


class Hosted:
    """A library in a Python of its own (OpenVINO GenAI, CTranslate2): ``peer_host.py`` answers a line with a line."""

    def __init__(self, name: str, python: str, model: Path) -> None:
        self.name, self.python, self.model = name, python, model
        self.about = {"version": "", "model": model.name}
        self._process: _Process | None = None
        self._ask: dict[str, Any] = {}

    def start(self, work: Work, threads: int, blocks: int) -> None:
        """Load the model, once; note what to ask for."""
        if not self._process:
            self._process = _Process([self.python, str(HOST), self.name, str(self.model), str(threads)])
            self.about["version"] = self._process.line()["version"]
        self._ask = {"tokens": work.tokens, "context": work.context, "together": work.together}
        self._process.line(self._ask | {"tokens": min(8, work.tokens)})  # what is made at the first use is made now

    def block(self) -> float:
        """Tokens per second of one more run."""
        assert self._process, "a peer is started before its blocks"
        return float(self._process.line(self._ask)["tokens_per_s"])

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.close()
            self._process = None


class _Process:
    """A child that prints JSON lines and is stopped whenever nobody waits for one."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        with ExitStack() as failed:
            self._errors = failed.enter_context(tempfile.TemporaryFile())
            try:  # In a group of its own: if we are killed, the system continues what we stopped, and ends it.
                self._child = failed.enter_context(subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                    process_group=0))
            except OSError as error:
                raise BadRequest(f"cannot start {command[0]}: {error.strerror}", where="against",
                                 fix="give the path of an executable file") from error
            self._child.send_signal(signal.SIGSTOP)
            self._open = failed.pop_all()

    def line(self, ask: dict[str, Any] | None = None) -> dict[str, Any]:
        """Let it run until its next line; ``ask`` is sent first.  Lines that are no JSON object are skipped."""
        asked, said = (cast(IO[str], pipe) for pipe in (self._child.stdin, self._child.stdout))
        self._child.send_signal(signal.SIGCONT)
        try:
            if ask is not None:
                print(json.dumps(ask), file=asked, flush=True)
            for text in said:
                if text.startswith("{"):
                    return json.loads(text)
        except BrokenPipeError:
            pass  # it ended: said below
        finally:
            if self._child.poll() is None:
                self._child.send_signal(signal.SIGSTOP)
        raise BadRequest(f"{shlex.join(self.command[:2])} … ended: {self._last_words()}", where="against",
                         fix="run the peer by itself, then give the command that works")

    def _last_words(self) -> str:
        self._child.wait()
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-LAST:].strip() or f"status {self._child.returncode}"

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self._child.kill()
        self._open.close()


def peer(text: str, model: Path | None) -> Peer:
    """A peer from the command line's words: ``llama-bench=COMMAND`` with ``model``, ``openvino=PYTHON:MODEL`` or
    ``ctranslate2=PYTHON:MODEL``.  Raises :class:`~openlpu._base.errors.BadRequest` for anything else."""
    name, _, rest = text.partition("=")
    if name == "llama-bench" and rest:
        if model is None:
            raise BadRequest("llama-bench needs a model of its own", where="against", fix="add --peer-model FILE.gguf")
        return LlamaBench(shlex.split(rest), _existing(model))
    if name in ("openvino", "ctranslate2") and ":" in rest:
        python, _, where = rest.partition(":")
        return Hosted(name, python, _existing(Path(where)))
    raise BadRequest(f"'{text}' names no peer", where="against", fix="llama-bench=PATH with --peer-model FILE, "
                     "openvino=PYTHON:MODEL or ctranslate2=PYTHON:MODEL")


def _existing(model: Path) -> Path:
    if not model.exists():
        raise BadRequest(f"there is no model {model}", where="against", fix="name a model of the peer's")
    return model
