"""Tables of values, and prepared look-ups in them.

A look-up is built once per program from sources (see :mod:`openlpu.target.chip.plan`) and used every run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]


class Values:
    """The words table, int32 [words, width], and the bytes table, uint8 [bytes, width]; both grow as asked."""

    words: I32
    planes: U8
    bytes: U8

    def __init__(self) -> None:
        self._make(0, 0, 1)
        self._third = np.empty(0, np.int32)

    def zeros(self, shape: tuple[int, ...]) -> I32:
        """A third table of any shape, all zero; until it is asked for again."""
        size = int(np.prod(shape))
        if len(self._third) < size:
            self._third = np.empty(size, np.int32)
        out = self._third[:size]
        out.fill(0)
        return out.reshape(shape)

    def _make(self, words: int, bytes_: int, width: int) -> None:
        self.words = np.empty((words, width), np.dtype("<i4"))
        self.planes = self.words.view(np.uint8).reshape(words, width, 4)
        self.bytes = np.empty((bytes_, width), np.uint8)

    def hold(self, words: int, bytes_: int, width: int) -> None:
        """Make room for so many vectors of this width; if there was not, what was held is lost."""
        if self.bytes.shape[1] == width:
            words, bytes_ = max(words, len(self.words)), max(bytes_, len(self.bytes))
        if (words, bytes_, width) != (len(self.words), *self.bytes.shape):
            self._make(0, 0, 1)  # give the old tables back before asking for larger ones
            self._make(words, bytes_, width)


def _index(rows: Ints) -> slice | Ints:
    """``rows`` as a slice where they are consecutive: a view instead of a copy."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (rows[1:] > rows[:-1]).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


class Bytes:
    """Byte vectors by source, any shape; source -1 is zeros."""

    def __init__(self, sources: Ints, words: int) -> None:
        self.shape = sources.shape
        flat = sources.reshape(-1)
        self.only_bytes = bool((flat >= 4 * words).all())
        if self.only_bytes:
            self.byte = _index(flat - 4 * words)
            return
        in_words = flat < 4 * words
        self.zero = bool((flat < 0).any())
        self.byte_at, self.word_at = np.flatnonzero(~in_words), np.flatnonzero(in_words & (flat >= 0))
        self.byte = flat[self.byte_at] - 4 * words
        self.word, self.plane = flat[self.word_at] // 4, flat[self.word_at] % 4

    def take(self, values: Values) -> U8:
        """The vectors, uint8 [*shape, width]; may be a view that the caller must not write."""
        lanes = values.bytes.shape[1]
        if self.only_bytes:
            return values.bytes[self.byte].reshape(*self.shape, lanes)
        out = (np.zeros if self.zero else np.empty)((int(np.prod(self.shape)), lanes), np.uint8)
        if len(self.byte_at):
            out[self.byte_at] = values.bytes[self.byte]
        if len(self.word_at):
            out[self.word_at] = values.planes[self.word, :, self.plane]
        return out.reshape(*self.shape, lanes)


class Words:
    """Numbers by the sources of their four bytes, [n, 4]; least significant first."""

    def __init__(self, sources: Ints, words: int) -> None:
        whole = (sources == sources[:, :1] + np.arange(4)).all(axis=1)
        whole &= (sources[:, 0] % 4 == 0) & (sources[:, 0] < 4 * words)
        self.size = len(sources)
        self.whole_at, self.parts_at = np.flatnonzero(whole), np.flatnonzero(~whole)
        self.whole = _index(sources[whole, 0] // 4)
        self.parts = [Bytes(sources[~whole, k], words) for k in range(4)] if len(self.parts_at) else []

    def take(self, values: Values) -> I32:
        """The numbers, int32 [n, width]; may be a view that the caller must not write."""
        if len(self.whole_at) == self.size:
            return values.words[self.whole]
        out = np.empty((self.size, values.words.shape[1]), np.dtype("<i4"))
        out[self.whole_at] = values.words[self.whole]
        if len(self.parts_at):
            planes = np.empty((len(self.parts_at), out.shape[1], 4), np.uint8)
            for k, part in enumerate(self.parts):
                planes[:, :, k] = part.take(values)
            out[self.parts_at] = planes.view(np.dtype("<i4"))[:, :, 0]
        return out
