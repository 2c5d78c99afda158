"""A GGUF file in; its metadata and where each tensor lies out, every offset proved before it is used.

GGUF is one little-endian stream: a header, typed metadata, a directory of tensors, and their data, each tensor
aligned.  Versions 2 and 3 are read.  A model split over files ``…-00001-of-00003.gguf`` is read from its first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu.checkpoint.fields import Fields
from openlpu.checkpoint.gguf_blocks import FORMATS, TYPES
from openlpu.checkpoint.tensors import Entry

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # bytes, unless general.alignment says otherwise
_FLOAT, _BOOL, _TEXT, _ARRAY = 6, 7, 8, 9  # types of a value; those that are numbers:
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}
_AGAIN = "download the file again"


@dataclass(frozen=True)
class Container:
    """What a file, or a set of split files, says of itself; ``metadata`` is named by the first file."""

    path: Path
    metadata: Fields
    entries: Mapping[str, Entry]  # GGUF's names


def read(path: Path) -> Container:
    """The metadata and tensors of a file, with those of the files it is split into.

    Raises :class:`BadCheckpoint` for a file that is truncated or inconsistent, :class:`Unsupported` for a version,
    byte order or tensor type that openlpu does not read.
    """
    metadata, entries = _read_one(path)
    count = metadata.integer("split.count", 0, least=0)
    for other in _others(metadata, count):
        theirs, more = _read_one(other)
        if theirs.integer("split.no", 0, least=0) != int(_split(other)[1]) - 1:
            raise theirs.wrong("split.no", "not the file's place in its name")
        for name, entry in more.items():
            if name in entries:
                raise BadCheckpoint(f"the tensor is also in {entries[name].path.name}", where=f"{other}: {name}")
            entries[name] = entry
    total = metadata.integer("split.tensors.count", len(entries), least=0)
    if total != len(entries):
        raise metadata.wrong("split.tensors.count", f"but the files have {len(entries)} tensors")
    return Container(path, metadata, entries)


def _others(metadata: Fields, count: int) -> list[Path]:
    """The files after the first of a split model, all of which must be there."""
    if count < 2:
        return []
    first = metadata.path
    if metadata.integer("split.no", 0, least=0):
        raise metadata.wrong("split.no", "this is not the first of its files", fix="name the file …-00001-of-….gguf")
    start, _, total = _split(first)
    if int(total) != count:
        raise metadata.wrong("split.count", f"but the file's name says {int(total)}")
    paths = [first.with_name(f"{start}-{n:05}-of-{count:05}.gguf") for n in range(2, count + 1)]
    for path in paths:
        if not path.is_file():
            raise BadCheckpoint("the file is missing", where=str(path), fix=f"download all {count} files of the model")
    return paths


def _split(path: Path) -> tuple[str, str, str]:
    """Stem, number and count of a split file's name."""
    found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if found is None:
        fix = "rename the files as the model's makers did"
        raise BadCheckpoint("one of several files, but not named …-00001-of-0000N.gguf", where=str(path), fix=fix)
    return found[1], found[2], found[3]


def _read_one(path: Path) -> tuple[Fields, dict[str, Entry]]:
    size = path.stat().st_size
    if size < 24:
        raise BadCheckpoint(f"truncated or not GGUF: {size} bytes", where=str(path), fix=_AGAIN)
    at = _Cursor(path, np.memmap(path, np.uint8, "r"))
    _check_version(path, at)
    tensors, fields = at.number(8, "the number of tensors"), at.number(8, "the number of metadata fields")
    values: dict[str, Any] = {}
    for _ in range(fields):
        name = at.text("the name of a metadata field")
        if name in values:
            raise BadCheckpoint("the field appears twice", where=f"{path}: {name}")
        values[name] = at.value(at.number(4, name), name)
    metadata = Fields(path, values)
    alignment = metadata.integer("general.alignment", _ALIGNMENT)
    if alignment & (alignment - 1):
        raise metadata.wrong("general.alignment", "must be a power of two")
    found = [_Described.read(at) for _ in range(tensors)]
    return metadata, _entries(path, found, at.at + -at.at % alignment, alignment, size)


def _check_version(path: Path, at: _Cursor) -> None:
    magic = at.take(4, "the header").tobytes()
    if magic != MAGIC:
        raise BadCheckpoint(f"not a GGUF file: it begins with {magic!r}", where=str(path), fix=_AGAIN)
    version = at.number(4, "the version")
    if version and version & 0xFFFF == 0:
        raise Unsupported("a big-endian GGUF file", where=str(path), fix="take the little-endian file of the model")
    if version not in _VERSIONS:
        known = f"convert the model again; versions read: {', '.join(map(str, _VERSIONS))}"
        raise Unsupported(f"GGUF version {version}", where=str(path), fix=known)


