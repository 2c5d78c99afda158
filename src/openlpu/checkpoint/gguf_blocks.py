"""Bytes of a GGUF tensor in, fp32 numbers out: one function per block format.

A block is a few numbers' codes with their scale.  Every number is ``scale * code`` or ``scale * code - offset``, in
fp32.  A scale is an fp16 (11 significant bits), in the K formats times an integer of at most 7 bits, and a code has at
most 7 bits, in the K formats 5: never more than 24 together.  So every product is exact and the only operation that
can round is the one subtraction or addition.  The result is the same on every machine, with fused operations too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 16  # numbers decoded at a time: their codes and results stay in cache
_NIBBLES = np.array([[0], [4]], np.uint8)  # shifts of the low and the high half of a byte


@dataclass(frozen=True)
class Format:
    """``numbers`` in a block of ``bytes``; ``decode`` fills fp32 [blocks, numbers] from uint8 [blocks, bytes].

    None where there are no blocks: numbers that any checkpoint may have.
    """

    numbers: int
    bytes: int
    decode: Callable[[np.ndarray, np.ndarray], None] | None


def numbers(dtype: str, raw: np.ndarray) -> np.ndarray:
    """fp32 [all numbers] of a tensor's bytes, uint8 [whole blocks]."""
    form = FORMATS[dtype]
    assert form.decode, f"{dtype} has no blocks"
    blocks = raw.reshape(-1, form.bytes)
    out = np.empty((len(blocks), form.numbers), np.float32)
    step = _CHUNK // form.numbers
    with np.errstate(invalid="ignore"):  # a scale of infinity gives NaN, which the caller reports
        for at in range(0, len(blocks), step):
            form.decode(blocks[at : at + step], out[at : at + step])
    return out.reshape(-1)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The fp16 at byte ``at`` of each block, fp32 [blocks, 1]."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)


def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out)


def _halves(packed: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, uint8 [blocks, 2, bytes]: the low halves of all bytes, then the high ones."""
    return packed[:, None] >> _NIBBLES & 15


def _fifth(blocks: np.ndarray, at: int) -> np.ndarray:
    """The fifth bits of 32 codes, from the four bytes at ``at``, in their place: uint8 [blocks, 2, 16]."""
    bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return (bits << 4).reshape(-1, 2, 16)


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    codes = _halves(blocks[:, 2:]).view(np.int8) - np.int8(8)
    np.multiply(codes.reshape(out.shape), _half(blocks, 0), out=out)


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_halves(blocks[:, 4:]).reshape(out.shape), _half(blocks, 0), out=out)
    out += _half(blocks, 2)


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    codes = (_halves(blocks[:, 6:]) | _fifth(blocks, 2)).view(np.int8) - np.int8(16)
    np.multiply(codes.reshape(out.shape), _half(blocks, 0), out=out)


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    codes = _halves(blocks[:, 8:]) | _fifth(blocks, 4)
    np.multiply(codes.reshape(out.shape), _half(blocks, 0), out=out)
    out += _half(blocks, 2)


def _scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of the 8 sub-blocks of a Q4_K or Q5_K block, fp32 [blocks, 8, 1] each.

    Twelve bytes hold sixteen 6-bit integers.  Of sub-blocks 0 to 3 the scales are the low 6 bits of bytes 0 to 3,
    the offsets those of bytes 4 to 7; of sub-blocks 4 to 7 the low 4 bits are the halves of bytes 8 to 11 and the
    upper 2 bits the ones that were left.
    """
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    offset = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return (_half(blocks, 0) * scale)[..., None], (_half(blocks, 2) * offset)[..., None]


def _q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scale, offset = _scales(blocks)
    codes = blocks[:, 16:].reshape(-1, 4, 1, 32) >> _NIBBLES & 15
    sub = out.reshape(-1, 8, 32)
    np.multiply(codes.reshape(sub.shape), scale, out=sub)
    sub -= offset


def _q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scale, offset = _scales(blocks)
    low = (blocks[:, 48:].reshape(-1, 4, 1, 32) >> _NIBBLES & 15).reshape(-1, 8, 32)
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    sub = out.reshape(-1, 8, 32)
    np.multiply(low | high << 4, scale, out=sub)
    sub -= offset


def _q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """Two halves of 128 numbers: 64 bytes of low 4 bits, 32 bytes of upper 2, a scale for each 16 numbers."""
    low = (blocks[:, :128].reshape(-1, 2, 1, 64) >> _NIBBLES & 15).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    codes = (low | high << 4).view(np.int8) - np.int8(32)
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    sub = out.reshape(-1, 16, 16)
    np.multiply(codes.reshape(sub.shape), scale[..., None], out=sub)


FORMATS = {
    "F32": Format(1, 4, None),
    "F16": Format(1, 2, None),
    "BF16": Format(1, 2, None),
    "Q8_0": Format(32, 34, _q8_0),
    "Q4_0": Format(32, 18, _q4_0),
    "Q4_1": Format(32, 20, _q4_1),
    "Q5_0": Format(32, 22, _q5_0),
    "Q5_1": Format(32, 24, _q5_1),
    "Q4_K": Format(256, 144, _q4_k),
    "Q5_K": Format(256, 176, _q5_k),
    "Q6_K": Format(256, 210, _q6_k),
}
"""The formats that can be read, by name."""

TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_2", 5: "Q4_3", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}
"""GGUF's number of a tensor type -> its name; those that cannot be read have names for the error."""
