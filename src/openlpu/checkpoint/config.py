"""What every architecture is reduced to: one frozen description of a decoder's shape.

In: the fields of a ``config.json``, read by :func:`read`.  Out: :class:`ModelConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from openlpu._base.errors import TooManyPositions, Unsupported
from openlpu.arch.truepoint.codes import MAX_K
from openlpu.checkpoint.fields import Fields


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, one of :data:`ROPE_KINDS`, and the numbers of its scaling (``graph/rotary.py``)."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    original_context: int = 0  # llama3 and yarn: positions the model was trained on before it was stretched
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float = 0.0  # 0: what factor and the mscales give


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only model; sizes in channels, context in positions.

    ``context`` is the context in use: the model's own unless :func:`read` was asked for less.
    """

    architecture: str  # Hugging Face model_type: llama, mistral, qwen2, qwen3 …
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    norm_eps: float
    rope: Rope
    tied: bool
    bos: int | None = None
    eos: tuple[int, ...] = ()
    attention_bias: bool = False  # as config.json says; an architecture may fix it
    mlp_bias: bool = False
    window: int = 0  # positions a query sees, its own included; 0: all
    full_layers: tuple[int, ...] = ()  # layers that see all positions whatever the window
    experts: int = 0  # MLPs a layer has beside each other; 0: one, that all tokens go through
    experts_per_token: int = 0


@dataclass(frozen=True)
class _Absent:
    """What Hugging Face assumes for a field that a ``config.json`` leaves out."""

    context: int
    kv_heads: int = 0  # 0: as many as heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    window: int | None = None  # 0: all positions; None: the architecture has no windows
    window_by_layer: bool = False  # whether fields turn the window on and choose its layers
    alternating: bool = False  # whether every other layer has a window, unless layer_types says more
    bos: int | None = None
    eos: int | None = None
    experts: int = 0  # 0: the architecture has none
    experts_per_token: int = 0
    norm_eps: float = 1e-6
    theta: float = 10000.0


_ABSENT: Mapping[str, _Absent] = {
    "llama": _Absent(context=2048, bos=1, eos=2),
    "mistral": _Absent(context=131072, kv_heads=8, window=4096, bos=1, eos=2),
    "qwen2": _Absent(context=32768, kv_heads=32, window=4096, window_by_layer=True),
    "qwen3": _Absent(context=32768, kv_heads=32, window=4096, window_by_layer=True, head_dim=128),
    "mixtral": _Absent(
        context=131072, kv_heads=8, window=0, bos=1, eos=2, experts=8, experts_per_token=2, norm_eps=1e-5, theta=1e6,
    ),
    "gpt_oss": _Absent(
        context=131072, kv_heads=8, head_dim=64, window=128, alternating=True, experts=128, experts_per_token=4,
        norm_eps=1e-5, theta=150000.0,
    ),
}
ARCHITECTURES = tuple(_ABSENT)
ENCODERS = ("bert", "roberta", "distilbert")  # :mod:`openlpu.checkpoint.encoder` reads them
ROPE_KINDS = ("default", "linear", "llama3", "yarn")
FULL, SLIDING = "full_attention", "sliding_attention"  # the words of layer_types
SWIGLU_LIMIT = 7.0  # of gpt_oss
MAX_WINDOW_LAYERS = 28  # where config.json is silent


