"""The instruction table: every instruction's unit, fields, latency and meaning, said once.

In: nothing.  Out: :data:`TABLE`, read by the scheduler, the chip model, the encoder and the documentation.  The
instructions are those of Table I of the TSP paper (ISCA 2020); field widths and encodings are unpublished and
chosen here.  ``max``, ``min``, shifts and ``and`` on the VXM are chosen additions: dynamic scales need them.

A *stream* field is 0..63: 0..31 flow east, 32..63 flow west.  A *quad* is four streams from a multiple of four,
least significant byte first: one 32-bit number per lane.  Vector meanings act on all lanes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError
from openlpu.arch.truepoint import elementwise as ew

I32 = NDArray[np.int32]
Meaning = Callable[[I32, I32], I32]

NO_ADDRESS = 0xFFFF  # in an address map: this superlane takes no part

# Kinds of a VXM operand and destination.
NONE, QUAD, BYTE, ALU, IMM = range(5)


@dataclass(frozen=True)
class Field:
    """One operand in an instruction word: its name (a program column) and its width in bits."""

    name: str
    bits: int


@dataclass(frozen=True)
class Instruction:
    """A row of the table.  ``latency`` names an entry of the chip's latency table ("" : none)."""

    name: str
    unit: str
    opcode: int
    fields: tuple[Field, ...]
    latency: str
    text: str
    meaning: Meaning | None = None

    @property
    def bits(self) -> int:
        """Width of the encoded instruction: 7 bits of opcode and the fields."""
        return OPCODE_BITS + sum(f.bits for f in self.fields)


OPCODE_BITS = 7


def _fields(text: str) -> tuple[Field, ...]:
    pairs = (item.split(":") for item in text.split())
    return tuple(Field(name, int(width)) for name, width in pairs)


def _float(f: Callable[..., ew.F32]) -> Meaning:
    """A meaning on fp32 lanes, from a function of one or two fp32 arrays."""
    return lambda a, b: ew.bits(f(ew.from_bits(a), ew.from_bits(b)))


def _convert(a: I32, _: I32) -> I32:
    x = ew.from_bits(a)
    if not (np.abs(x) < np.float32(2.0**31)).all():
        raise NumericsError("a NaN, an infinity or a number beyond 2**31 reached a conversion to integer")
    return ew.round_even(x)


def _saturate(wide: NDArray[np.int64]) -> I32:
    return np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32)


_VXM = "a_kind:3 a:6 b_kind:3 b:6 imm:32 dst_kind:2 dst:6"
_VXM_MEANINGS: tuple[tuple[str, str, Meaning], ...] = (
    ("pass", "the bits of a", lambda a, b: a),
    ("negate", "-a, fp32", _float(lambda a, b: -a)),
    ("add", "a + b, fp32", _float(lambda a, b: a + b)),
    ("sub", "a - b, fp32", _float(lambda a, b: a - b)),
    ("mul", "a * b, fp32", _float(lambda a, b: a * b)),
    ("max", "a if a > b else b, fp32", _float(lambda a, b: np.where(a > b, a, b))),
    ("min", "a if a < b else b, fp32", _float(lambda a, b: np.where(a < b, a, b))),
    ("relu", "a if a > 0 else 0, fp32", _float(lambda a, b: np.where(a > 0, a, np.float32(0)))),
    ("mask", "bitwise a and b", lambda a, b: a & b),
    ("add_mod", "a + b, int32, modulo 2**32", lambda a, b: a + b),
    ("add_sat", "a + b, int32, saturating", lambda a, b: _saturate(a.astype(np.int64) + b)),
    ("sub_mod", "a - b, int32, modulo 2**32", lambda a, b: a - b),
    ("mul_mod", "a * b, int32, modulo 2**32", lambda a, b: a * b),
    ("mul_sat", "a * b, int32, saturating", lambda a, b: _saturate(a.astype(np.int64) * b)),
    ("max_int", "the larger of a and b, int32", lambda a, b: np.maximum(a, b)),
    ("min_int", "the smaller of a and b, int32", lambda a, b: np.minimum(a, b)),
    ("shift_left", "a << (b & 31)", lambda a, b: a << (b & 31)),
    ("shift_right", "a >> (b & 31), arithmetic", lambda a, b: a >> (b & 31)),
    ("to_float", "int32 to fp32, nearest even", lambda a, b: ew.bits(a.astype(np.float32))),
    ("to_int", "fp32 to int32, nearest even; NaN or |a| >= 2**31 stops the step", _convert),
)
_VXM_SPECIAL: tuple[tuple[str, str, Meaning], ...] = (
    ("exp", "TruePoint exp(a)", _float(lambda a, b: ew.exp(a))),
    ("rsqrt", "TruePoint 1/sqrt(a)", _float(lambda a, b: ew.rsqrt(a))),
    ("tanh", "TruePoint tanh(a)", _float(lambda a, b: ew.tanh(a))),
)

