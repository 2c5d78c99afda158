"""Names in, objects out: a table of ``name -> "module:attribute"`` that imports an entry when it is asked for.

A registry is data, so a command line can list its names without importing what stands behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from openlpu._base.errors import Unsupported


@dataclass(frozen=True)
class Registry:
    """``kind`` is the word errors use ("target"); ``entries`` maps a name to ``"package.module:attribute"``."""

    kind: str
    entries: Mapping[str, str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def get(self, name: str) -> Callable[..., Any]:
        """The object behind ``name``; :class:`Unsupported` lists the known names, or what is not installed."""
        if name not in self.entries:
            raise Unsupported(f"unknown {self.kind} '{name}'", fix=f"one of: {', '.join(self.entries)}")
        module, _, attribute = self.entries[name].partition(":")
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as missing:
            others = ", ".join(other for other in self.entries if other != name)
            what = f"{self.kind} '{name}' needs the module {missing.name}, which is not installed"
            raise Unsupported(what, fix=f"install it, or choose one of: {others}") from missing
