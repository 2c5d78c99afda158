"""TruePoint: every reduction is exact, in integers, or has one canonical order that no target can change.

This package is the executable definition, in NumPy; ``docs/truepoint.md`` is the prose.
"""

from openlpu.arch.truepoint.attention import BLOCK, Cache, attend
from openlpu.arch.truepoint.codes import (
    Codes,
    embed,
    headnorm,
    layernorm,
    linear,
    planes,
    quantize,
    quantize_cache,
    rms_scale,
)
from openlpu.arch.truepoint.elementwise import exp, gelu, reciprocal, rsqrt, sigmoid, silu, swiglu, tanh
from openlpu.arch.truepoint.experts import mix, route, select
from openlpu.arch.truepoint.rope import rotate

VERSION = 1
"""Numerics version: any change of a bit anywhere raises it."""

__all__ = [
    "BLOCK", "VERSION", "Cache", "Codes", "attend", "embed", "exp", "gelu", "headnorm", "layernorm", "linear", "mix",
    "planes", "quantize", "quantize_cache", "reciprocal", "rms_scale", "rotate", "route", "rsqrt", "select", "sigmoid",
    "silu", "swiglu", "tanh",
]