def read(config: Fields, generation: Fields, context: int | None = None) -> ModelConfig:
    """The shape a ``config.json`` describes, with the end tokens of ``generation_config.json`` where it has any.

    ``context`` limits the positions in use.  Raises :class:`BadCheckpoint` for a field that is missing or
    impossible, :class:`Unsupported` for one that asks for what openlpu does not do.
    """
    architecture = config.text("model_type")
    if architecture not in _ABSENT:
        known = f"one of: {', '.join((*ARCHITECTURES, *ENCODERS))}"
        raise Unsupported(f"unknown architecture '{architecture}'", where=config.where("model_type"), fix=known)
    absent = _ABSENT[architecture]
    _check_supported(config)
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    layers, rope = config.integer("num_hidden_layers"), _rope(config, absent)
    positions = _context(config, absent, rope, context)
    window, full_layers = _window(config, absent, layers, positions)
    experts, per_token = _experts(config, absent)
    bos = generation.ids("bos_token_id") or config.ids("bos_token_id", absent.bos)
    return exact(config, ModelConfig(
        architecture=architecture,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(config, heads, absent.kv_heads),
        head_dim=_head_dim(config, hidden, heads, absent.head_dim),
        intermediate=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        context=positions,
        norm_eps=config.number("rms_norm_eps", absent.norm_eps),
        rope=rope,
        tied=config.flag("tie_word_embeddings", False),
        bos=bos[0] if bos else None,
        eos=generation.ids("eos_token_id") or config.ids("eos_token_id", absent.eos),
        attention_bias=config.flag("attention_bias", False),
        mlp_bias=config.flag("mlp_bias", False),
        window=window,
        full_layers=full_layers,
        experts=experts,
        experts_per_token=per_token,
    ))


C = TypeVar("C", bound=ModelConfig)


def exact(config: Fields, made: C, norms: int = MAX_K) -> C:
    """The shape itself, of which every sum fits int32, those of its ``norms`` too; raises :class:`Unsupported`."""
    for width, most in ((made.hidden, norms), (max(made.intermediate, made.heads * made.head_dim), MAX_K)):
        if width > most:
            raise Unsupported(f"{width:,} channels, whose sums do not fit int32", where=str(config.path),
                              fix=f"{most:,} at most")
    return made


def _check_supported(config: Fields) -> None:
    """Fields that change the arithmetic in ways no architecture here has."""
    activation = config.text("hidden_act", "silu")
    if activation != "silu":
        raise Unsupported(f"the activation '{activation}'", where=config.where("hidden_act"), fix="only silu")
    if config.number("swiglu_limit", SWIGLU_LIMIT) != SWIGLU_LIMIT:
        raise Unsupported("another limit of the gated product", where=config.where("swiglu_limit"),
                          fix=f"only {SWIGLU_LIMIT}")
    quantized = config.child("quantization_config")
    if quantized and (config.text("model_type"), quantized.text("quant_method", "")) != ("gpt_oss", "mxfp4"):
        fix = "take the model's f32, f16 or bf16 weights"
        raise Unsupported("weights that are already quantized", where=config.where("quantization_config"), fix=fix)


def _kv_heads(config: Fields, heads: int, absent: int) -> int:
    # A null and an absent field differ here: null means "as many as heads" to every architecture.
    field = "num_key_value_heads"
    kv_heads = config.integer(field, (heads if field in config.values else absent) or heads)
    if heads % kv_heads:
        raise config.wrong(field, f"num_attention_heads {heads} is not a multiple of {kv_heads}")
    return kv_heads


def _head_dim(config: Fields, hidden: int, heads: int, absent: int) -> int:
    if config.values.get("head_dim") is None and not absent and hidden % heads:
        raise config.wrong("hidden_size", f"not a multiple of num_attention_heads {heads}, and head_dim is missing")
    head_dim = config.integer("head_dim", absent or hidden // heads)
    if head_dim % 2:
        raise config.wrong("head_dim", f"{head_dim} is odd, but rotary embedding turns pairs of channels")
    return head_dim


def _context(config: Fields, absent: _Absent, rope: Rope, asked: int | None) -> int:
    """Positions in use: the model's own, or those asked for, which a stretched rotary embedding may exceed."""
    own = config.integer("max_position_embeddings", absent.context)
    reach = {"linear": own, "yarn": rope.original_context}.get(rope.kind, 0)
    longest = max(own, int(reach * rope.factor))
    if asked is not None and not 1 <= asked <= longest:
        raise TooManyPositions(asked, longest, config.where("max_position_embeddings"))
    return asked or own


def _window(config: Fields, absent: _Absent, layers: int, context: int) -> tuple[int, tuple[int, ...]]:
    """The window and the layers that do without; a window that hides nothing within the context is none."""
    off = absent.window_by_layer and not config.flag("use_sliding_window", False)
    if off or absent.window is None or not config.values.get("sliding_window", absent.window):
        return 0, ()
    window = config.integer("sliding_window", absent.window)
    full = _full_layers(config, absent, layers) if absent.window_by_layer or absent.alternating else ()
    return (window, full) if window < context and len(full) < layers else (0, ())


def _full_layers(config: Fields, absent: _Absent, layers: int) -> tuple[int, ...]:
    """Layers without a window: those that layer_types says, or every second one, or the first max_window_layers."""
    kinds = config.values.get("layer_types")
    if kinds is None and absent.alternating:
        return tuple(range(1, layers, 2))
    if kinds is None:
        return tuple(range(min(layers, config.integer("max_window_layers", MAX_WINDOW_LAYERS, least=0))))
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in (FULL, SLIDING) for kind in kinds):
        raise config.wrong("layer_types", f"must be a list of {layers} times {FULL} or {SLIDING}")
    return tuple(i for i, kind in enumerate(kinds) if kind == FULL)