@dataclass(frozen=True)
class _Described:
    """One line of the directory; ``shape`` as NumPy has it, the last index fastest (the file has it reversed)."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @classmethod
    def read(cls, at: _Cursor) -> _Described:
        name = at.text("the name of a tensor")
        rank = at.number(4, name)
        if not 1 <= rank <= 4:
            raise BadCheckpoint(f"a tensor of {rank} dimensions", where=f"{at.path}: {name}")
        shape = tuple(reversed([at.number(8, name) for _ in range(rank)]))
        return cls(name, shape, at.number(4, name), at.number(8, name))


def _entries(path: Path, found: list[_Described], data: int, alignment: int, size: int) -> dict[str, Entry]:
    """Where each tensor lies, after proving that they follow each other without overlap or hole."""
    entries: dict[str, Entry] = {}
    end = 0
    for tensor in sorted(found, key=lambda t: t.offset):
        where, dtype = f"{path}: {tensor.name}", TYPES.get(tensor.kind, f"number {tensor.kind}")
        if tensor.name in entries:
            raise BadCheckpoint("the tensor appears twice", where=where)
        if dtype not in FORMATS:
            raise Unsupported(f"a tensor of type {dtype}", where=where, fix=f"one of: {', '.join(FORMATS)}")
        block = FORMATS[dtype]
        if not all(tensor.shape) or tensor.shape[-1] % block.numbers:
            what = f"shape {list(tensor.shape)} is not whole blocks of {dtype}, {block.numbers} numbers each"
            raise BadCheckpoint(what, where=where)
        if tensor.offset != end + -end % alignment:
            what = f"begins at byte {tensor.offset} of the data, the tensor before it ends at {end}"
            raise BadCheckpoint(what, where=where)
        end = tensor.offset + prod(tensor.shape) // block.numbers * block.bytes
        if data + end > size:
            what = f"truncated: the file ends at byte {size}, the tensor at {data + end}"
            raise BadCheckpoint(what, where=where, fix=_AGAIN)
        entries[tensor.name] = Entry(path, dtype, tensor.shape, data + tensor.offset, data + end)
    return entries


class _Cursor:
    """A place in a file that moves as values are read; every read names what it was for."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.at = path, 0
        self._data = data.data

    def take(self, count: int, what: str) -> memoryview:
        """The next ``count`` bytes."""
        if count > len(self._data) - self.at:
            where = f"{self.path}: {what}"
            raise BadCheckpoint(f"truncated: {count} bytes asked for at byte {self.at} of {len(self._data)}",
                                where=where, fix=_AGAIN)
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, size: int, what: str) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.take(size, what), "little")

    def text(self, what: str) -> str:
        """A length, then so many bytes of UTF-8."""
        raw = self.take(self.number(8, what), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as broken:
            raise BadCheckpoint(f"not UTF-8: {broken.reason}", where=f"{self.path}: {what}") from broken

    def value(self, kind: int, what: str) -> Any:
        """One value of a type of the format."""
        if kind == _TEXT:
            return self.text(what)
        if kind == _ARRAY:
            return self._array(what)
        return self._plain(kind, 1, what)[0]

    def _array(self, what: str) -> list[Any]:
        kind, count = self.number(4, what), self.number(8, what)
        if kind == _ARRAY:
            raise Unsupported("an array of arrays", where=f"{self.path}: {what}")
        if kind != _TEXT:
            return self._plain(kind, count, what)
        if 8 * count > len(self._data) - self.at:  # each text has at least its length
            self.take(8 * count, what)
        return [self.text(what) for _ in range(count)]

    def _plain(self, kind: int, count: int, what: str) -> list[Any]:
        if kind not in _NUMBERS:
            raise BadCheckpoint(f"a value of type {kind}, which the format does not have", where=f"{self.path}: {what}")
        dtype = np.dtype(_NUMBERS[kind])
        numbers = np.frombuffer(self.take(dtype.itemsize * count, what), dtype)
        if kind == _BOOL:
            return (numbers != 0).tolist()
        return [_shortest(n) for n in numbers] if kind == _FLOAT and count == 1 else numbers.tolist()


def _shortest(number: np.float32) -> float:
    """The shortest decimal that rounds to an fp32: what the model's makers wrote (1e-05, not 9.99999974737875e-06)."""
    return float(str(number))
