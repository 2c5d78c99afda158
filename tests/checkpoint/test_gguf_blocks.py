"""Blocks of every format decode to the bits of a scalar reference; a file of llama-quantize to those of its authors."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_files import blocks, tiny
from hypothesis import given
from hypothesis import strategies as st

from openlpu.checkpoint import gguf_container
from openlpu.checkpoint.folder import load
from openlpu.checkpoint.gguf_blocks import FORMATS, numbers
from openlpu.checkpoint.gguf_tensors import GgufTensors

# Of tests/golden/gguf/tiny-Q4_K_M.gguf, names and dequantised tensors in order, by the format's own Python package.
AUTHORS = "b215b2c8b6835bb2aa3a32eef5ff87f01a3ac6d387627b5213a19f703ff532b6"


def f16(block: bytes, at: int) -> float:
    return struct.unpack_from("<e", block, at)[0]


def rounded(x: float) -> float:
    """A double as the nearest fp32: products below are exact in a double, and so is the sum of two of them."""
    return float(np.float32(x))


def simple(kind: str, block: bytes) -> list[float]:
    """The formats of 32 numbers, one number at a time."""
    codes_at = {"Q8_0": 2, "Q4_0": 2, "Q4_1": 4, "Q5_0": 6, "Q5_1": 8}[kind]
    scale = f16(block, 0)
    if kind == "Q8_0":
        return [scale * code for code in struct.unpack_from("<32b", block, 2)]
    out = []
    for i in range(32):
        byte = block[codes_at + i % 16]
        code = byte >> 4 if i >= 16 else byte & 15
        if kind in ("Q5_0", "Q5_1"):
            code += 16 * (struct.unpack_from("<I", block, codes_at - 4)[0] >> i & 1)
        least = f16(block, 2) if kind in ("Q4_1", "Q5_1") else -scale * {"Q4_0": 8, "Q5_0": 16}[kind]
        out.append(rounded(scale * code + least))
    return out


def sixes(block: bytes, j: int) -> tuple[int, int]:
    """Scale and offset of sub-block ``j`` of a Q4_K or Q5_K block."""
    s = block[4:16]
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    return s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4


def super_block(kind: str, block: bytes) -> list[float]:
    """The formats of 256 numbers, one number at a time."""
    out = []
    for i in range(256):
        if kind == "Q6_K":
            half, rest = divmod(i, 128)
            quarter, at = divmod(rest, 32)
            low = block[64 * half + 32 * (quarter % 2) + at] >> 4 * (quarter // 2) & 15
            high = block[128 + 32 * half + at] >> 2 * quarter & 3
            scale = struct.unpack_from("<b", block, 192 + i // 16)[0]
            out.append(f16(block, 208) * scale * ((low | high << 4) - 32))
            continue
        j, at = divmod(i, 32)
        scale, least = sixes(block, j)
        code = block[(16 if kind == "Q4_K" else 48) + 32 * (j // 2) + at] >> 4 * (j % 2) & 15
        if kind == "Q5_K":
            code |= (block[16 + at] >> j & 1) << 4
        out.append(rounded(f16(block, 0) * scale * code - f16(block, 2) * least))
    return out


def valid(kind: str, raw: bytes) -> bytes:
    """Random bytes with finite fp16 scales."""
    block = bytearray(raw)
    for at in {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,)):
        if block[at + 1] & 0x7C == 0x7C:  # the exponent of infinities and NaN
            block[at + 1] ^= 0x40
    return bytes(block)


@pytest.mark.parametrize("kind", [kind for kind, form in FORMATS.items() if form.decode])
@given(data=st.data())
def test_any_block_decodes_to_the_bits_of_a_scalar_reference(kind: str, data: st.DataObject) -> None:
    size = FORMATS[kind].bytes
    raw = b"".join(valid(kind, data.draw(st.binary(min_size=size, max_size=size))) for _ in range(3))
    one = simple if FORMATS[kind].numbers == 32 else super_block
    expected = [x for at in range(0, len(raw), size) for x in one(kind, raw[at : at + size])]
    found = numbers(kind, np.frombuffer(raw, np.uint8))
    assert found.dtype == np.float32 and np.array_equal(found, np.array(expected, np.float32))
    assert np.array_equal(found.astype(np.float64), expected)  # the reference is fp32 already: nothing was rounded away


def test_many_blocks_are_the_same_as_one_at_a_time() -> None:
    raw = np.random.default_rng(0).integers(0, 120, (5000, 144), np.uint8)
    whole = numbers("Q4_K", raw.reshape(-1))
    assert np.array_equal(whole[:256], numbers("Q4_K", raw[0]))
    assert np.array_equal(whole[-256:], numbers("Q4_K", raw[-1]))


@pytest.mark.parametrize(("kind", "step"), [("Q8_0", 127), ("Q4_0", 8)])
def test_quantised_numbers_come_back_within_half_a_step(kind: str, step: int) -> None:
    array = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
    found = numbers(kind, np.frombuffer(blocks(array, kind).data, np.uint8)).reshape(-1, 32)
    largest = np.abs(array.reshape(-1, 32)).max(axis=1, keepdims=True)
    limit = largest / step * (0.51 if kind == "Q8_0" else 1.01)  # one end of Q4_0 has no code: it loses a whole step
    assert (np.abs(found - array.reshape(-1, 32)) <= limit).all()


def test_a_quantised_file_of_the_formats_authors(models: Path, tmp_path: Path) -> None:
    path = models.parent / "gguf" / "tiny-Q4_K_M.gguf"
    container, digest = gguf_container.read(path), hashlib.sha256()
    tensors = GgufTensors(path, container.entries, {})
    for name in sorted(container.entries):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name]).astype("<f4").tobytes())
    assert digest.hexdigest() == AUTHORS
    assert {entry.dtype for entry in container.entries.values()} == {"F32", "Q4_K", "Q6_K", "Q5_0"}
    plain, quantised = load(tiny(models, tmp_path / "tiny.gguf")), load(path)
    assert quantised.config == plain.config and list(quantised.tensors) == list(plain.tensors)
    for name, array in quantised.tensors.items():
        assert np.abs(array - plain.tensors[name]).max() < 0.02
