"""A token on chips in; one self-contained page that shows it out: map, timeline, SRAM, time, energy, splits.

The page is six scripts, a style sheet and the data, in one file that needs no network.  Data are columns:
little-endian arrays in base64.  Whatever a picture adds up, it adds up from them.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.energy import FJ_PER_JOULE
from openlpu.arch.isa import TABLE, unit_of_queue
from openlpu.place.homes import Resident
from openlpu.schedule.joules import energy
from openlpu.schedule.tracks import WRITES, ChipRun, Token, interval, latencies, tracks

SCRIPTS = ("data.js", "breakdown.js", "timeline.js", "moving.js", "maps.js", "page.js")
TEMPORARY = "temporary"
Json = dict[str, Any]


def render(token: Token, about: Mapping[str, Any], splits: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page.  ``about``: title, and what stands under it, name by name.  ``splits``: the ways to divide the model
    that were considered, each a mapping with the same keys, the chosen one with ``chosen`` true; none for one chip."""
    assets = files("openlpu.web") / "assets"
    texts = {name: (assets / name).read_text("utf-8") for name in ("page.html", "page.css", *SCRIPTS)}
    data = json.dumps(_data(token, about, splits), separators=(",", ":"), ensure_ascii=False)
    parts = {
        "TITLE": html.escape(str(about["title"])),
        "WHAT": token.what,
        "STYLE": texts["page.css"],
        "SCRIPT": "\n".join(texts[name] for name in SCRIPTS),
        "DATA": data.replace("<", "\\u003c"),  # so that no name can end the element that holds the data
    }
    return re.sub(r"@([A-Z]+)@", lambda place: parts[place[1]], texts["page.html"])


class Pool:
    """What several chips share, each made once: a list, and where in it a thing is."""

    def __init__(self) -> None:
        self.index: dict[Hashable, int] = {}
        self.made: list[Json] = []

    def place(self, key: Hashable, make: Callable[[], Json]) -> int:
        """Where the thing of this key is; it is made where there is none yet."""
        if key not in self.index:
            self.index[key] = len(self.made)
            self.made.append(make())
        return self.index[key]


def _data(token: Token, about: Mapping[str, Any], splits: Sequence[Mapping[str, Any]]) -> Json:
    operators: dict[str, int] = {}
    kinds: dict[str, int] = {}
    programs, memories, chips = Pool(), Pool(), []
    for run in token.chips:
        queues = id(run.queues)
        homes = (queues, *(id(item.addresses) for item in run.resident))  # roles keep other things at the same places
        chips.append({
            "name": run.name, "start": run.start, "cycles": run.cycles, "peers": dict(run.peers),
            "linkSlot": run.link_slot, "first": run.first,
            "program": programs.place(queues, partial(_program, run, operators)),
            "memory": memories.place(homes, partial(_memory, run)),
        })
    path = {
        "start": column([p.start for p in token.path], "<u4"), "cycles": column([p.cycles for p in token.path], "<u4"),
        "kind": column([_index(kinds, p.kind) for p in token.path], "<u2"),
        "operator": column([_index(operators, p.operator) for p in token.path], "<u2"),
    }
    return {
        "about": dict(about), "what": token.what, "cycles": token.cycles, "interval": interval(token.chips),
        "instructions": [[i.name, i.unit] for i in TABLE], "chips": chips, "path": path, "kinds": list(kinds),
        "programs": programs.made, "memories": memories.made, "operators": list(operators),
        "energy": _energy(token), "splits": [dict(row) for row in splits],
    }


def column(values: Sequence[int] | NDArray, dtype: str) -> str:
    """A column of the data: little-endian numbers in base64; no value may be lost."""
    wide = np.asarray(values, np.int64)
    narrow = wide.astype(dtype)
    assert (narrow == wide).all(), f"the column needs more than {dtype}"
    return base64.b64encode(narrow.tobytes()).decode("ascii")


def _index(names: dict[str, int], name: str) -> int:
    return names.setdefault(name, len(names))


def _program(run: ChipRun, operators: dict[str, int]) -> Json:
    chip = run.chip
    index = np.array([_index(operators, name) for _, name in run.origin])
    return {
        "chip": {
            "name": chip.name, "clock": chip.clock_hz, "slices": chip.slices, "words": chip.words_per_slice,
            "lanes": chip.lanes, "positions": chip.positions, "latency": latencies(chip),
        },
        "tracks": [
            {"name": track.name, "unit": track.unit, "position": chip.queue_position(track.name.split()[0]),
             "west": chip.queue_position(track.name.split()[0]) < chip.vxm_position,
             "cycle": column(track.cycle, "<u4"), "op": column(track.op, "<u1"),
             "operator": column(index[track.operator], "<u2")}
            for track in tracks(run)
        ],
    }


def _memory(run: ChipRun) -> Json:
    """The rows of SRAM in use as runs: ``count`` rows of a slice from ``start`` on hold the thing ``name``."""
    words = run.chip.words_per_slice
    names = [item.name for item in run.resident]
    keys, owner = _resident_rows(run.resident, words)
    written = _written_rows(run, words)
    temporary = np.setdiff1d(written, keys)
    keys = np.concatenate([keys, temporary])
    owner = np.concatenate([owner, np.full(len(temporary), len(names))])
    order = np.lexsort((keys, owner))
    keys, owner = keys[order], owner[order]
    first = np.flatnonzero(np.diff(keys, prepend=-2) != 1)
    first = np.union1d(first, np.flatnonzero(np.diff(owner, prepend=-1)))
    first = np.union1d(first, np.flatnonzero(keys % words == 0))
    count = np.diff(np.append(first, len(keys)))
    return {
        "names": [*names, TEMPORARY], "slice": column(keys[first] // words, "<u2"),
        "start": column(keys[first] % words, "<u2"), "count": column(count, "<u2"),
        "name": column(owner[first], "<u4"),
    }


def _resident_rows(resident: Sequence[Resident], words: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(slice * words + address, index of the item) of every row that outlives the token."""
    keys = [(item.slices.astype(np.int64) * words + item.addresses[:, None]).reshape(-1) for item in resident]
    owner = np.repeat(np.arange(len(keys)), [len(part) for part in keys])
    return (np.concatenate(keys) if keys else np.zeros(0, np.int64)), owner.astype(np.int64)


def _written_rows(run: ChipRun, words: int) -> NDArray[np.int64]:
    """The rows that instructions with an address of their own write."""
    found = [np.zeros(0, np.int64)]
    for queue, rows in run.queues.items():
        if unit_of_queue(queue) == "mem":
            address = rows["address"][rows["op"] == WRITES[0]].astype(np.int64)
            found.append(int(queue[3:]) * words + address)
    return np.unique(np.concatenate(found))


def _energy(token: Token) -> Json:
    """Joules per token by what was worked, alone and with the pipeline full."""
    spent = energy(token.chips)
    return {
        "process": spent.process,
        "dynamic": {name: value / FJ_PER_JOULE for name, value in spent.dynamic.items()},
        "staticAlone": spent.static_alone / FJ_PER_JOULE, "staticFull": spent.static_full / FJ_PER_JOULE,
        "wattsAlone": spent.watts_alone, "wattsFull": spent.watts_full,
    }
