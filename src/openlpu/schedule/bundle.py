"""A compiled model in, one folder out; and back.

``manifest.json`` names the model, the numerics, the layout, cycles per context bucket and the SHA-256 of every other
file; ``graph.json`` and ``params.safetensors`` are the integer graph, ``program/`` the instruction columns
(:mod:`openlpu.schedule.program_file`), of one chip or of a system's stages, and the tokenizer's files lie beside them.
The same model gives the same bytes, on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from openlpu._base import manifest as manifest_file
from openlpu._base.errors import ProgramError
from openlpu._base.manifest import new_folder, sha256
from openlpu.arch import truepoint
from openlpu.arch.encoding import instruction_bytes
from openlpu.arch.link import Link
from openlpu.arch.system import of_spec
from openlpu.arch.system_file import Spec
from openlpu.arch.topology import Shape
from openlpu.graph import file as graph_file
from openlpu.graph.ir import Graph
from openlpu.partition.split import Split
from openlpu.schedule import program_file
from openlpu.schedule.program import Program, SystemProgram
from openlpu.schedule.search import Choice, Found, lined_up

FORMAT = "openlpu model 1"


@dataclass(frozen=True)
class Bundle:
    """A compiled model: its integer graph and program, and what the manifest says of them.

    ``found`` is the program of several chips, with their system and the splits that were considered; None for one chip.
    """

    graph: Graph
    manifest: dict[str, Any]
    chip: Program | None
    found: Found | None

    @property
    def program(self) -> Program:
        """The program of one chip; raises :class:`ProgramError` where there are several."""
        if self.chip is None:
            raise ProgramError("this model was compiled for several chips", where=self.manifest["model"],
                               fix="compile it without --system")
        return self.chip


def save(
    folder: Path, graph: Graph, made: Program | Found, *, model: str, scheme: str, texts: Mapping[str, bytes]
) -> dict[str, Any]:
    """Write the folder (complete or not at all) and return its manifest; ``texts`` are the tokenizer's files."""
    with new_folder(folder) as new:
        if isinstance(made, Program):
            program_file.save(made, new / "program")
        else:
            program_file.save_system(made.program, new / "program")
        words, arrays = graph_file.pack(graph)
        save_file(arrays, new / "params.safetensors")
        (new / "graph.json").write_text(json.dumps(words, sort_keys=True, indent=1) + "\n", "utf-8")
        for name, content in texts.items():
            (new / name).write_bytes(content)
        manifest = _manifest(new, graph, model, scheme)
        manifest |= _chip_words(made) if isinstance(made, Program) else _system_words(made)
        manifest_file.write(new, manifest)
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
    if "system" in manifest:
        program = program_file.load_system(folder / "program")
        return Bundle(graph, manifest, None, _found(manifest, program))
    return Bundle(graph, manifest, program_file.load(folder / "program"), None)


def _manifest(made: Path, graph: Graph, model: str, scheme: str) -> dict[str, Any]:
    files = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
    return {
        "format": FORMAT, "model": model, "scheme": scheme, "truepoint": truepoint.VERSION,
        "architecture": graph.config.architecture, "clock": "cycles",
        "sha256": {name: sha256(made / name) for name in files},
    }


def _chip_words(program: Program) -> dict[str, Any]:
    return {
        "chip": program.chip.name,
        "cycles_per_token": {str(s.context): s.cycles for s in program.segments},
        "instruction_bytes": {str(s.context): instruction_bytes(s.queues) for s in program.segments},
        "layout": {
            item.name: {"rows": len(item.addresses), "planes": item.slices.shape[1], "slice": int(item.slices[0, 0]),
                        "address": int(item.addresses[0])}
            for item in program.resident
        },
    }


def _system_words(found: Found) -> dict[str, Any]:
    """The system as data, so that neither its file nor its name is needed again; and what was considered."""
    program, spec = found.program, found.system.spec
    contexts = [s.context for s in program.stage(0).program.segments]
    return {
        "chip": spec.chip.name,
        "system": {"name": spec.name, "shape": asdict(spec.shape), "links": [asdict(link) for link in spec.links],
                   "epoch": spec.epoch, "dead": sorted(found.system.dead)},
        "cycles_per_token": {str(c): program.cycles(i) for i, c in enumerate(contexts)},
        "cycles_between_tokens": {str(c): program.interval(i) for i, c in enumerate(contexts)},
        "choices": [asdict(choice) for choice in found.choices],
    }


def _found(manifest: Mapping[str, Any], program: SystemProgram) -> Found:
    words, chip = manifest["system"], program.programs[0].program.chip
    links = tuple(Link(**link) for link in words["links"])
    spec = Spec(f"system {words['name']}", words["name"], chip, Shape(**words["shape"]), links, words["epoch"])
    choices = tuple(Choice(**{**c, "split": Split(**c["split"])}) for c in manifest["choices"])
    return Found(program, lined_up(of_spec(spec, words["dead"]), program.split), choices)
