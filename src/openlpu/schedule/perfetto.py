"""A token in, a trace that https://ui.perfetto.dev opens out: the JSON of the Trace Event Format.

A chip is a process, a queue or link a thread, an instruction a complete event (``ph`` X) of one cycle, the one in
which it is dispatched.  **One cycle is one nanosecond** of trace time: the format counts microseconds, so cycle 1234
is written ``1.234``, exactly.  The critical path of the token is a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openlpu.arch.isa import TABLE
from openlpu.schedule.tracks import ChipRun, Token, Track, latencies, tracks

PATH = "critical path"
SPAN = '{"ph": "X"'  # how the line of a span begins
THREADS = 10_000  # more than a chip has queues, so that thread ids are unique over all chips


def write(path: Path, token: Token, about: Mapping[str, Any]) -> int:
    """Write the trace, line by line, and return how many spans it has; ``about`` goes into its metadata."""
    spans, comma = 0, ""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        head = json.dumps({"displayTimeUnit": "ns", "otherData": {**about, "1 ns of trace time": "1 cycle"}})
        file.write(head[:-1] + ', "traceEvents": [\n')
        for line in _lines(token):
            file.write(comma + line)
            comma = ",\n"
            spans += line.startswith(SPAN)
        file.write("\n]}\n")
    return spans


def _lines(token: Token) -> Iterator[str]:
    """Every event of the trace, one a line."""
    yield from _named(1, 0, "process", PATH)
    yield from _named(1, 1, "thread", f"what the {token.what} waits for")
    for piece in token.path:
        words = {"name": piece.operator, "cat": piece.kind, "args": {"what": piece.kind, "cycles": piece.cycles}}
        yield f"{_front(1, 1, piece.start, piece.cycles)}, {json.dumps(words)[1:]}"
    for pid, run in enumerate(token.chips, 2):
        yield from _named(pid, 0, "process", run.name)
        for thread, track in enumerate(tracks(run), 1):
            peer = run.peers.get(track.name)
            if len(track.cycle) or peer:
                yield from _named(pid, thread, "thread", f"{track.name} to {peer}" if peer else track.name)
                yield from _spans(run, track, pid, thread)


def _spans(run: ChipRun, track: Track, pid: int, thread: int) -> Iterator[str]:
    """The instructions of a track.  Only numbers differ from line to line, so words are quoted once."""
    latency = latencies(run.chip)
    operators = [json.dumps(name) for name in run.operators]
    names = [f'"name": "{i.name}", "cat": "{i.unit}"' for i in TABLE]
    columns = (track.cycle.tolist(), track.op.tolist(), track.number.tolist(), track.operator.tolist())
    for cycle, op, number, operator in zip(*columns, strict=True):
        start = run.start + cycle
        yield (f'{_front(pid, thread, start, 1)}, {names[op]}, "args": {{"operator": {operators[operator]}, '
               f'"cycle": {start}, "result": {start + latency[op]}, "id": {number}}}}}')


def _front(pid: int, thread: int, start: int, cycles: int) -> str:
    """The beginning of a span's event: where, and when."""
    return f'{SPAN}, "pid": {pid}, "tid": {pid * THREADS + thread}, "ts": {_time(start)}, "dur": {_time(cycles)}'


def _time(cycles: int) -> str:
    """Nanoseconds as the format's microseconds."""
    return f"{cycles // 1000}.{cycles % 1000:03}"


def _named(pid: int, thread: int, what: str, name: str) -> Iterator[str]:
    """Metadata events: the name of a process or thread, and its place among the others."""
    at = {"ph": "M", "pid": pid, "tid": pid * THREADS + thread}
    yield json.dumps(at | {"name": f"{what}_name", "args": {"name": name}})
    order = pid if what == "process" else thread
    yield json.dumps(at | {"name": f"{what}_sort_index", "args": {"sort_index": order}})
