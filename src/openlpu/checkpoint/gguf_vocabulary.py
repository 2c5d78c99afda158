"""GGUF metadata in; its vocabulary, checked, out: token texts, their types, and which ids have a role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from openlpu._base.errors import Unsupported
from openlpu.checkpoint.fields import Fields

T = TypeVar("T")
BPE, SENTENCEPIECE = "gpt2", "llama"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # token types
# Roles in a SentencePiece file that does not name them, as in Llama 2.
_SILENT: Mapping[str, Mapping[str, int]] = {SENTENCEPIECE: {"unknown": 0, "bos": 1, "eos": 2}, BPE: {}}
# Texts that end a turn.  A file names one end token, but its chat template may write others.
_ENDS = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<EOT>")


@dataclass(frozen=True)
class Vocabulary:
    """``tokens`` and ``types`` by id; ``model`` is "gpt2" (byte-level BPE) or "llama" (SentencePiece)."""

    metadata: Fields
    model: str
    tokens: list[str]
    types: list[int]

    def role(self, word: str) -> int | None:
        """The id of ``tokenizer.ggml.<word>_token_id``, None without; :class:`BadCheckpoint` for an impossible one."""
        name, count = f"tokenizer.ggml.{word}_token_id", len(self.tokens)
        silent = _SILENT[self.model].get(word)
        if name not in self.metadata.values:
            return silent if silent is None or silent < count else None
        token = self.metadata.integer(name, least=0)
        if token >= count:
            raise self.metadata.wrong(name, f"the vocabulary has {count} tokens")
        return token

    def ends(self) -> list[int]:
        """The ids that end a text or a turn: those with that role, then control tokens with such a text."""
        named = [token for token in map(self.role, ("eos", "eot", "eom")) if token is not None]
        control = {self.tokens[at] for at, kind in enumerate(self.types) if kind == CONTROL}
        return list(dict.fromkeys(named + [self.tokens.index(text) for text in _ENDS if text in control]))


def read(metadata: Fields) -> Vocabulary:
    """The vocabulary of a file; :class:`Unsupported` for a kind of tokenizer that openlpu does not read."""
    model = metadata.text("tokenizer.ggml.model")
    if model not in _SILENT:
        where, known = metadata.where("tokenizer.ggml.model"), f"one of: {', '.join(_SILENT)}"
        raise Unsupported(f"the tokenizer model '{model}'", where=where, fix=known)
    tokens = column(metadata, "tokens", str)
    types = column(metadata, "token_type", int, len(tokens))
    return Vocabulary(metadata, model, tokens, types or [NORMAL] * len(tokens))


def column(metadata: Fields, word: str, kind: type[T], count: int | None = None) -> list[T]:
    """The list ``tokenizer.ggml.<word>``; with a ``count`` it may be absent (an empty list) or must have that many."""
    name = f"tokenizer.ggml.{word}"
    values = metadata.values.get(name)
    if values is None and count is not None:
        return []
    if not isinstance(values, list) or not values or not all(isinstance(value, kind) for value in values):
        raise Fields(metadata.path, {}).wrong(name, f"must be a list of {kind.__name__}")
    if count is not None and len(values) != count:
        raise Fields(metadata.path, {}).wrong(name, f"has {len(values)} entries, the vocabulary {count}")
    return values
