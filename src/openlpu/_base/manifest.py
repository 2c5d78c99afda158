"""A folder of files that is complete or not there at all, and the manifest that says what it is."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openlpu._base.errors import ProgramError

MANIFEST = "manifest.json"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A place to write what becomes ``folder`` when the block ends without an error."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProgramError("there is something here already", where=str(folder), fix="name a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".compiling-") as temporary:
        made = Path(temporary) / "made"
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
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".compiling-") as temporary:
        made, before = Path(temporary) / "made", Path(temporary) / "before"
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
    except ValueError as error:
        raise ProgramError(f"not a manifest: {error}", where=str(path), fix="compile the model again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != format_:
        raise ProgramError(f"not in the format '{format_}'", where=str(path), fix="compile the model again")
    return manifest


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
