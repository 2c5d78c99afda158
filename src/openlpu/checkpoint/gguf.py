"""A ``.gguf`` file in; what a Hugging Face folder has out: configuration, tensors, tokenizer, chat template.

Nothing is converted: the metadata is translated, the weights stay in the file, in blocks, until they are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openlpu.checkpoint import gguf_config, gguf_container, gguf_tokenizer, gguf_vocabulary
from openlpu.checkpoint.chat import Chat
from openlpu.checkpoint.fields import Fields
from openlpu.checkpoint.gguf_tensors import ROPE_FACTORS, GgufTensors, check_used, renamed
from openlpu.checkpoint.gguf_vocabulary import Vocabulary
from openlpu.checkpoint.tensors import Entry, Tensors
from openlpu.checkpoint.tokenizer import Tokenizer


@dataclass(frozen=True)
class GgufFile:
    """An open file; ``config`` and ``generation`` have the fields of the JSON files of a folder."""

    path: Path
    config: Fields
    generation: Fields
    tensors: Tensors
    vocabulary: Vocabulary

    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer; :class:`Unsupported` for a kind that openlpu does not read."""
        return Tokenizer(self.path, gguf_tokenizer.document(self.vocabulary))

    def chat(self) -> Chat | None:
        """The file's chat template; None without."""
        return gguf_tokenizer.chat(self.vocabulary)


def is_gguf(path: Path) -> bool:
    """Whether a path is a file of this format, by its name or its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(4) == gguf_container.MAGIC


def open_file(path: Path) -> GgufFile:
    """Everything a file says, checked; no weight is read.

    Raises :class:`BadCheckpoint` or :class:`Unsupported` naming the file and the field or tensor.
    """
    container = gguf_container.read(path)
    metadata, name = container.metadata, gguf_config.architecture(container.metadata)
    vocabulary = gguf_vocabulary.read(metadata)
    found = dict(container.entries)
    factors = _factors(path, found.pop(ROPE_FACTORS, None))
    entries = renamed(found)
    config = gguf_config.config(metadata, len(vocabulary.tokens), entries, factors)
    check_used(found, config.text("model_type"), config.integer("num_hidden_layers"))
    tensors = GgufTensors(path, entries, _turned(config, entries) if name == "llama" else {})
    return GgufFile(path, config, gguf_config.generation(vocabulary), tensors, vocabulary)


def _factors(path: Path, entry: Entry | None) -> np.ndarray | None:
    """What each rotary frequency is divided by; None where the file does not say."""
    if entry is None:
        return None
    one = Tensors(path, {ROPE_FACTORS: entry})
    one.require(ROPE_FACTORS, entry.shape)
    return one[ROPE_FACTORS]


def _turned(config: Fields, names: Iterable[str]) -> dict[str, int]:
    """The tensors of queries and keys, and how many heads their rows are."""
    heads = config.integer("num_attention_heads")
    kinds = {"q_proj": heads, "k_proj": config.integer("num_key_value_heads", heads)}
    found = {name: kinds.get(name.split(".")[-2]) for name in names}
    return {name: count for name, count in found.items() if count is not None}