def _experts(config: Fields, absent: _Absent) -> tuple[int, int]:
    """Experts of a layer and of a token."""
    if not absent.experts:
        return 0, 0
    experts = config.integer("num_local_experts", absent.experts)
    per_token = config.integer("num_experts_per_tok", absent.experts_per_token)
    if per_token > experts:
        raise config.wrong("num_experts_per_tok", f"{per_token} of {experts} experts")
    return experts, per_token


def _rope(config: Fields, absent: _Absent) -> Rope:
    """Rotary embedding, from where transformers 5 writes it (rope_parameters) or from where earlier ones did."""
    modern = config.child("rope_parameters")
    scaling = modern or config.child("rope_scaling") or Fields(config.path, {})
    own = config.number("rope_theta", absent.theta, above=1.0)
    theta = (modern or config).number("rope_theta", own, above=1.0)
    if any(isinstance(value, dict) for value in scaling.values.values()):
        raise Unsupported("a rotary embedding per kind of layer", where=config.where("rope_parameters"))
    if scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0)) != 1.0:
        raise Unsupported("rotating a part of each head", where=config.where("partial_rotary_factor"))
    field = "rope_type" if "rope_type" in scaling.values else "type"
    kind = scaling.text(field, "default")
    if kind not in ROPE_KINDS:
        why = ", whose angles change with the length of the text" if kind in ("dynamic", "longrope") else ""
        fix = f"one of: {', '.join(ROPE_KINDS)}"
        raise Unsupported(f"the RoPE type '{kind}'{why}", where=scaling.where(field), fix=fix)
    if kind == "yarn":
        return _yarn(config, absent, scaling, theta)
    if kind == "llama3":
        return _llama3(scaling, theta)
    return Rope(theta, kind, scaling.number("factor") if kind == "linear" else 1.0)


def _llama3(scaling: Fields, theta: float) -> Rope:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.wrong("high_freq_factor", f"must be above low_freq_factor {low:g}")
    original = scaling.integer("original_max_position_embeddings")
    return Rope(theta, "llama3", scaling.number("factor"), low, high, original)


def _yarn(config: Fields, absent: _Absent, scaling: Fields, theta: float) -> Rope:
    """Absent fields are those of the method's authors; a null factor is the ratio of the two contexts."""
    own = config.integer("max_position_embeddings", absent.context)
    field = "original_max_position_embeddings"  # transformers prefers the one beside the scaling
    original = config.integer(field, scaling.integer(field, own))
    fast, slow = scaling.number("beta_fast", 32.0), scaling.number("beta_slow", 1.0)
    if fast < slow:
        raise scaling.wrong("beta_fast", f"must not be below beta_slow {slow:g}")
    return Rope(
        theta, "yarn", scaling.number("factor", own / original), original_context=original,
        beta_fast=fast, beta_slow=slow, truncate=scaling.flag("truncate", True),
        mscale=scaling.number("mscale", 0.0, above=-1e-9),
        mscale_all_dim=scaling.number("mscale_all_dim", 0.0, above=-1e-9),
        attention_factor=scaling.number("attention_factor", 0.0, above=-1e-9),
    )
