"""The vocabulary of a GGUF file in; the ``tokenizer.json`` that means the same out, and its chat template.

A file says which tokenizer it has by a name and leaves the rest to its reader.  Two kinds are read: byte-level BPE,
whose texts are first cut by the patterns of a named pre-tokenizer, and SentencePiece, whose merges follow from the
scores of its pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu.checkpoint.chat import Chat
from openlpu.checkpoint.gguf_vocabulary import (
    CONTROL,
    NORMAL,
    SENTENCEPIECE,
    UNKNOWN,
    UNUSED,
    USER,
    Vocabulary,
    column,
)

_SPACE = "▁"  # what SentencePiece writes for a space
_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words(digits: str, after: str = r"[\r\n]*") -> str:
    """The pattern that Llama 3 and Qwen 2 share, with how many ``digits`` stand together."""
    return (rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+{after}"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+")


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
           r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class _Cut:
    """A pre-tokenizer: each pattern cuts what the ones before left; ``whole`` takes a word that is a token as it is."""

    patterns: tuple[str, ...]
    whole: bool = False  # and such a tokenizer begins a text with its bos, unless the file says otherwise
    composed: bool = False  # texts are brought to Unicode's form NFC first


_CUTS = {
    "gpt-2": _Cut((_GPT2,)),
    "smollm": _Cut((_DIGIT, _GPT2)),
    "llama-bpe": _Cut((_words(r"\p{N}{1,3}"),), whole=True),
    "smaug-bpe": _Cut((_words(r"\p{N}{1,3}"),)),
    "qwen2": _Cut((_words(_DIGIT),), composed=True),
    "deepseek-r1-qwen": _Cut((_words(_DIGIT),)),
    "seed-coder": _Cut((_words(_DIGIT, ""),)),
    "tekken": _Cut((_TEKKEN,), whole=True),
    "deepseek-coder": _Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", _DIGIT)),
    "default": _Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
_SAME = {
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "mellum", "gigachat", "a.x-4.0"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"),
    "smaug-bpe": ("dbrx",),
    "qwen2": ("megrez", "kormo"),
}
_NAMED: Mapping[str, _Cut] = _CUTS | {other: _CUTS[name] for name, others in _SAME.items() for other in others}


def document(vocabulary: Vocabulary) -> bytes:
    """A ``tokenizer.json``.

    Raises :class:`BadCheckpoint` for a vocabulary that is inconsistent, :class:`Unsupported` for a pre-tokenizer
    that openlpu does not know.
    """
    made = _sentencepiece(vocabulary) if vocabulary.model == SENTENCEPIECE else _bpe(vocabulary)
    made = {"version": "1.0", "added_tokens": _added(vocabulary)} | made
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()


def chat(vocabulary: Vocabulary) -> Chat | None:
    """The file's chat template; None without."""
    metadata = vocabulary.metadata
    if "tokenizer.chat_template" not in metadata.values:
        return None
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{role}_token": vocabulary.role(word) for role, word in roles.items()}
    special = {role: vocabulary.tokens[token] for role, token in ids.items() if token is not None}
    return Chat(metadata.path, metadata.text("tokenizer.chat_template"), special)


def _bpe(v: Vocabulary) -> dict[str, Any]:
    """Byte-level BPE: merges in order, and the patterns that the pre-tokenizer's name stands for."""
    name = v.metadata.text("tokenizer.ggml.pre", "default")
    if name not in _NAMED:
        where, known = v.metadata.where("tokenizer.ggml.pre"), f"one of: {', '.join(sorted(_NAMED))}"
        raise Unsupported(f"the pre-tokenizer '{name}'", where=where, fix=known)
    cut, spelled = _NAMED[name], {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cuts = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in cut.patterns]
    return {
        "normalizer": {"type": "NFC"} if cut.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, {"type": "ByteLevel"} | spelled]},
        "post_processor": _around(v, cut.whole),
        "decoder": {"type": "ByteLevel"} | spelled,
        "model": {"type": "BPE", "ignore_merges": cut.whole, "vocab": _ids(v), "merges": _given_merges(v)},
    }


def _sentencepiece(v: Vocabulary) -> dict[str, Any]:
    """SentencePiece: a space is part of the word after it, and a character without a token is spelled in bytes."""
    unknown, before = v.role("unknown"), v.metadata.flag("tokenizer.ggml.add_space_prefix", True)
    if unknown is None:
        raise v.metadata.wrong("tokenizer.ggml.unknown_token_id", "the vocabulary is empty")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    prefix, strip = {"type": "Prepend", "prepend": _SPACE}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prefix, spaces] if before else [spaces]},
        "pre_tokenizer": None,
        "post_processor": _around(v, True),
        "decoder": {"type": "Sequence", "decoders": [*decoders, strip] if before else decoders},
        "model": {
            "type": "BPE", "unk_token": v.tokens[unknown], "fuse_unk": True, "byte_fallback": True,
            "vocab": _ids(v), "merges": list(_scored_merges(v)),
        },
    }


def _ids(v: Vocabulary) -> dict[str, int]:
    """Text -> id, without the tokens that only fill the table."""
    ids: dict[str, int] = {}
    for token, (text, kind) in enumerate(zip(v.tokens, v.types, strict=True)):
        if kind != UNUSED and text:
            if text in ids:
                raise BadCheckpoint(f"tokens {ids[text]} and {token} are both {text!r}",
                                    where=v.metadata.where("tokenizer.ggml.tokens"))
            ids[text] = token
    return ids


def _added(v: Vocabulary) -> list[dict[str, Any]]:
    """The tokens that are found in a text before anything else happens to it."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": token, "content": text, "special": kind != USER} | plain
        for token, (text, kind) in enumerate(zip(v.tokens, v.types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER) and text
    ]


def _around(v: Vocabulary, begin: bool) -> dict[str, Any] | None:
    """The tokens put around a text: ``begin`` is whether bos is, where the file does not say."""
    pieces: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    used: dict[str, Any] = {}
    for role, absent, at in (("bos", begin, 0), ("eos", False, len(pieces) + 1)):
        token = v.role(role)
        if v.metadata.flag(f"tokenizer.ggml.add_{role}_token", absent) and token is not None:
            text = v.tokens[token]
            pieces.insert(at, {"SpecialToken": {"id": text, "type_id": 0}})
            used[text] = {"id": text, "ids": [token], "tokens": [text]}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": used} if used else None


def _given_merges(v: Vocabulary) -> list[tuple[str, str]]:
    out = []
    for merge in column(v.metadata, "merges", str):
        left, _, right = merge[1:].partition(" ")
        out.append((merge[:1] + left, right))
    return out


def _scored_merges(v: Vocabulary) -> Iterator[tuple[str, str]]:
    """Every way to put a piece together from two others, best score first; equal scores keep the order of ids."""
    scores = column(v.metadata, "scores", float, len(v.tokens)) or [0.0] * len(v.tokens)
    ids = {text: token for token, (text, kind) in enumerate(zip(v.tokens, v.types, strict=True)) if kind == NORMAL}
    for piece in sorted(ids, key=lambda text: -scores[ids[text]]):
        halves = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        yield from sorted((pair for pair in halves if pair[0] in ids and pair[1] in ids),
                          key=lambda pair: (ids[pair[0]], ids[pair[1]]))
