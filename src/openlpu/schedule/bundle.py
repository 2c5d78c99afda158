"""A compiled model in, one folder out; and back.

``manifest.json`` names the model, the numerics, the layout, cycles per context bucket, the SHA-256 of every other
file and its own; ``graph.json`` and ``params.safetensors`` are the integer graph, ``program/`` the instruction columns
(:mod:`openlpu.schedule.program_file`), of one chip or of a system's stages, and the tokenizer's files lie beside them.
What was compiled from shapes has neither parameters nor tokenizer, and its manifest says so.
The same model gives the same bytes, on every machine.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from openlpu._base import manifest as manifest_file
from openlpu._base.cores import usable_cores
from openlpu._base.errors import BadRequest, ProgramError
from openlpu._base.manifest import MANIFEST, SEAL, new_folder, replaced_folder, sha256
from openlpu.arch import truepoint
from openlpu.arch.encoding import instruction_bytes
from openlpu.arch.link import Link
from openlpu.arch.system import of_spec
from openlpu.arch.system_file import Spec
from openlpu.arch.topology import Shape
from openlpu.checkpoint.config import ENCODERS
from openlpu.graph import file as graph_file
from openlpu.graph.ir import Graph
from openlpu.numerics.scheme import Scheme
from openlpu.partition.split import Split
from openlpu.schedule import program_file
from openlpu.schedule.encoders import passage
from openlpu.schedule.program import Program, SystemProgram
from openlpu.schedule.search import Choice, Found, lined_up
from openlpu.schedule.sweeps import is_encoder

FORMAT = "openlpu model 2"
PROGRAM, GRAPH, PARAMS = "program", "graph.json", "params.safetensors"
AGAIN = "compile the model again"


@dataclass(frozen=True)
class Bundle:
    """A compiled model in a folder; whatever is asked for is read, and its hash compared, at that moment.

    Raises :class:`ProgramError` naming the file that is missing or differs from what the manifest names.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def weights(self) -> bool:
        """Whether there are weights; a program compiled from shapes has none until some are loaded."""
        return self.manifest["weights"]

    @property
    def scheme(self) -> Scheme:
        """The number format."""
        return Scheme(**self.manifest["scheme"])

    @cached_property
    def outline(self) -> Graph:
        """The integer graph; its parameters have types and shapes, and take no memory."""
        words = json.loads(self.file(GRAPH).read_bytes())
        return graph_file.unpack(words, graph_file.hollow(words["params"]))

    @cached_property
    def graph(self) -> Graph:
        """The integer graph with its parameters."""
        if not self.weights:
            raise ProgramError("it was compiled from shapes: there are no weights", where=str(self.folder),
                               fix="openlpu load-weights DIR CHECKPOINT")
        words, arrays = json.loads(self.file(GRAPH).read_bytes()), load_file(self.file(PARAMS))
        return graph_file.unpack(words, {name: arrays[name] for name in words["params"]})

    @property
    def several(self) -> bool:
        """Whether it is a program of several chips."""
        return "system" in self.manifest

    @property
    def encoder(self) -> bool:
        """Whether it is an encoder's program."""
        return self.manifest["architecture"] in ENCODERS

    @cached_property
    def program(self) -> Program:
        """The program of one chip."""
        if self.several:
            raise ProgramError("this model was compiled for several chips", where=self.manifest["model"],
                               fix="compile it without --system")
        return program_file.load(self._program())

    @cached_property
    def found(self) -> Found | None:
        """The programs of several chips, with their system and the splits that were considered; None for one chip."""
        return self.part() if self.several else None

    def part(self, stages: Collection[int] | None = None, contexts: Collection[int] | None = None) -> Found:
        """As :attr:`found`, but with the segments of these stages and contexts alone (None: of all)."""
        assert self.several, "one chip has no stages"
        return _found(self.manifest, program_file.load_system(self._program(), stages, contexts))

    @property
    def contexts(self) -> list[int]:
        """The contexts of the segments, ascending."""
        names = [name for word in ("cycles_per_token", "cycles_per_chunk", "cycles_per_sequence")
                 for name in self.manifest.get(word, ())]
        return sorted({int(name.partition("x")[0]) for name in names})

    def serving(self, positions: int) -> int:
        """The context of the smallest segment for so many positions; refuses more than there are, or none."""
        if not 1 <= positions <= self.contexts[-1]:
            raise BadRequest(f"{positions} is out of range", where="context", fix=f"use 1 to {self.contexts[-1]}")
        return next(context for context in self.contexts if context >= positions)

    def _program(self) -> Path:
        return self.file(f"{PROGRAM}/{MANIFEST}").parent

    def file(self, name: str) -> Path:
        """One of the files, once its hash was compared."""
        path = self.folder / name
        if not path.is_file() or sha256(path) != self.manifest["sha256"].get(name):
            what = "differs from what the manifest names" if path.is_file() else "is missing"
            raise ProgramError(f"this file {what}", where=str(path), fix=AGAIN)
        return path


