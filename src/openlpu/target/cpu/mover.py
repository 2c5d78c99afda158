"""A mapped image in, the same bytes on huge pages out, while the first tokens are already being made.

A file map gives the first token without a copy; huge pages give the bandwidth.  A thread copies behind the running
steps; between two steps the executable asks for the finished copy and lets go of the map.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from openlpu.target.cpu.image import Image
from openlpu.target.cpu.memory import Arena

SLICE = 8 << 20  # bytes copied at a time: closing waits for one of them at most


class Mover:
    """Copies an image in the background from :meth:`start` on; :meth:`finished` gives the copy once."""

    def __init__(self, image: Image) -> None:
        self._image: Image | None = image
        self._copy: Image | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin, if that has not happened yet."""
        if not self._thread.ident:
            self._thread.start()

    def finished(self) -> Image | None:
        """The copy, when it is complete; the mover lets go of both."""
        if copy := self._copy:  # one look: it may appear between two
            self._copy = None
        return copy

    def stop(self) -> None:
        """Give up, and wait until nothing is copied any more."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        image, self._image = self._image, None
        assert image, "a mover works once"
        source = image.streamed
        try:
            arena = Arena(len(source))
        except OSError:  # no room for a copy: the map serves as well, only slower
            return
        for at in range(0, len(source), SLICE):
            if self._stop.is_set():
                return
            arena.bytes[at : min(at + SLICE, len(source))] = source[at : at + SLICE]
        self._copy = replace(image, streamed=arena.bytes[: len(source)])
