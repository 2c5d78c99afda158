"""The trace of a program against the Trace Event Format: fields, names, cycles, and no overlap on a track."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np

from openlpu.arch.chip import load_chip
from openlpu.arch.isa import TABLE
from openlpu.schedule import perfetto
from openlpu.schedule.program import Program, queue_dtype
from openlpu.schedule.tracks import ChipRun, Token, tracks

TINY = load_chip("tiny")


def events(path: Path) -> list[dict]:
    """The events, checked against the format: what each phase needs, of which type."""
    trace = json.loads(path.read_text("utf-8"), parse_float=Decimal)
    assert trace["displayTimeUnit"] == "ns" and isinstance(trace["otherData"], dict)
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str) and isinstance(event["args"], dict)
        assert type(event["pid"]) is type(event["tid"]) is int and 0 < event["pid"] < event["tid"] < 2**32
        if event["ph"] == "X":
            assert isinstance(event["cat"], str) and event["ts"] >= 0 and event["dur"] > 0
            for time in (event["ts"], event["dur"]):
                assert round(float(time) * 1000) == time * 1000, "whole nanoseconds, read as the importer reads them"
        else:
            assert event["ph"] == "M" and event["name"] in (
                "process_name", "thread_name", "process_sort_index", "thread_sort_index")
            assert list(event["args"]) == ["sort_index" if "sort" in event["name"] else "name"]
    return trace["traceEvents"]


def by_track(found: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """(process name, thread name) -> spans; every span has both names, and a thread belongs to one process."""
    names = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in found if e["name"].endswith("_name")}
    process = {pid: name for (what, pid, _), name in names.items() if what == "process_name"}
    thread = {tid: (process[pid], name) for (what, pid, tid), name in names.items() if what == "thread_name"}
    out = defaultdict(list)
    for event in found:
        if event["ph"] == "X":
            assert thread[event["tid"]][0] == process[event["pid"]]
            out[thread[event["tid"]]].append(event)
    return out


def test_every_instruction_is_a_span_and_none_overlap(token: Token, program: Program, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    spans = perfetto.write(path, token, {"title": "a token"})
    shown = by_track(events(path))
    assert sum(map(len, shown.values())) == spans
    for track in shown.values():
        ends = [e["ts"] + e["dur"] for e in track]
        assert all(end <= after["ts"] for end, after in zip(ends, track[1:], strict=False)), "spans overlap"
    own = {name: track for (process, name), track in shown.items() if process == "chip 0"}
    got = {(name.split()[0], int(e["ts"] * 1000), e["name"], e["args"]["id"]) for name, t in own.items() for e in t}
    queues = program.segments[0].queues
    want = {(queue, int(row["cycle"]), TABLE[row["op"]].name, int(row["id"])) for queue, rows in queues.items()
            for row in rows}
    assert got == want and len(want) == sum(len(t) for t in own.values())


def test_times_survive_the_importer() -> None:
    """ui.perfetto.dev reads microseconds as doubles and rounds to nanoseconds: of any cycle exactly that cycle."""
    cycles = np.concatenate([np.arange(3000), np.random.default_rng(1).integers(0, 2**40, 3000)]).tolist()
    assert all(round(float(perfetto._time(cycle)) * 1000.0) == cycle for cycle in cycles)


def test_every_track_nests_and_is_named_before_its_spans(token: Token, tmp_path: Path) -> None:
    """What the importer drops or draws askew: a span without a track, out of order, or half inside another."""
    path = tmp_path / "trace.json"
    perfetto.write(path, token, {})
    named: set[tuple[str, int, int]] = set()
    end: dict[int, Decimal] = defaultdict(Decimal)
    for event in events(path):
        if event["ph"] == "M":
            named.add((event["name"], event["pid"], event["tid"]))
            continue
        assert ("thread_name", event["pid"], event["tid"]) in named
        assert any(what == "process_name" and pid == event["pid"] for what, pid, _ in named)
        assert event["ts"] >= end[event["tid"]], "complete events of a thread follow one another"
        end[event["tid"]] = event["ts"] + event["dur"]


def test_spans_name_their_operator_and_result(token: Token, program: Program, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    perfetto.write(path, token, {})
    names = {name for _, name in program.segments[0].origin}
    for event in events(path):
        if event["ph"] == "X" and "id" in event["args"]:
            row = next(i for i in TABLE if i.name == event["name"])
            latency = TINY.latency[row.latency] if row.latency else 0
            assert event["cat"] == row.unit and event["args"]["operator"] in names
            assert event["args"]["result"] == int(event["ts"] * 1000) + latency
            assert event["args"]["cycle"] == int(event["ts"] * 1000)


def test_the_critical_path_tiles_the_token(token: Token, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    perfetto.write(path, token, {})
    pieces = next(t for (process, _), t in by_track(events(path)).items() if process == perfetto.PATH)
    assert pieces[0]["ts"] == 0
    for piece, after in zip(pieces, pieces[1:], strict=False):
        assert piece["ts"] + piece["dur"] == after["ts"]
    assert (pieces[-1]["ts"] + pieces[-1]["dur"]) * 1000 == token.cycles


def test_chips_are_processes_and_links_say_where_to(token: Token, tmp_path: Path) -> None:
    one = token.chips[0]
    sends = np.zeros(2, queue_dtype("c2cw0"))
    sends["cycle"], sends["op"] = [3, 40], next(i.opcode for i in TABLE if i.name == "send")
    first = replace(one, queues={**one.queues, "c2cw0": sends}, peers={"c2cw0": "chip 1"})
    second = replace(one, name="chip 1", start=1000, peers={"c2cw1": "chip 0"}, first=5)
    path = tmp_path / "trace.json"
    perfetto.write(path, Token((first, second), token.path), {})
    found = events(path)
    shown = by_track(found)
    assert [e["name"] for e in shown["chip 0", "c2cw0 to chip 1"]] == ["send", "send"]
    assert "c2cw1 to chip 0" in [e["args"].get("name") for e in found], "an idle link has its track too"
    for (process, name), track in shown.items():
        if process == "chip 1":
            alike = shown["chip 0", name]
            assert [e["ts"] - Decimal(1) for e in track] == [e["ts"] for e in alike], "its start is added"
            for here, there in zip(track, alike, strict=True):
                own = there["args"]["operator"].replace("layers.0.", "layers.5.")
                assert here["args"]["operator"] == own.replace("layers.1.", "layers.6."), "layers are the model's"


def test_a_hundred_thousand_instructions(token: Token, tmp_path: Path) -> None:
    queues = {}
    for i in range(TINY.vxm_alus):
        rows = np.zeros(7000, queue_dtype(f"vxm{i}"))
        rows["cycle"], rows["op"] = np.arange(7000), 13
        queues[f"vxm{i}"] = rows
    run = ChipRun("chip 0", TINY, 0, 7000, queues, ((0, 'a "name" to quote'),))
    path = tmp_path / "trace.json"
    assert perfetto.write(path, Token((run,), token.path), {}) == 112_000 + len(token.path)
    shown = by_track(json.loads(path.read_text("utf-8"))["traceEvents"])
    assert len(shown["chip 0", "vxm15"]) == 7000
    assert shown["chip 0", "vxm0"][5]["args"]["operator"] == 'a "name" to quote'


def test_the_two_ports_of_a_slice_share_no_instruction(token: Token) -> None:
    for track in tracks(token.chips[0]):
        assert (np.diff(track.cycle) > 0).all(), track.name
    names = [track.name for track in tracks(token.chips[0])]
    assert len(names) == len(set(names)) == len(TINY.queues) + TINY.slices