_ROWS: list[tuple[str, str, str, str, str, Meaning | None]] = [
    # name, unit, fields, latency, text, meaning
    ("nop", "icu", "count:16", "", "delay the queue by `count` cycles", None),
    ("ifetch", "icu", "stream:6", "ifetch",
     "the vectors on `stream` in this cycle and the next are the queue's next `ifetch_bytes` bytes", None),
    ("sync", "icu", "", "", "park until a barrier notification", None),
    ("notify", "icu", "", "", "release all parked queues `barrier_cycles` later", None),
    ("config", "icu", "superlanes:20", "", "power the superlanes of a mask, the others down", None),
    ("repeat", "icu", "count:12 every:8 step:5", "",
     "the previous one again: `count` times, `every` cycles apart, its address, group or slot `step` higher each time",
     None),
    ("read", "mem", "address:13 stream:6", "read", "vector at `address` to `stream`", None),
    ("write", "mem", "address:13 stream:6", "write", "`stream` to the vector at `address`", None),
    ("gather", "mem", "address:13 stream:6 map:6 pair:3", "read",
     "per superlane: word at `address` + map to `stream`; map = its lanes 2*pair, 2*pair + 1 on `map`, low byte "
     "first; 0xFFFF gives zeros", None),
    ("scatter", "mem", "address:13 stream:6 map:6 pair:3", "write",
     "per superlane: `stream` to the word at `address` + map (as in gather); 0xFFFF writes nothing", None),
]
_ROWS += [(n, "vxm", _VXM, "vxm", t, m) for n, t, m in _VXM_MEANINGS]
_ROWS += [(n, "vxm", _VXM, "vxm_special", t, m) for n, t, m in _VXM_SPECIAL]
_ROWS += [
    ("load_weights", "mxm.weights", "stream:6 group:5 step:1", "",
     "LW: 16 vectors (stream, stream + step, …) become rows 16*group… of the weight buffer", None),
    ("install_weights", "mxm.weights", "", "install",
     "IW: the weight buffer becomes the array (rows not loaded are zero) and is empty again", None),
    ("activate", "mxm.activations", "stream:6", "matmul",
     "ABC: dot products of the int8 vector on `stream` with all rows of the array, exact int32", None),
    ("accumulate", "mxm.accumulate", "slot:6 clear:1 emit:1 stream:6", "accumulate",
     "ACC: add the sums arriving this cycle to accumulator `slot` (cleared first?) and emit it as a quad?", None),
    ("shift", "sxm.shift", "stream:6 dst:6 amount:9 north:1 count:3", "shift",
     "lanes moved by `amount`, zeros in; `count` streams", None),
    ("permute", "sxm.permute", "stream:6 dst:6 map:6 count:3", "permute",
     "out[lane] = in[map[lane]], a bijection; map low bytes on `map`, high on `map` + 1; `count` streams", None),
    ("distribute", "sxm.distribute", "stream:6 dst:6 map:6 count:3", "distribute",
     "inside each superlane: out[lane] = in[map[lane]], 255 gives zero; `count` streams", None),
    ("rotate", "sxm.rotate", "stream:6 dst:6 size:3", "rotate",
     "`size` streams in, size*size rotations out", None),
    ("transpose", "sxm.transpose", "stream:6 dst:6", "transpose",
     "16 streams in, 16 out: inside each superlane out[i][j] = in[j][i]", None),
    ("deskew", "c2c", "", "", "pause until the hardware aligned counter overflows", None),
    ("send", "c2c", "stream:6", "c2c", "the vector on `stream` to the link", None),
    ("receive", "c2c", "stream:6", "c2c", "the oldest vector that came over the link to `stream`", None),
    ("transmit", "c2c", "", "c2c", "tell the chip at the other end of the link that the program starts", None),
    ("runtime_deskew", "c2c", "delay:16", "",
     "hold all queues `delay` cycles, longer or shorter by what the software aligned counter is ahead or behind", None),
    ("activate_fp16", "mxm.activations", "stream:6", "matmul",
     "ABC, two planes in tandem: dot products of a vector of fp16 numbers (low bytes in its first half of lanes, high "
     "bytes in the second) with all rows of the array, likewise: each exact, rounded once to fp32", None),
    ("accumulate_fp32", "mxm.accumulate", "slot:6 clear:1 emit:1 stream:6", "accumulate",
     "ACC, fp32: as `accumulate`, of sums that `activate_fp16` made, in one fp32 addition", None),
]


TABLE: tuple[Instruction, ...] = tuple(
    Instruction(name, unit, code, _fields(fields), latency, text, meaning)
    for code, (name, unit, fields, latency, text, meaning) in enumerate(_ROWS)
)
BY_NAME: dict[str, Instruction] = {i.name: i for i in TABLE}

LOADED = 16  # vectors of one load_weights
ACTIVATES = ("activate", "activate_fp16")
ACCUMULATES = ("accumulate", "accumulate_fp32")  # of the sums that the activate of the same place makes

# Results on streams: (instruction, field of the first stream, how many or the field that says so).  The VXM's depend
# on the kind of their destination.
POSTS: tuple[tuple[str, str, int | str], ...] = (
    ("read", "stream", 1), ("gather", "stream", 1), ("accumulate", "stream", "emit"),
    ("accumulate_fp32", "stream", "emit"), ("shift", "dst", "count"), ("permute", "dst", "count"),
    ("distribute", "dst", "count"), ("rotate", "dst", "size"), ("transpose", "dst", 16), ("receive", "stream", 1),
)


def unit_of_queue(queue: str) -> str:
    """The unit whose instructions a queue takes: ``mem3`` -> ``mem``, ``mxme0.weights`` -> ``mxm.weights``."""
    head, _, part = queue.partition(".")
    return f"{head[:3]}.{part.rstrip('01')}" if part else head[:3]


def instructions_of(unit: str) -> tuple[Instruction, ...]:
    """What a queue of this unit stores: the unit's own instructions, and ``ifetch`` like every queue."""
    return (*(i for i in TABLE if i.unit == unit), BY_NAME["ifetch"])


def columns_of(unit: str) -> tuple[str, ...]:
    """Names of the operand columns that a queue of this unit stores, in table order."""
    return tuple(dict.fromkeys(f.name for i in instructions_of(unit) for f in i.fields))
