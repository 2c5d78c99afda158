"""A compiled model in, one folder out; and back.

``manifest.json`` names the model, the numerics, the layout, cycles per context bucket and the SHA-256 of every other
file; ``graph.json`` and ``params.safetensors`` are the integer graph, ``program/`` the instruction columns
(:mod:`openlpu.schedule.program_file`), and the tokenizer's files lie beside them.  The same model gives the same
bytes, on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from openlpu._base import manifest as manifest_file
from openlpu._base.errors import ProgramError
from openlpu._base.manifest import new_folder, sha256
from openlpu.arch import truepoint
from openlpu.arch.encoding import instruction_bytes
from openlpu.graph import file as graph_file
from openlpu.graph.ir import Graph
from openlpu.schedule import program_file
from openlpu.schedule.program import Program

FORMAT = "openlpu model 1"


@dataclass(frozen=True)
class Bundle:
    """A compiled model: its integer graph and program, and what the manifest says of them."""

    graph: Graph
    program: Program
    manifest: dict[str, Any]


def save(
    folder: Path, graph: Graph, program: Program, *, model: str, scheme: str, texts: Mapping[str, bytes]
) -> dict[str, Any]:
    """Write the folder (complete or not at all) and return its manifest; ``texts`` are the tokenizer's files."""
    with new_folder(folder) as made:
        program_file.save(program, made / "program")
        words, arrays = graph_file.pack(graph)
        save_file(arrays, made / "params.safetensors")
        (made / "graph.json").write_text(json.dumps(words, sort_keys=True, indent=1) + "\n", "utf-8")
        for name, content in texts.items():
            (made / name).write_bytes(content)
        manifest = _manifest(made, graph, program, model, scheme)
        manifest_file.write(made, manifest)
    return manifest


def load(folder: Path) -> Bundle:
    """The compiled model in a folder; every file's hash is compared first.  Raises :class:`ProgramError`."""
    path = folder / "manifest.json"
    fix = "name a folder that `openlpu compile MODEL -o DIR` wrote"
    manifest = manifest_file.read(path, FORMAT, "there is no compiled model here", fix)
    if manifest["truepoint"] != truepoint.VERSION:
        what = f"made for numerics version {manifest['truepoint']}; this is version {truepoint.VERSION}"
        raise ProgramError(what, where=str(path), fix="compile the model again")
    for name, digest in manifest["sha256"].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            what = "differs from what the manifest names" if (folder / name).is_file() else "is missing"
            raise ProgramError(f"this file {what}", where=str(folder / name), fix="compile the model again")
    words = json.loads((folder / "graph.json").read_bytes())
    graph = graph_file.unpack(words, load_file(folder / "params.safetensors"))
    return Bundle(graph, program_file.load(folder / "program"), manifest)


def _manifest(made: Path, graph: Graph, program: Program, model: str, scheme: str) -> dict[str, Any]:
    files = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
    return {
        "format": FORMAT, "model": model, "scheme": scheme, "truepoint": truepoint.VERSION,
        "architecture": graph.config.architecture, "chip": program.chip.name, "clock": "cycles",
        "cycles_per_token": {str(s.context): s.cycles for s in program.segments},
        "instruction_bytes": {str(s.context): instruction_bytes(s.queues) for s in program.segments},
        "layout": {
            item.name: {"rows": len(item.addresses), "planes": item.slices.shape[1], "slice": int(item.slices[0, 0]),
                        "address": int(item.addresses[0])}
            for item in program.resident
        },
        "sha256": {name: sha256(made / name) for name in files},
    }
