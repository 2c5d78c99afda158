"""A ``tokenizer.json`` in, text to ids and ids to text out, piece by piece for streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from openlpu._base.errors import BadCheckpoint, BadRequest

_UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no whole character


class Tokenizer:
    """The tokenizer of a checkpoint; ``size`` is one more than its largest token id.

    ``document`` is the text of a ``tokenizer.json`` when ``path``, which errors name, is a file of another kind.
    """

    def __init__(self, path: Path, document: bytes | None = None) -> None:
        if not path.is_file():
            fix = "save the tokenizer with transformers' PreTrainedTokenizerFast, which writes this file"
            raise BadCheckpoint("the tokenizer is missing", where=str(path), fix=fix)
        self.path, self._document = path, document
        try:
            self._library = tokenizers.Tokenizer.from_str(self.document().decode("utf-8"))
        except Exception as broken:  # the library raises no narrower type
            raise BadCheckpoint(f"not a tokenizer: {broken}", where=str(path)) from broken
        # Padding and truncation are of training: a prompt is encoded as it is.
        self._library.no_padding()
        self._library.no_truncation()
        added = self._library.get_added_tokens_decoder()
        self._silent = frozenset(i for i, token in added.items() if token.special)
        self.size = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)

    def document(self) -> bytes:
        """The tokenizer as a ``tokenizer.json``."""
        return self._document or self.path.read_bytes()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; ``special`` adds what the tokenizer puts around a text (``<s>``).

        Text of a chat template carries its own special tokens: encode it with ``special=False``.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as broken:
            raise BadRequest(f"not Unicode: {broken.reason} at character {broken.start}", where="prompt",
                             fix="give text, in UTF-8 on a command line") from broken
        return self._library.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Iterable[int], *, after: Sequence[int] = ()) -> str:
        """Text of ids, special tokens left out, as a continuation of the ids ``after``."""
        stream = self.stream(after)
        return "".join([stream.push(i) for i in ids]) + stream.finish()

    def stream(self, after: Sequence[int] = ()) -> Detokenizer:
        """A detokeniser for the ids that continue ``after`` (a prompt)."""
        return Detokenizer(self, begun=any(self.audible(i) for i in after))

    def token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id; None when there is none."""
        return self._library.id_to_token(token_id) if token_id >= 0 else None

    def audible(self, token_id: int) -> bool:
        """Whether an id has text: it is in the vocabulary and not a special token."""
        return token_id not in self._silent and self.token(token_id) is not None

    def spell(self, ids: list[int]) -> str:
        """The library's decoding of ids in one piece."""
        return self._library.decode(ids, skip_special_tokens=True)


class Detokenizer:
    """Ids in one by one, text out as soon as its characters are whole.

    A Llama-2 tokenizer writes a word's space into its token and drops it at the start of a text.  A token in the
    middle is therefore spelled behind an anchor, a letter whose own text is cut off again.
    """

    def __init__(self, tokenizer: Tokenizer, begun: bool = False) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a", special=False)
        self._anchor_text = tokenizer.spell(self._anchor)
        self._begun = begun
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character's bytes are incomplete."""
        if not self._tokenizer.audible(token_id):
            return ""
        self._pending.append(token_id)
        text = self._spelled()
        return "" if text.endswith(_UNFINISHED) else self._emit(text)

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        return self._emit(self._spelled()) if self._pending else ""

    def _spelled(self) -> str:
        if not self._begun:
            return self._tokenizer.spell(self._pending)
        return self._tokenizer.spell(self._anchor + self._pending).removeprefix(self._anchor_text)

    def _emit(self, text: str) -> str:
        self._begun, self._pending = True, []
        return text
