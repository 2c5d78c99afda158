"""Pieces of text in, the same text out up to a stop text, even where a stop text crosses the borders of pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes text through until a stop text appears in it; holds back what may be the beginning of one."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is safe to show; after ``found`` everything is swallowed."""
        if self.found:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._texts if (at := text.find(stop)) >= 0]
        if found:
            self.found, self._held = True, ""
            return text[: min(found)[1]]  # the stop that is complete first, so borders of pieces do not matter
        cut = len(text) - max((_overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back when the text ends without a stop."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
