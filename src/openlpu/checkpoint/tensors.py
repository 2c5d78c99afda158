"""Safetensors files in, named arrays out: memory-mapped, checked before use, made fp32 one at a time.

The header is read and proved consistent here, because a memory map needs offsets: the format's own library copies
every tensor and has no NumPy type for bf16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu.checkpoint.fields import Fields

_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64}
_BITS |= {"U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64}
_BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes ``begin`` to ``end`` of its file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


class Tensors(Mapping[str, np.ndarray]):
    """Name -> fp32 array, of every f32, f16 and bf16 tensor in ``entries``.

    An access converts that one tensor; fp32 tensors are views of the file.  ``folder`` is what an error names when
    no file has a tensor.
    """

    readable: tuple[str, ...] = ("F32", "F16", "BF16")
    described = "config.json"  # what says which shapes there should be

    def __init__(self, folder: Path, entries: Mapping[str, Entry]) -> None:
        self.folder, self.entries = folder, dict(sorted(entries.items()))
        self._readable = [name for name, entry in self.entries.items() if entry.dtype in self.readable]
        paths = {entry.path for entry in self.entries.values()}
        self._maps = {path: np.memmap(path, np.uint8, "r") for path in paths}

    def __getitem__(self, name: str) -> np.ndarray:
        """fp32 [shape of the tensor]; :class:`BadCheckpoint` for a NaN or an infinity in it."""
        if name not in self:
            raise KeyError(name)
        entry = self.entries[name]
        flat = self.floats(entry.dtype, self.raw(name))
        if not np.isfinite(flat).all():
            raise BadCheckpoint("contains a NaN or an infinity", where=self.where(name))
        return flat.reshape(entry.shape)

    def floats(self, dtype: str, raw: np.ndarray) -> np.ndarray:
        """fp32 [all numbers] of a tensor's bytes."""
        if dtype == "BF16":  # the upper half of an fp32
            wide = raw.view("<u2").astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        flat = raw.view("<f4" if dtype == "F32" else "<f2")
        # A view is kept only when loads from it are aligned; older files pad their header freely.
        return np.asarray(flat, np.float32) if flat.flags.aligned else flat.astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._readable)

    def __len__(self) -> int:
        return len(self._readable)

    def __contains__(self, name: object) -> bool:
        entry = self.entries.get(str(name))
        return entry is not None and entry.dtype in self.readable

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that a tensor can be read and has this shape, without reading it.

        Raises :class:`BadCheckpoint` when it is missing or has another shape, :class:`Unsupported` for its type.
        """
        entry = self.entries.get(name)
        if entry is None:
            fix = f"the model is incomplete, or {self.described} is another model's"
            raise BadCheckpoint("the tensor is missing", where=self.where(name), fix=fix)
        if entry.dtype not in self.readable:
            known = f"one of: {', '.join(self.readable)}"
            raise Unsupported(f"a weight of type {entry.dtype}", where=self.where(name), fix=known)
        if entry.shape != shape:
            what = f"the tensor has shape {list(entry.shape)}, {self.described} asks for {list(shape)}"
            raise BadCheckpoint(what, where=self.where(name))

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes: a read-only view of the file."""
        entry = self.entries[name]
        return np.asarray(self._maps[entry.path][entry.begin : entry.end])

    def where(self, name: str) -> str:
        """``<file>: <tensor>``, for errors."""
        path = self.entries[name].path if name in self.entries else self.folder
        return f"{path}: {name}"


def open_folder(folder: Path) -> Tensors:
    """All tensors of a folder: of the index's files, of ``model.safetensors``, or of every ``*.safetensors``."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.exists() and not single.exists():
        return Tensors(folder, _indexed(index))
    paths = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not paths:
        fix = "openlpu reads *.safetensors; convert other formats first"
        raise BadCheckpoint("no model.safetensors or model.safetensors.index.json", where=str(folder), fix=fix)
    entries: dict[str, Entry] = {}
    for path in paths:
        for name, entry in read_header(path).items():
            if name in entries:
                raise BadCheckpoint(f"tensor is also in {entries[name].path.name}", where=f"{path}: {name}")
            entries[name] = entry
    return Tensors(folder, entries)


def _indexed(index: Path) -> dict[str, Entry]:
    """The tensors an index names, each from the file it names."""
    weight_map = Fields.read(index).child("weight_map")
    if weight_map is None:
        raise BadCheckpoint("the field is missing", where=f"{index}: weight_map")
    headers: dict[str, dict[str, Entry]] = {}
    entries: dict[str, Entry] = {}
    for name in weight_map.values:
        file = weight_map.text(name)
        if Path(file).name != file:
            raise weight_map.wrong(name, "must be a file name in the same folder")
        if file not in headers:
            headers[file] = read_header(index.parent / file)
        if name not in headers[file]:
            where = f"{index.parent / file}: {name}"
            raise BadCheckpoint(f"tensor is missing, though {index.name} places it here", where=where)
        entries[name] = headers[file][name]
    return entries


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of one file, after proving that they tile its data exactly; :class:`BadCheckpoint` if not."""
    if not path.is_file():
        raise BadCheckpoint("the file is missing", where=str(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            what = f"truncated or not safetensors: {size} bytes, of which a header of {length}"
            raise BadCheckpoint(what, where=str(path), fix="download the file again")
        header = _parse(path, file.read(length))
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items()}
    at = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            kind = "overlaps the tensor before it" if entry.begin < at else "leaves a hole before it"
            raise BadCheckpoint(f"data_offsets {kind}", where=f"{path}: {name}")
        at = entry.end
        if at > size:
            what = f"truncated: data ends at byte {size}, the tensor at {at}"
            raise BadCheckpoint(what, where=f"{path}: {name}", fix="download the file again")
    if at != size:
        raise BadCheckpoint(f"{size - at} bytes after the last tensor", where=str(path))
    return entries


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a name appears twice")
        return values

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as broken:
        raise BadCheckpoint(f"the header is not valid JSON: {broken}", where=str(path)) from broken
    if not isinstance(header, dict):
        raise BadCheckpoint("the header is not a JSON object", where=str(path))
    return header


def _entry(path: Path, name: str, value: Any, data: int) -> Entry:
    """One tensor of a header; ``data`` is the byte where the file's data begins."""
    where = f"{path}: {name}"
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise BadCheckpoint(f"dtype {dtype!r} is not one of the format's", where=where)
    if not _counts(shape):
        raise BadCheckpoint(f"shape {shape!r} is not a list of sizes", where=where)
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadCheckpoint(f"data_offsets {offsets!r} are not a range", where=where)
    begin, end = offsets
    if 8 * (end - begin) != prod(shape) * _BITS[dtype]:
        raise BadCheckpoint(f"data_offsets span {end - begin} bytes, not those of {dtype} {shape}", where=where)
    return Entry(path, dtype, tuple(shape), data + begin, data + end)


def _counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
