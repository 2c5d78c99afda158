"""A Hugging Face folder, or the name of the embedded model, in; a :class:`Checkpoint` out.

Everything a folder can get wrong is found here or by the graph's shape check, before anything is computed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from openlpu._base.errors import BadCheckpoint
from openlpu._base.text import dump
from openlpu.checkpoint import chat as chat_template
from openlpu.checkpoint import config as model_config
from openlpu.checkpoint import memory
from openlpu.checkpoint.chat import Chat
from openlpu.checkpoint.config import ModelConfig
from openlpu.checkpoint.fields import Fields
from openlpu.checkpoint.tensors import Tensors, open_folder
from openlpu.checkpoint.tokenizer import Tokenizer

DEMO = Path(__file__).parent / "demo"


@dataclass(frozen=True)
class Sampling:
    """How the model's makers sample from it; the values here are those of greedy decoding."""

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Checkpoint:
    """A model as its folder describes it; ``chat`` is None when the model has no chat template."""

    path: Path
    config: ModelConfig
    tensors: Tensors
    tokenizer: Tokenizer = field(repr=False)
    chat: Chat | None
    sampling: Sampling

    def sha256(self) -> str:
        """Hash of what decides logits and text: configuration, tensors (name, type, shape, bytes), tokenizer.

        How the tensors are split over files does not matter.  Reads everything once.
        """
        digest = hashlib.sha256(dump(self.config).encode())
        for name, entry in self.tensors.entries.items():
            digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
            digest.update(self.tensors.raw(name).data)
        digest.update((self.path / "tokenizer.json").read_bytes())
        return digest.hexdigest()


def load(name: str | Path, *, context: int | None = None, room: int | None = None) -> Checkpoint:
    """The checkpoint in a folder; ``"demo"`` is the embedded model.

    ``context`` limits the positions in use, ``room`` the bytes of memory (default: what the system has).  Raises a
    subclass of :class:`~openlpu._base.errors.OpenLpuError` that names the file and the field.
    """
    folder = DEMO if name == "demo" else Path(name).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise BadCheckpoint(what, where=str(name), fix="name a Hugging Face model folder, or demo")
    generation = Fields.optional(folder / "generation_config.json")
    config = model_config.read(Fields.read(folder / "config.json"), generation, context)
    tensors = open_folder(folder)
    memory.check(config, tensors, memory.available() if room is None else room)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    if tokenizer.size > config.vocab:
        what = f"the tokenizer has {tokenizer.size} tokens, the model's vocab_size is {config.vocab}"
        raise BadCheckpoint(what, where=str(folder / "tokenizer.json"), fix="take both from the same model")
    return Checkpoint(folder, config, tensors, tokenizer, chat_template.read(folder), _sampling(generation))


def _sampling(fields: Fields) -> Sampling:
    """The defaults of a ``generation_config.json``."""
    return Sampling(
        sample=fields.flag("do_sample", False),
        temperature=fields.number("temperature", 1.0, above=-1e-9),
        top_k=fields.integer("top_k", 0, least=0),
        top_p=fields.number("top_p", 1.0),
        min_p=fields.number("min_p", 0.0, above=-1e-9),
        repetition_penalty=fields.number("repetition_penalty", 1.0),
    )
