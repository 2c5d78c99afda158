"""Folders and files that are complete or not there at all, and the manifest that says what a folder is."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openlpu._base.errors import BadRequest, ProgramError, of_system

MANIFEST = "manifest.json"
SEAL = "sha256_of_the_rest"  # of a manifest


def require_new(folder: Path) -> None:
    """Refuse a folder that cannot be made: there is something already, it is the working one, or inside a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProgramError("there is something here already", where=str(folder), fix="name a new or empty folder")
    _require_other(folder)
    above = next(path for path in folder.absolute().parents if path.exists())
    if not above.is_dir():
        raise ProgramError("this is a file, not a folder", where=str(above), fix="name a new or empty folder")


def _require_other(folder: Path) -> None:
    """Refuse the working folder: whoever is in it would stay in the old one when the new takes its place."""
    if folder.resolve() == Path.cwd().resolve():
        raise ProgramError("this is the folder you are in", where=str(folder), fix="name it from the one above")


def require_file(path: Path) -> None:
    """Refuse a path to which no file can be written, before there is anything to write."""
    if path.is_dir() or not path.parent.is_dir():
        what = "this is a folder" if path.is_dir() else "its folder is missing"
        raise BadRequest(what, where=str(path), fix="name a file in a folder that exists")


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, if it is not there."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _beside(path: Path, prefix: str) -> Iterator[Path]:
    """A folder of its own beside ``path``, which lasts as long as the block.

    What cannot be cleared away hides no error: a thread that an interrupt left behind may still be writing there.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix, ignore_cleanup_errors=True) as name:
            yield Path(name)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says of what cannot be written on the way to ``path`` that it is ``path``; other files keep their own errors."""
    try:
        yield
    except OSError as error:
        near = (Path(name).absolute() for name in (error.filename, error.filename2) if name)
        if error.filename and not any(path.absolute().parent in (one, *one.parents) for one in near):
            raise
        what = f"cannot be written: {of_system(error).what}"
        raise BadRequest(what, where=str(path), fix="name a place where you may write, with room for it") from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A place to write what becomes the file ``path`` when the block ends without an error; a device is that place."""
    require_file(path)
    if path.exists() and not path.is_file():
        with _writing(path):
            yield path
        return
    with _beside(path, ".writing-") as temporary:
        made = temporary / "made"
        yield made
        made.replace(path)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A place to write what becomes ``folder`` when the block ends without an error."""
    require_new(folder)
    with _beside(folder, ".compiling-") as temporary:
        made = temporary / "made"
        made.mkdir()
        yield made
        if folder.exists():
            folder.rmdir()
        made.rename(folder)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A place to write what takes the place of ``folder`` when the block ends without an error.

    Two renames: whoever looks in between finds no folder, never half a one.
    """
    _require_other(folder)
    with _beside(folder, ".compiling-") as temporary:
        made, before = temporary / "made", temporary / "before"
        made.mkdir()
        yield made
        folder.rename(before)
        try:
            made.rename(folder)
        except OSError:
            before.rename(folder)
            raise


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder."""
    (folder / MANIFEST).write_text(json.dumps(manifest, sort_keys=True, indent=1) + "\n", "utf-8")


def read(path: Path, format_: str, missing: str, fix: str) -> dict[str, Any]:
    """A manifest of the named format; ``missing`` and ``fix`` are the error when there is none."""
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ProgramError(missing, where=str(path), fix=fix) from error
    except NotADirectoryError as error:
        raise ProgramError("this is a file, not a folder", where=str(path.parent), fix=fix) from error
    except ValueError as error:
        raise ProgramError(f"not a manifest: {error}", where=str(path), fix="compile the model again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or found != format_:
        other = f", but in '{found}'" if isinstance(found, str) else ""
        raise ProgramError(f"not in the format '{format_}'{other}", where=str(path), fix="compile the model again")
    return manifest


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with a hash of itself."""
    return dict(manifest) | {SEAL: _seal(manifest)}


def require_sealed(manifest: Mapping[str, Any], where: Path) -> None:
    """Refuse a manifest that is not what was sealed."""
    if manifest.get(SEAL) != _seal(manifest):
        raise ProgramError("this file differs from what was written", where=str(where), fix="compile the model again")


def _seal(manifest: Mapping[str, Any]) -> str:
    """Hash of a manifest without its own."""
    rest = {word: value for word, value in manifest.items() if word != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
