"""A Hugging Face folder, a GGUF file, or the name of the embedded model, in; a :class:`Checkpoint` out.

Everything a model can get wrong is found here or by the graph's shape check, before anything is computed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from openlpu._base.errors import BadCheckpoint
from openlpu._base.manifest import MANIFEST
from openlpu._base.progress import Progress, silent
from openlpu._base.text import dump
from openlpu.checkpoint import chat as chat_template
from openlpu.checkpoint import config as model_config
from openlpu.checkpoint import encoder, hub, memory
from openlpu.checkpoint.chat import Chat
from openlpu.checkpoint.config import ModelConfig
from openlpu.checkpoint.fields import Fields
from openlpu.checkpoint.gguf import GgufFile, is_gguf, open_file
from openlpu.checkpoint.onnx import model as onnx
from openlpu.checkpoint.tensors import Tensors, open_folder
from openlpu.checkpoint.tokenizer import Tokenizer

DEMO = Path(__file__).parent / "demo"
_TEXTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


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
        digest.update(self.tokenizer.document())
        return digest.hexdigest()

    def texts(self) -> dict[str, bytes]:
        """The files of a folder that turn text into ids and back, by name; of a GGUF file, those that mean the same."""
        if self.path.is_dir():
            found = {name: self.path / name for name in _TEXTS}
            return {name: path.read_bytes() for name, path in found.items() if path.is_file()}
        s, chat = self.sampling, self.chat
        generation = vars(s) | {"do_sample": s.sample, "bos_token_id": self.config.bos, "eos_token_id": self.config.eos}
        del generation["sample"]
        texts = {"tokenizer.json": self.tokenizer.document(), "generation_config.json": json.dumps(generation).encode()}
        if chat:
            texts["tokenizer_config.json"] = json.dumps(dict(chat.special)).encode()
            texts["chat_template.jinja"] = chat.source.encode()
        return texts


def load(
    name: str | Path, *, context: int | None = None, room: int | None = None, progress: Progress = silent
) -> Checkpoint:
    """The checkpoint in a folder, in a ``.gguf`` file, or of a model on the Hugging Face hub; ``"demo"`` is embedded.

    ``context`` limits the positions in use, ``room`` the bytes of memory (default: what the system has); a download
    reports to ``progress``.  Raises a subclass of :class:`~openlpu._base.errors.OpenLpuError` that names the file and
    the field.
    """
    source = onnx.open_file(name, context) if onnx.is_onnx(name) else _open(name, progress)
    config = _config(source.config, source.generation, context)
    memory.check(config, source.tensors, memory.available() if room is None else room)
    tokenizer = source.tokenizer()
    if tokenizer.size > config.vocab:
        what = f"the tokenizer has {tokenizer.size} tokens, the model's vocab_size is {config.vocab}"
        raise BadCheckpoint(what, where=str(tokenizer.path), fix="take both from the same model")
    return Checkpoint(source.path, config, source.tensors, tokenizer, source.chat(), _sampling(source.generation))


def _open(name: str | Path, progress: Progress) -> GgufFile | _Folder:
    path = DEMO if name == "demo" else hub.find(name, progress)
    return open_file(path) if is_gguf(path) else _Folder.open(path)


def read_shape(path: Path, context: int | None = None) -> ModelConfig:
    """The configuration of a ``config.json`` (or of the folder it lies in), of which nothing else is looked at."""
    folder = path.parent if path.name == "config.json" else path
    fields = Fields.read(folder / "config.json")
    return _config(fields, Fields.optional(folder / "generation_config.json"), context)


def _config(config: Fields, generation: Fields, context: int | None) -> ModelConfig:
    """The shape of a decoder or an encoder."""
    if encoder.is_encoder(config):
        return encoder.read(config, context)
    return model_config.read(config, generation, context)


def read_texts(folder: Path, config: ModelConfig) -> Checkpoint:
    """What :meth:`Checkpoint.texts` wrote into a folder: a checkpoint without tensors."""
    sampling = _sampling(Fields.optional(folder / "generation_config.json"))
    tokenizer = Tokenizer(folder / "tokenizer.json")
    return Checkpoint(folder, config, Tensors(folder, {}), tokenizer, chat_template.read(folder), sampling)


@dataclass(frozen=True)
class _Folder:
    """An open Hugging Face folder: the counterpart of :class:`~openlpu.checkpoint.gguf.GgufFile`."""

    path: Path
    config: Fields
    generation: Fields
    tensors: Tensors

    @classmethod
    def open(cls, path: Path) -> _Folder:
        if not path.is_dir():
            what = "is a file, not a folder" if path.exists() else "no such folder"
            fix = "name a Hugging Face model folder, a model on its hub, a .gguf or .onnx file, or demo"
            raise BadCheckpoint(what, where=str(path), fix=fix)
        if not (path / "config.json").exists() and (path / MANIFEST).is_file():
            made = "compiled for a processor" if (path / "stored.json").is_file() else "a program for chips"
            raise BadCheckpoint(f"this is {made}, not a model", where=str(path),
                                fix="name the model it was compiled from; `openlpu run DIR` runs the program")
        config = Fields.read(path / "config.json")
        return cls(path, config, Fields.optional(path / "generation_config.json"), open_folder(path))

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.path / "tokenizer.json")

    def chat(self) -> Chat | None:
        return chat_template.read(self.path)


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
