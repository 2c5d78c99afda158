"""How work that takes over a second tells its caller where it is: one callable, no library.

``progress(what, done, total)`` is called with ``done`` rising to ``total``; a command line draws a bar, a test
or a service passes :func:`silent`.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""
