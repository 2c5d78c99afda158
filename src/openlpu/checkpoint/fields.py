"""A JSON file in, its fields out, each with the type its reader asks for or an error that names file and field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from openlpu._base.errors import BadCheckpoint

T = TypeVar("T")


@dataclass(frozen=True)
class Fields:
    """One JSON object: ``values`` and ``path``, the file it came from; ``inside`` names the enclosing field.

    A field that is absent and one that is null are the same thing: both take the default.
    """

    path: Path
    values: Mapping[str, Any]
    inside: str = ""

    @classmethod
    def read(cls, path: Path) -> Fields:
        """The object in a file; :class:`BadCheckpoint` when it is missing, not JSON, or not an object."""
        if not path.is_file():
            raise BadCheckpoint("the file is missing", where=str(path), fix="name a folder with all files of a model")
        try:
            values = json.loads(path.read_bytes())
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as broken:
            raise BadCheckpoint(f"not valid JSON: {broken}", where=str(path)) from broken
        if not isinstance(values, dict):
            raise BadCheckpoint("not a JSON object", where=str(path))
        return cls(path, values)

    @classmethod
    def optional(cls, path: Path) -> Fields:
        """As :meth:`read`, but a file that does not exist has no fields."""
        return cls.read(path) if path.exists() else cls(path, {})

    def where(self, field: str) -> str:
        """``config.json: rope_scaling.factor``, with the file's whole path."""
        return f"{self.path}: {self.inside}{field}"

    def wrong(self, field: str, problem: str, fix: str = "") -> BadCheckpoint:
        """The error to raise for a field, with the value it has."""
        shown = f"is {self.values[field]!r}, {problem}" if field in self.values else problem
        return BadCheckpoint(shown, where=self.where(field), fix=fix)

    def integer(self, field: str, default: int | None = None, *, least: int = 1) -> int:
        """An integer of at least ``least``; required when there is no default."""
        value = self._typed(field, int, "an integer", default)
        if value < least:
            raise self.wrong(field, f"must be at least {least}")
        return value

    def number(self, field: str, default: float | None = None, *, above: float = 0.0) -> float:
        """A finite number greater than ``above``; required when there is no default."""
        value = float(self._typed(field, (int, float), "a number", default))
        if not above < value < float("inf"):
            raise self.wrong(field, f"must be a finite number above {above:g}")
        return value

    def flag(self, field: str, default: bool) -> bool:
        """``true`` or ``false``."""
        return self._typed(field, bool, "true or false", default)

    def text(self, field: str, default: str | None = None) -> str:
        """A string; required when there is no default."""
        return self._typed(field, str, "a string", default)

    def ids(self, field: str, absent: int | None = None) -> tuple[int, ...]:
        """Token ids written as one integer, a list of integers, or null; ``absent`` when the field is not there."""
        value = self.values.get(field, absent)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(item) is not int for item in listed):
            raise self.wrong(field, "must be a token id or a list of them")
        return tuple(listed)

    def child(self, field: str) -> Fields | None:
        """The object in a field, or None."""
        if self.values.get(field) is None:
            return None
        return Fields(self.path, self._typed(field, dict, "an object", None), f"{self.inside}{field}.")

    def _typed(self, field: str, kind: type[T] | tuple[type[T], ...], words: str, default: T | None) -> T:
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise BadCheckpoint("the field is missing", where=self.where(field))
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(field, f"must be {words}")
        return value
