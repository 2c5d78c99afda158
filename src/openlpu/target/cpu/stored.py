"""A loaded executable in, a folder out whose files are mapped instead of computed; and back.

``weights.bin`` is the streamed part of the image (:mod:`~openlpu.target.cpu.image`), ``tables.bin`` the part that is
looked up, ``code-*.o`` machine code, ``graph.json`` the integer graph, ``stored.json`` where every parameter
stands.  The parameters can be read back one by one, so that every target runs such a folder, on any processor; one
that has the vector path it was packed for starts from the files as they are.  The code is run as it is: a folder is
to be trusted like a program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openlpu._base.manifest import sha256
from openlpu._base.progress import Progress, silent
from openlpu.graph import file as graph_file
from openlpu.graph.ir import Graph
from openlpu.target.cpu import kernels
from openlpu.target.cpu.image import Image, Parameters, Place, build
from openlpu.target.cpu.native import Module, kernels_hash
from openlpu.target.cpu.path import Path as VectorPath
from openlpu.target.cpu.path import choose
from openlpu.target.cpu.plan import Operand, Plan, Planner, formats
from openlpu.target.cpu.weights import Format

FORMAT = "openlpu stored 2"  # a new one whenever bytes are packed in another way
STREAMED, LOOKED_UP, STORED, GRAPH = "weights.bin", "tables.bin", "stored.json", "graph.json"
Json = dict[str, Any]


class Stored(Parameters):
    """The parameters of a stored executable, in its files."""

    def __init__(self, folder: Path, words: Json, formats: Mapping[str, Format]) -> None:
        self.folder, params = folder, words["params"]
        tables = np.memmap(folder / LOOKED_UP, np.uint8, "r")
        shapes = {name: (tuple(entry["shape"]), np.dtype(entry["dtype"])) for name, entry in params.items()}
        whole = {name: _table(tables, entry["table"], *shapes[name])
                 for name, entry in params.items() if "table" in entry}
        path = VectorPath(**{**words["path"], "blocks": tuple(words["path"]["blocks"])})
        places = [Place(Operand(p["kind"], p["name"]), p["offset"], p["size"]) for p in words["places"]]
        blocks = {name: entry["of"] for name, entry in params.items() if "of" in entry}
        super().__init__(path, formats, shapes, places, blocks, whole, self._map)

    def _map(self) -> NDArray[np.uint8]:
        """The streamed file, mapped as long as somebody uses it."""
        return np.memmap(self.folder / STREAMED, np.uint8, "r")

    def image(self, path: VectorPath) -> Image | None:
        """The image as it lies in the files, if it was packed for this path."""
        return Image(self._map(), tuple(self._places.values()), self._whole) if path == self._path else None

    def code(self, key: str) -> bytes | None:
        """Machine code that was stored under this key."""
        file = self.folder / f"code-{key}.o"
        return file.read_bytes() if file.is_file() else None


def _table(tables: NDArray[np.uint8], at: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return tables[at : at + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)


def code_key(plan: Plan, path: VectorPath, threads: int) -> str:
    """What machine code depends on: the stages, the path, the threads, and what generates it."""
    specs = dict.fromkeys(str(stage.spec) for stage in plan.stages)
    text = "\n".join([kernels_hash(), str(path), str(threads), str(plan.cache), *specs])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(folder: Path, graph: Graph, image: Image, path: VectorPath, plan: Plan, code: Mapping[str, bytes]) -> None:
    """Write the files of an executable into an existing folder."""
    words = graph_file.words(graph)
    (folder / GRAPH).write_text(json.dumps(words, sort_keys=True) + "\n", "utf-8")
    image.streamed.tofile(folder / STREAMED)
    params = {name: {"shape": array.shape, "dtype": array.dtype.str} for name, array in graph.params.items()}
    for codes, blocks in plan.packed.items():
        if blocks:
            params[blocks]["of"] = codes
    streamed = {place.operand.name for place in image.places}
    with (folder / LOOKED_UP).open("wb") as file:
        for name, entry in params.items():
            if name in image.looked_up or not (name in streamed or "of" in entry):
                entry["table"] = file.tell()
                data = graph.params[name].tobytes()
                file.write(data + bytes(-len(data) % 64))
    places = [{**asdict(p.operand), "offset": p.offset, "size": p.size} for p in image.places]
    stored = {"path": asdict(path), "places": places, "params": params}
    (folder / STORED).write_text(json.dumps(stored, sort_keys=True) + "\n", "utf-8")
    for key, object_code in code.items():
        (folder / f"code-{key}.o").write_bytes(object_code)


def write(folder: Path, graph: Graph, context: int, threads: Sequence[int], progress: Progress = silent) -> None:
    """Pack a graph for this processor's best path, compile its code for these numbers of threads, write both."""
    path, plan = choose("auto"), Planner(graph, context).plan()
    code = {}
    for at, count in enumerate(threads):
        progress("generate code", at, len(threads))
        code[code_key(plan, path, count)] = Module(kernels.module(plan, path, count), path).code
    progress("pack weights", 0, 1)
    save(folder, graph, build(plan, path, graph.params), path, plan, code)


def read(folder: Path) -> Graph:
    """The integer graph of a stored executable; its parameters are a :class:`Stored`."""
    graph = graph_file.unpack(json.loads((folder / GRAPH).read_bytes()), {})
    return replace(graph, params=Stored(folder, json.loads((folder / STORED).read_bytes()), formats(graph)))


def hashed(folder: Path) -> list[Path]:
    """The files whose hashes belong into a manifest: a hash of gigabytes would cost the start its speed."""
    return [path for path in sorted(folder.iterdir()) if path.name not in (STREAMED, LOOKED_UP)]


def damaged(folder: Path, sizes: Mapping[str, int], hashes: Mapping[str, str]) -> Path | None:
    """The first file of a folder that is not what its manifest says, if there is one."""
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or (name in hashes and sha256(path) != hashes[name]):
            return path
    return None
