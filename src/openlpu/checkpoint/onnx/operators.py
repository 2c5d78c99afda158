"""The operators that openlpu knows, by the standard's names, and one way to run any of them.

In: an operation and its inputs as arrays.  Out: its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu.checkpoint.onnx import arithmetic as a
from openlpu.checkpoint.onnx import layout as m
from openlpu.checkpoint.onnx import standard as s
from openlpu.checkpoint.onnx.file import OnnxGraph, Operation
from openlpu.checkpoint.onnx.layout import Arrays, Attributes

Operator = Callable[[Arrays, Attributes], np.ndarray | tuple[np.ndarray, ...]]

# They move numbers of their first input, other inputs saying where to; Concat and the scatters move those of more.
MOVES: Mapping[str, Operator] = {
    "Identity": m.identity, "Reshape": m.reshape, "Transpose": m.transpose, "Squeeze": m.squeeze,
    "Unsqueeze": m.unsqueeze, "Flatten": m.flatten, "Expand": m.expand, "Tile": m.tile, "Slice": m.slices,
    "Split": m.split, "Concat": m.concat, "Gather": m.gather, "GatherElements": m.gather_elements,
    "GatherND": m.gather_nd, "TensorScatter": m.scatter, "ScatterND": m.scatter_nd,
}
_COMPUTES: Mapping[str, Operator] = {
    "Add": a.plain(np.add), "Sub": a.plain(np.subtract), "Mul": a.plain(np.multiply), "Div": a.divide,
    "Pow": a.power, "Mod": a.modulo, "Min": a.folded(np.minimum), "Max": a.folded(np.maximum),
    "Sum": a.folded(np.add), "Neg": a.plain(np.negative), "Abs": a.plain(np.abs), "Sign": a.plain(np.sign),
    "Sqrt": a.plain(np.sqrt), "Reciprocal": a.plain(np.reciprocal), "Exp": a.plain(np.exp), "Log": a.plain(np.log),
    "Sin": a.plain(np.sin), "Cos": a.plain(np.cos), "Tanh": a.plain(np.tanh), "Floor": a.plain(np.floor),
    "Ceil": a.plain(np.ceil), "Round": a.plain(np.rint), "Sigmoid": a.sigmoid, "Swish": a.swish, "Clip": a.clip,
    "Equal": a.plain(np.equal), "Less": a.plain(np.less), "LessOrEqual": a.plain(np.less_equal),
    "Greater": a.plain(np.greater), "GreaterOrEqual": a.plain(np.greater_equal), "And": a.plain(np.logical_and),
    "Or": a.plain(np.logical_or), "Xor": a.plain(np.logical_xor), "Not": a.plain(np.logical_not),
    "Where": a.plain(np.where), "IsNaN": a.plain(np.isnan), "IsInf": a.is_inf, "Cast": a.cast,
    "CastLike": a.cast_like, "Shape": a.shape, "Size": a.size, "Constant": a.constant,
    "ConstantOfShape": a.constant_of_shape, "Range": a.counted, "Trilu": a.triangle, "CumSum": a.running_sum,
    "ReduceMean": a.reduced(np.mean), "ReduceSum": a.reduced(np.sum), "ReduceProd": a.reduced(np.prod),
    "ReduceMax": a.reduced(a.extreme(np.max, -np.inf)), "ReduceMin": a.reduced(a.extreme(np.min, np.inf)),
    "MatMul": a.plain(np.matmul), "Gemm": a.gemm,
    "Softmax": a.softmax, "LayerNormalization": a.layer_norm, "RMSNormalization": s.rms_norm,
    "RotaryEmbedding": s.rotary, "Attention": s.attention,
}
OPERATORS: Mapping[str, Operator] = MOVES | _COMPUTES

# What an operator's node may say beside its inputs.  A name that is not here could mean anything, so it is refused;
# some only choose among precisions, and here there is one.
_REDUCES = ("axes", "keepdims", "noop_with_empty_axes")
_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((kind for kind in OPERATORS if kind.startswith("Reduce")), _REDUCES),
    **dict.fromkeys(("Flatten", "Concat", "Gather", "GatherElements", "Softmax"), ("axis",)),
    "Reshape": ("allowzero",), "Transpose": ("perm",), "Split": ("axis", "num_outputs"), "GatherND": ("batch_dims",),
    "TensorScatter": ("axis", "mode"), "ScatterND": ("reduction",),
    "Mod": ("fmod",), "Swish": ("alpha",), "Range": ("stash_type",),
    "IsInf": ("detect_negative", "detect_positive"), "Cast": ("to", "saturate", "round_mode"),
    "CastLike": ("saturate", "round_mode"), "Shape": ("start", "end"), "ConstantOfShape": ("value",),
    "Constant": ("value", "value_float", "value_floats", "value_int", "value_ints"), "Trilu": ("upper",),
    "CumSum": ("exclusive", "reverse"), "Gemm": ("alpha", "beta", "transA", "transB"),
    "LayerNormalization": ("axis", "epsilon", "stash_type"), "RMSNormalization": ("axis", "epsilon", "stash_type"),
    "RotaryEmbedding": ("interleaved", "num_heads", "rotary_embedding_dim"),
    "Attention": ("is_causal", "kv_num_heads", "left_window_size", "q_num_heads", "qk_matmul_output_mode",
                  "right_window_size", "scale", "softcap", "softmax_precision"),
}

_QUANTIZED = "its weights are already quantized: export the float model"
_WHY = dict.fromkeys(
    ("DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear", "MatMulInteger", "QLinearMatMul", "ConvInteger"),
    _QUANTIZED,
) | dict.fromkeys(("If", "Loop", "Scan"), "openlpu has no control flow: export a model whose branches are decided")


# What NumPy raises for arrays that do not fit an operator, or each other.
NO_FIT = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)


def check(graph: OnnxGraph) -> None:
    """:class:`Unsupported` naming the first node whose operator or attribute is unknown, and those that are known."""
    for operation in graph.operations:
        if operation.kind not in OPERATORS:
            known = f"one of: {', '.join(sorted(OPERATORS))}"
            fix = f"{_WHY[operation.kind]}; operators are {known}" if operation.kind in _WHY else known
            raise Unsupported(f"the operator {operation.kind}", where=graph.where(operation), fix=fix)
        known = _ATTRIBUTES.get(operation.kind, ())
        for name in operation.attributes:
            if name not in known:
                fix = f"attributes of it are: {', '.join(known) or 'none'}"
                raise Unsupported(f"the attribute '{name}'", where=graph.where(operation), fix=fix)


def apply(graph: OnnxGraph, operation: Operation, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """The outputs of an operation; :class:`BadCheckpoint` naming it where its inputs do not fit."""
    try:
        with np.errstate(all="ignore"):  # masks are made with infinities, and what they hide does not count
            found = OPERATORS[operation.kind](inputs, operation.attributes)
    except NO_FIT as broken:
        shapes = ", ".join("-" if x is None else f"{x.dtype}{list(x.shape)}" for x in inputs)
        raise BadCheckpoint(f"cannot be computed on {shapes}: {broken}", where=graph.where(operation)) from broken
    return tuple(map(np.asarray, found)) if isinstance(found, tuple) else (np.asarray(found),)
