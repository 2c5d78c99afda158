"""The ``config.json`` of a BERT-style encoder in, its shape out; its tensors in, the same under BERT's names out.

BERT, RoBERTa and DistilBERT are one architecture: word, position and (but for DistilBERT) token-type embeddings, then
layers whose norms come after each addition.  What differs is what fields and tensors are called; the latter is said in
``graph/models/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from openlpu._base.errors import TooManyPositions, Unsupported
from openlpu.arch.truepoint.codes import MAX_SUM
from openlpu.checkpoint.config import ENCODERS, ModelConfig, Rope, exact
from openlpu.checkpoint.fields import Fields
from openlpu.checkpoint.tensors import Tensors

ACTIVATIONS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}  # hidden_act -> which GELU


@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """Shape of an encoder, in which every position sees all: ``types`` of tokens (0: none), a form of GELU as
    ``activation``, and a table of ``positions`` of which the first token takes row ``first_position``."""

    positions: int = 512
    types: int = 2
    activation: str = "erf"
    first_position: int = 0


@dataclass(frozen=True)
class _Words:
    """What an architecture calls BERT's fields, and what it assumes of those that are absent."""

    fields: Mapping[str, str] = field(default_factory=dict)
    types: int = 2
    norm_eps: float = 1e-12
    first_position: int = 0


_WORDS = {
    "bert": _Words(),
    "roberta": _Words(norm_eps=1e-5, first_position=2),  # behind the row of padding, whose id is 1
    "distilbert": _Words(
        {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
         "intermediate_size": "hidden_dim", "hidden_act": "activation"}, types=0,
    ),
}


def is_encoder(config: Fields) -> bool:
    """Whether a ``config.json`` is that of an encoder."""
    return config.values.get("model_type") in ENCODERS


def read(config: Fields, context: int | None = None) -> EncoderConfig:
    """The shape a ``config.json`` describes; ``context`` limits the positions of a sequence.

    Raises :class:`BadCheckpoint` for a field that is missing or impossible, :class:`Unsupported` for one that asks for
    what openlpu does not do, :class:`TooManyPositions` for more positions than the model has.
    """
    architecture = config.text("model_type")
    words = _WORDS[architecture]

    def name(field: str) -> str:
        return words.fields.get(field, field)

    _check_supported(config, name("hidden_act"))
    hidden, heads = config.integer(name("hidden_size")), config.integer(name("num_attention_heads"))
    if hidden % heads:
        raise config.wrong(name("hidden_size"), f"not a multiple of the {heads} heads")
    positions = config.integer("max_position_embeddings", 512, least=words.first_position + 1)
    own = positions - words.first_position
    if context is not None and not 1 <= context <= own:
        raise TooManyPositions(context, own, config.where("max_position_embeddings"))
    return exact(config, EncoderConfig(
        architecture=architecture, hidden=hidden, layers=config.integer(name("num_hidden_layers")), heads=heads,
        kv_heads=heads, head_dim=hidden // heads, intermediate=config.integer(name("intermediate_size")),
        vocab=config.integer("vocab_size"), context=context or own,
        norm_eps=config.number("layer_norm_eps", words.norm_eps), rope=Rope(1.0, "none"), tied=True,
        positions=positions,
        types=config.integer("type_vocab_size", words.types) if words.types else 0,
        activation=ACTIVATIONS[config.text(name("hidden_act"), "gelu")], first_position=words.first_position,
    ), norms=MAX_SUM)


def _check_supported(config: Fields, activation: str) -> None:
    """Fields that change the arithmetic in ways no encoder here has."""
    act = config.text(activation, "gelu")
    if act not in ACTIVATIONS:
        raise Unsupported(f"the activation '{act}' in an encoder", where=config.where(activation),
                          fix=f"one of: {', '.join(ACTIVATIONS)}")
    kind = config.text("position_embedding_type", "absolute")
    if kind != "absolute":
        raise Unsupported(f"the position embedding '{kind}'", where=config.where("position_embedding_type"),
                          fix="only absolute")
    if config.flag("is_decoder", False):
        raise Unsupported("a BERT that decodes", where=config.where("is_decoder"), fix="only encoders: false")


class EncoderTensors(Tensors):
    """Name -> fp32 array, under the names of a model without a head.

    The file's names may begin with the architecture's (``bert.``), as those of a model with a head do; norms may have
    a ``gamma`` and a ``beta``.  Heads, the pooler among them, are not looked at.
    """

    def __init__(self, tensors: Tensors, architecture: str) -> None:
        super().__init__(tensors.folder, tensors.entries)
        self.prefix = f"{architecture}."

    def _own(self, name: str) -> str:
        """What the file calls a tensor; without it, what it should."""
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        known = (name, self.prefix + name, old, self.prefix + old)
        return next((one for one in known if one in self.entries), name)

    def __getitem__(self, name: str) -> np.ndarray:
        """As :meth:`Tensors.__getitem__`."""
        return super().__getitem__(self._own(name))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(self._own(str(name)))

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """As :meth:`Tensors.require`."""
        super().require(self._own(name), shape)
