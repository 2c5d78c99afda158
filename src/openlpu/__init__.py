"""openlpu: an open Language Processing Unit in software.

>>> import openlpu
>>> model = openlpu.load("demo")
>>> for piece in model.generate("Speak, "):
...     print(piece, end="")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openlpu.compile import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """Import the pipeline only when it is asked for, so that ``import openlpu`` stays cheap."""
    if name == "load":
        from openlpu.compile import load

        return load
    raise AttributeError(f"module 'openlpu' has no attribute '{name}'")