def save(
    folder: Path, graph: Graph, made: Program | Found, *, model: str, scheme: Scheme, texts: Mapping[str, bytes] | None
) -> dict[str, Any]:
    """Write the folder (complete or not at all) and return its manifest.

    ``texts`` are the tokenizer's files; None: the graph has shapes only, and no weights are written.
    """
    with new_folder(folder) as new:
        if isinstance(made, Program):
            program_file.save(made, new / PROGRAM)
        else:
            program_file.save_system(made.program, new / PROGRAM)
        about = _chip_words(made) if isinstance(made, Program) else _system_words(made)
        return _finish(new, graph, about, model, scheme, texts)


def load(folder: Path) -> Bundle:
    """The compiled model in a folder, of which only the manifest is read yet.  Raises :class:`ProgramError`."""
    path = folder / MANIFEST
    fix = "name a folder that `openlpu compile MODEL -o DIR` wrote"
    if (folder / "stored.json").is_file():
        raise ProgramError("this model was compiled for a processor", where=str(folder), fix="compile it for a chip: "
                           "leave --target out")
    manifest = manifest_file.read(path, FORMAT, "there is no compiled model here", fix)
    if damaged := [word for word in (*ABOUT_MODEL, "cycles_per_token", "chips") if word not in manifest]:
        raise ProgramError(f"not a manifest that this version wrote: no {damaged[0]}", where=str(path), fix=AGAIN)
    if manifest["truepoint"] != truepoint.VERSION:
        what = f"made for numerics version {manifest['truepoint']}; this is version {truepoint.VERSION}"
        raise ProgramError(what, where=str(path), fix=AGAIN)
    manifest_file.require_sealed(manifest, path)
    return Bundle(folder, manifest)


def refill(
    stored: Bundle, graph: Graph, *, model: str, texts: Mapping[str, bytes], folder: Path | None = None
) -> dict[str, Any]:
    """Write the stored program with the weights of another graph into ``folder`` (None: in its place).

    What comes out is what :func:`save` would write of that graph.  Raises :class:`ProgramError` when the program is
    damaged, or is not that of the graph, naming what differs; or when its folder holds what it did not write, which
    would be lost.
    """
    if folder is None:
        require_own(stored)
    require_same(stored.outline, graph)
    about = {key: value for key, value in stored.manifest.items() if key not in ABOUT_MODEL}
    with new_folder(folder) if folder else replaced_folder(stored.folder) as new:
        for name in stored.manifest["sha256"]:
            if name.startswith(f"{PROGRAM}/"):
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(stored.file(name), new / name)
        return _finish(new, graph, about, model, stored.scheme, texts)


def require_own(stored: Bundle) -> None:
    """Refuse a folder in which somebody has put something else."""
    own = {MANIFEST, *stored.manifest["sha256"]}
    for path in sorted(stored.folder.rglob("*")):
        if not path.is_dir() and path.relative_to(stored.folder).as_posix() not in own:
            raise ProgramError("this file is no part of the compiled model and would be lost", where=str(path),
                               fix="move it away, or write elsewhere: -o NEW")


def require_same(stored: Graph, other: Graph) -> None:
    """Refuse a graph for which the program of the stored one is not right, in the words of its configuration if those
    say why: a program depends on operators, sizes and number formats, and on nothing that weights decide."""
    mine, yours = _needs(stored), _needs(other)
    if mine == yours:
        return
    config, asked = (vars(graph.config) for graph in (stored, other))
    if config.keys() != asked.keys():  # one of both is an encoder: little else can be compared
        raise ProgramError(f"these are weights of {other.config.architecture}, the program is of "
                           f"{stored.config.architecture}", where="weights", fix="compile the checkpoint")
    fields = [f"{name} is {asked[name]}, the program's {config[name]}" for name in config
              if name not in ("eos", "bos", "rope", "architecture") and config[name] != asked[name]]
    first = next(key for key in [*yours, *mine] if mine.get(key) != yours.get(key))
    what = ", ".join(fields) or f"{first} is {yours.get(first, 'absent')}, the program's {mine.get(first, 'absent')}"
    raise ProgramError(f"these weights need another program: {what}", where="weights", fix="compile the checkpoint")


