"""A program in, a folder out; and back.  The same program gives the same bytes.

``manifest.json`` holds what is short (sorted keys), ``resident.safetensors`` where resident vectors lie and the arrays
of their sources, ``segment-<context>.safetensors`` the instruction columns of every queue, the claims, where
tensors lie.  The manifest names the SHA-256 of each other file.  The programs of a system are folders of this kind in
a folder with a manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as unpack_arrays
from safetensors.numpy import save as pack_arrays

from openlpu._base import manifest as manifest_file
from openlpu._base.cores import usable_cores
from openlpu._base.errors import ProgramError
from openlpu._base.manifest import MANIFEST
from openlpu.arch.chip import Chip
from openlpu.arch.group import Group, Way
from openlpu.arch.link import Link
from openlpu.partition.split import Split
from openlpu.place.emplace import Source
from openlpu.schedule.program import (
    CLAIM_OUTPUT,
    CLAIM_PASSED,
    CLAIM_READ,
    Claims,
    Hop,
    Program,
    Resident,
    Rows,
    Segment,
    StageProgram,
    Sweep,
    SystemProgram,
    queue_dtype,
)

FORMAT = "openlpu program 4"
SYSTEM_FORMAT = "openlpu programs 1"
CLAIMS = {"reads": CLAIM_READ, "outputs": CLAIM_OUTPUT, "passed": CLAIM_PASSED}
ROWS = tuple(f.name for f in fields(Rows))
Json = dict[str, Any]
Arrays = Mapping[str, NDArray]


def save(program: Program, folder: Path) -> str:
    """Write ``program`` into ``folder`` (made if absent) and return the SHA-256 of its manifest, which names all."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray] = {}
    resident = []
    for i, item in enumerate(program.resident):
        meta, parts = item.source.pack()
        resident.append({"name": item.name, "source": meta})
        arrays |= {f"{i}.slices": item.slices, f"{i}.addresses": item.addresses}
        arrays |= {f"{i}.source.{key}": value for key, value in parts.items()}
    files = {"resident.safetensors": _pack(arrays)}
    files |= {_segment_file(s.name): _pack(_segment_arrays(s)) for s in program.segments}
    manifest = {
        "format": FORMAT, "chip": _chip_json(program.chip), "host": list(program.host), "v_rows": program.v_rows,
        "vocab": program.vocab, "requests": program.requests, "resident": resident,
        "segments": [
            {"name": s.name, "context": s.context, "chunk": s.chunk, "cycles": s.cycles,
             "origin": [list(o) for o in s.origin], "queues": list(s.queues), "tensors": list(s.tensors)}
            | ({"sweep": s.number} if isinstance(s, Sweep) else {})
            for s in program.segments
        ],
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    text = json.dumps(manifest, sort_keys=True, indent=1).encode() + b"\n"
    for name, data in (files | {MANIFEST: text}).items():
        (folder / name).write_bytes(data)
    return hashlib.sha256(text).hexdigest()


def load(folder: Path, contexts: Collection[int] | None = None) -> Program:
    """The program in ``folder``, with its segments for these contexts (None: all).

    Raises :class:`ProgramError` naming the file that is missing, damaged or of another format.
    """
    manifest = manifest_file.read(folder / MANIFEST, FORMAT, "there is no program here", "compile the model again")
    arrays = _arrays(folder, "resident.safetensors", manifest)
    parts: list[dict[str, NDArray]] = [{} for _ in manifest["resident"]]
    for name, value in arrays.items():
        number, _, part = name.partition(".")
        parts[int(number)][part.removeprefix("source.")] = value
    resident = []
    for item, own in zip(manifest["resident"], parts, strict=True):
        slices, addresses = own.pop("slices"), own.pop("addresses")
        resident.append(Resident(item["name"], slices, addresses, Source.unpack(item["source"], own)))
    wanted = [entry for entry in manifest["segments"] if contexts is None or entry["context"] in contexts]
    segments = [_segment(folder, manifest, entry) for entry in wanted]
    return Program(
        _chip(manifest["chip"]), tuple(resident), tuple(manifest["host"]), manifest["v_rows"], manifest["vocab"],
        tuple(segments), manifest["requests"],
    )


def save_system(system: SystemProgram, folder: Path) -> str:
    """Write all programs of a system, each into a folder of its own; the SHA-256 of the manifest, which names all."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"stage-{i}" for i in range(len(system.programs))]
    with ThreadPoolExecutor(usable_cores()) as pool:  # hashing and writing leave the interpreter to others
        hashes = list(pool.map(save, [stage.program for stage in system.programs], [folder / name for name in names]))
    programs = [
        {"folder": name, "sha256": digest, "tensor": s.tensor, "ports": list(s.ports), "next": s.next,
         "previous": s.previous}
        for name, digest, s in zip(names, hashes, system.programs, strict=True)
    ]
    manifest = {
        "format": SYSTEM_FORMAT, "split": asdict(system.split), "programs": programs, "stages": list(system.stages),
        "first": list(system.first), "local": asdict(system.local) if system.local else None,
        "hops": [asdict(hop) for hop in system.hops],
    }
    text = json.dumps(manifest, sort_keys=True, indent=1).encode() + b"\n"
    (folder / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def load_system(
    folder: Path, stages: Collection[int] | None = None, contexts: Collection[int] | None = None
) -> SystemProgram:
    """The programs of the system in ``folder``, with the segments of these stages and contexts alone (None: of all).

    Raises :class:`ProgramError` as :func:`load` does.
    """
    fix = "compile the model again"
    m = manifest_file.read(folder / MANIFEST, SYSTEM_FORMAT, "there are no programs here", fix)
    numbers = range(len(m["programs"])) if stages is None else {m["stages"][s] for s in stages}
    programs = []
    for i, p in enumerate(m["programs"]):
        path = folder / p["folder"] / MANIFEST
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != p["sha256"]:
            raise ProgramError("this file is damaged", where=str(path), fix=fix)
        program = load(path.parent, contexts if i in numbers else ())
        programs.append(StageProgram(program, p["tensor"], tuple(p["ports"]), p["next"], p["previous"]))
    hops = tuple(Hop(Link(**hop["link"]), hop["leaves"], hop["arrives"]) for hop in m["hops"])
    local = _group(m["local"]) if m["local"] else None
    return SystemProgram(Split(**m["split"]), tuple(programs), tuple(m["stages"]), tuple(m["first"]), local, hops)


def _group(data: Json) -> Group:
    roles = "source", "leaves", "arrives"
    ways = tuple(Way(way["number"], Link(**way["link"]), *(tuple(way[name]) for name in roles)) for way in data["ways"])
    return Group(ways, *(tuple(map(tuple, data[name])) for name in ("sources", "moves")))


def _chip_json(chip: Chip) -> Json:
    return asdict(chip) | {"latency": [list(item) for item in chip.latency.items()]}  # keeps the file's order


def _chip(data: Json) -> Chip:
    values: Json = {**data, "latency": dict(data["latency"])}
    return Chip(**values)


def _pack(arrays: Arrays) -> bytes:
    return pack_arrays({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})


def _segment_file(name: str) -> str:
    return f"segment-{name}.safetensors"


def _columns(prefix: str, table: NDArray) -> dict[str, NDArray]:
    """A structured array as one array per column."""
    return {f"{prefix}/{name}": table[name] for name in table.dtype.names or ()}


def _table(prefix: str, dtype: np.dtype, arrays: Arrays) -> NDArray:
    names = list(dtype.names or ())
    table = np.zeros(len(arrays[f"{prefix}/{names[0]}"]), dtype)
    for name in names:
        table[name] = arrays[f"{prefix}/{name}"]
    return table


def _segment_arrays(segment: Segment) -> Arrays:
    arrays: dict[str, NDArray] = {}
    for name in CLAIMS:
        arrays |= _columns(f"claims/{name}", getattr(segment.claims, name))
    for name, rows in segment.tensors.items():
        arrays |= {f"tensor/{name}/{part}": getattr(rows, part) for part in ROWS}
    for name, table in segment.queues.items():
        arrays |= _columns(f"queue/{name}", table)
    return arrays


def _segment(folder: Path, manifest: Json, entry: Json) -> Segment:
    arrays = _arrays(folder, _segment_file(entry["name"]), manifest)
    queues = {name: _table(f"queue/{name}", queue_dtype(name), arrays) for name in entry["queues"]}
    claims = Claims(*(_table(f"claims/{name}", dtype, arrays) for name, dtype in CLAIMS.items()))
    tensors = {name: Rows(*(arrays[f"tensor/{name}/{part}"] for part in ROWS)) for name in entry["tensors"]}
    origin = tuple((int(first), str(output)) for first, output in entry["origin"])
    words = entry["context"], queues, tensors, entry["cycles"], claims, origin, entry["chunk"]
    return Sweep(*words, entry["sweep"]) if "sweep" in entry else Segment(*words)


def _arrays(folder: Path, name: str, manifest: Json) -> Arrays:
    """The arrays of one file, after its hash was compared."""
    path = folder / name
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != manifest["sha256"].get(name):
        what = "differs from what the manifest names" if data else "is missing"
        raise ProgramError(f"this file of the program {what}", where=str(path), fix="compile the model again")
    try:
        return unpack_arrays(data)
    except SafetensorError as error:  # the manifest was made for a damaged file
        raise ProgramError(f"not a safetensors file: {error}", where=str(path), fix="compile again") from error
