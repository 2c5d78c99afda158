"""An ``.onnx`` file in; what a Hugging Face folder has out: configuration, tensors, tokenizer, chat template.

Weights stay what they are: a tensor is a view of the graph's, turned where the exporter turned it.  What a graph cannot
say is read beside the file: the tokenizer, the chat template, the end tokens and the longest context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openlpu._base.errors import BadCheckpoint
from openlpu.checkpoint import chat as chat_template
from openlpu.checkpoint.chat import Chat
from openlpu.checkpoint.fields import Fields
from openlpu.checkpoint.onnx import assemble, feeds, file, operators, proof, words
from openlpu.checkpoint.onnx.feeds import Interface
from openlpu.checkpoint.onnx.file import OnnxGraph
from openlpu.checkpoint.onnx.trace import trace
from openlpu.checkpoint.onnx.traced import Traced
from openlpu.checkpoint.tensors import Entry, Tensors
from openlpu.checkpoint.tokenizer import Detokenizer, Tokenizer

SUFFIX = ".onnx"
SAMPLE = 11  # tokens a graph is read with: a number that is no other size of a model
CONTEXT = 2048  # positions of a graph that states none, and most of one without a cache unless more are asked for
LEAST_CONTEXT = 16


class OnnxTensors(Tensors):
    """Name -> fp32 array; also the graph they are of, so that a model made of them can be compared with it."""

    readable = ("F32",)
    described = "the graph"

    def __init__(self, graph: OnnxGraph, interface: Interface, logits: str, arrays: Mapping[str, np.ndarray]) -> None:
        path = graph.path
        super().__init__(path, {})
        self.graph, self.interface, self.logits = graph, interface, logits
        self._arrays = dict(sorted(arrays.items()))
        self.entries = {name: Entry(path, "F32", x.shape, 0, 4 * x.size) for name, x in self._arrays.items()}
        self._readable = list(self.entries)

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes, row by row: a view where the graph has them so."""
        return np.ascontiguousarray(self._arrays[name], "<f4").reshape(-1).view(np.uint8)


class NoTokenizer(Tokenizer):
    """Where a graph comes without one: token ids can be run, text cannot."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}')

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """:class:`BadCheckpoint`: there is nothing to encode with."""
        fix = f"put its tokenizer.json beside the file, or name the folder that has it: {self.path.name}@FOLDER"
        raise BadCheckpoint("the model has no tokenizer, so it reads no text", where=str(self.path), fix=fix)

    def stream(self, after: Sequence[int] = ()) -> Detokenizer:
        """A detokeniser that has no text for any id."""
        return Detokenizer(Tokenizer(self.path, self.document()))


@dataclass(frozen=True)
class OnnxFile:
    """An open file; ``config`` and ``generation`` have the fields of a folder's JSON files, ``texts`` is theirs."""

    path: Path
    config: Fields
    generation: Fields
    tensors: Tensors
    texts: Path

    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the folder of texts; where there is none, one that says so when text is used."""
        path = self.texts / "tokenizer.json"
        return Tokenizer(path) if path.is_file() else NoTokenizer(self.path)

    def chat(self) -> Chat | None:
        """The chat template in the folder of texts; None without."""
        return chat_template.read(self.texts)


def is_onnx(name: str | Path) -> bool:
    """Whether a name is ``FILE.onnx`` or ``FILE.onnx@FOLDER``, the folder being that of the tokenizer."""
    return _split(name)[0].suffix == SUFFIX


def open_file(name: str | Path, context: int | None = None) -> OnnxFile:
    """The decoder that a graph is; ``context`` is what was asked for.

    Raises :class:`BadCheckpoint` for a broken file and, naming the node, :class:`Unsupported` for a graph that is no
    decoder openlpu knows.
    """
    path, texts = _split(name)
    if not texts.is_dir():
        raise BadCheckpoint("no such folder", where=str(texts), fix="name the folder that has the tokenizer.json")
    graph = file.read(path)
    operators.check(graph)
    interface = feeds.read(graph)
    t = trace(graph, interface, interface.window(SAMPLE))
    decoder, beside = assemble.assemble(t), Fields.optional(texts / "config.json")
    most, windows = _proved(t, interface, decoder, beside, context)
    fields = words.config(t, decoder, windows, most)
    known = beside.values or {"bos_token_id": None, "eos_token_id": None}  # a graph alone has no end tokens
    fields |= {name: known[name] for name in ("bos_token_id", "eos_token_id") if name in known}
    tensors = OnnxTensors(graph, interface, assemble.logits(t), words.completed(decoder.tensors, fields))
    generation = Fields.optional(texts / "generation_config.json")
    return OnnxFile(path, Fields(path, fields), generation, tensors, texts)


def _split(name: str | Path) -> tuple[Path, Path]:
    """The file, and the folder of its texts: the one named behind an ``@``, or its own."""
    whole, at, folder = Path(name).expanduser(), f"{SUFFIX}@", str(name)
    if whole.suffix == SUFFIX or at not in folder:
        return whole, whole.parent
    before, _, after = folder.partition(at)
    return Path(before + SUFFIX).expanduser(), Path(after).expanduser()


def _proved(
    t: Traced, interface: Interface, decoder: assemble.Decoder, beside: Fields, asked: int | None
) -> tuple[int, tuple[int, ...]]:
    """The longest context that the graph is proved for, and the window of each layer."""
    problem = None
    for context in _contexts(interface, beside, asked):
        try:
            return context, proof.windows(t, interface, decoder.attentions, context)
        except BadCheckpoint as error:  # a table of angles that ends before
            problem = problem or error
    assert problem is not None, "there is a context to try"
    raise problem


def _contexts(interface: Interface, beside: Fields, asked: int | None) -> Iterator[int]:
    """Contexts to try: what is stated or asked for, else a power of two that the graph's tables have."""
    fixed = interface.slots or (0 if interface.caches else interface.window(0))
    stated = beside.integer("max_position_embeddings", 0, least=0) or asked or 0
    if stated and not interface.caches:
        stated = min(stated, max(CONTEXT, asked or 0))
    if fixed or stated:
        yield min(filter(None, (fixed, stated)))
        return
    context = CONTEXT
    while context >= LEAST_CONTEXT:
        yield context
        context //= 2