def _needs(graph: Graph) -> dict[str, Any]:
    """What a program is made from, by name.  4-bit blocks are whole codes to a chip, so they make no difference."""
    words: dict[str, Any] = {name: getattr(graph.config, name) for name in ("vocab", "layers", "context")}
    for node in graph.nodes:
        params = {word: key for word, key in node.params.items() if word != BLOCKS}
        words[f"operator {node.output}"] = asdict(node) | {"params": params}
    words |= {f"value {value.name}": asdict(value) for value in graph.values.values()}
    used = {key for node in graph.nodes for word, key in node.params.items() if word != BLOCKS}
    return words | {f"parameter {name}": kind for name, kind in graph_file.shapes(graph).items() if name in used}


BLOCKS = "blocks"  # the word of a node's parameter that says how its codes are stored in 4 bits
ABOUT_MODEL = ("format", "model", "scheme", "truepoint", "architecture", "weights", "sha256", SEAL)


def _finish(
    new: Path, graph: Graph, about: Mapping[str, Any], model: str, scheme: Scheme, texts: Mapping[str, bytes] | None
) -> dict[str, Any]:
    """Write everything but the program, which is there, and return the manifest."""
    words = graph_file.words(graph) | {"params": graph_file.shapes(graph)}
    (new / GRAPH).write_text(json.dumps(words, indent=1) + "\n", "utf-8")
    if texts is not None:
        _save(graph_file.pack(graph)[1], new / PARAMS)
    for name, content in (texts or {}).items():
        (new / name).write_bytes(content)
    files = sorted(p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file())
    with ThreadPoolExecutor(usable_cores()) as pool:
        hashes = dict(zip(files, pool.map(sha256, [new / name for name in files]), strict=True))
    manifest = manifest_file.sealed(dict(about) | {
        "format": FORMAT, "model": model, "scheme": vars(scheme), "truepoint": truepoint.VERSION,
        "architecture": graph.config.architecture, "weights": texts is not None,
        "sha256": hashes,
    })
    manifest_file.write(new, manifest)
    return manifest


def _save(tensors: dict[str, NDArray], path: Path) -> None:
    """Write tensors; the library has an error of its own for what the operating system refuses."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else 0, str(error), str(path)) from error


def _chip_words(program: Program) -> dict[str, Any]:
    return {
        "chip": program.chip.name, "chips": 1, "clock": "cycles",
        "cycles_per_token": {s.name: s.cycles for s in program.segments if s.chunk == 1},
        "cycles_per_chunk": {s.name: s.cycles for s in program.segments if s.chunk > 1},
        "instruction_bytes": {s.name: instruction_bytes(s.queues) for s in program.segments},
        "layout": {
            item.name: {"rows": len(item.addresses), "planes": item.slices.shape[1], "slice": int(item.slices[0, 0]),
                        "address": int(item.addresses[0])}
            for item in program.resident
        },
    }


def _system_words(found: Found) -> dict[str, Any]:
    """The system as data, so that neither its file nor its name is needed again; and what was considered."""
    program, spec = found.program, found.system.spec
    return {
        "chip": spec.chip.name, "chips": program.split.chips, "clock": "cycles",
        "system": {"name": spec.name, "shape": asdict(spec.shape), "links": [asdict(link) for link in spec.links],
                   "epoch": spec.epoch, "dead": sorted(found.system.dead)},
        "choices": [asdict(choice) for choice in found.choices],
    } | (_sequences(program) if is_encoder(program.stage(0).program) else _tokens(program))


def _tokens(program: SystemProgram) -> dict[str, Any]:
    """Times of a token in each segment."""
    segments = list(enumerate(program.stage(0).program.segments))
    return {
        "cycles_per_token": {s.name: program.cycles(i) for i, s in segments if s.chunk == 1},
        "cycles_per_chunk": {s.name: program.cycles(i) for i, s in segments if s.chunk > 1},
        "cycles_between_tokens": {s.name: program.interval(i) for i, s in segments},
        "stage_starts": {s.name: list(program.starts(i)) for i, s in segments},
    }


def _sequences(program: SystemProgram) -> dict[str, Any]:
    """Times of the longest sequence of each context."""
    contexts = sorted({s.context for s in program.stage(0).program.segments})
    return {"cycles_per_token": {}, "cycles_per_sequence": {str(n): passage(program, n).cycles for n in contexts}}


def _found(manifest: Mapping[str, Any], program: SystemProgram) -> Found:
    words, chip = manifest["system"], program.programs[0].program.chip
    links = tuple(Link(**link) for link in words["links"])
    spec = Spec(f"system {words['name']}", words["name"], chip, Shape(**words["shape"]), links, words["epoch"])
    choices = tuple(Choice(**{**c, "split": Split(**c["split"])}) for c in manifest["choices"])
    return Found(program, lined_up(of_spec(spec, words["dead"]), program.split), choices)
