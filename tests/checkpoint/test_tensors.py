"""Safetensors files: what is read is what was written, and no damaged file is read at all."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from openlpu._base.errors import BadCheckpoint
from openlpu.checkpoint.tensors import Tensors, open_folder, read_header


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file with any header: a JSON value, or its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(bits=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=50))
def test_bf16_is_the_upper_half_of_fp32(tmp_path_factory: pytest.TempPathFactory, bits: list[int]) -> None:
    finite = [b for b in bits if b & 0x7F80 != 0x7F80] or [0x3F80]
    folder = tmp_path_factory.mktemp("bf16")
    data = np.array(finite, "<u2").tobytes()
    write(folder / "model.safetensors", {"w": entry("BF16", (len(finite),), (0, len(data)))}, data)
    found = open_folder(folder)["w"]
    assert found.dtype == np.float32
    assert found.view(np.uint32).tolist() == [b << 16 for b in finite]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_arrays_come_back_as_they_were(tmp_path: Path, dtype: type) -> None:
    written = {f"w{i}": np.random.default_rng(i).standard_normal((i, 3)).astype(dtype) for i in range(3)}
    save_file(written, tmp_path / "model.safetensors", {"format": "np"})
    found = open_folder(tmp_path)
    assert list(found) == ["w0", "w1", "w2"]
    for name, array in found.items():
        assert array.dtype == np.float32 and array.flags.aligned
        np.testing.assert_array_equal(array, written[name].astype(np.float32))


def test_data_that_is_not_aligned_is_copied(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0], "<f4")
    header = json.dumps({"w": entry()}).encode()
    write(tmp_path / "model.safetensors", header + b" " * (1 + (-8 - len(header)) % 8), values.tobytes())
    array = open_folder(tmp_path)["w"]
    assert array.flags.aligned and array.tolist() == [1.5, -2.0]


def test_types_without_a_float_are_known_but_not_offered(tmp_path: Path) -> None:
    save_file({"w": np.zeros(2, np.float32), "n": np.zeros(2, np.int64)}, tmp_path / "model.safetensors")
    found = open_folder(tmp_path)
    assert list(found) == ["w"] and set(found.entries) == {"n", "w"} and "n" not in found
    with pytest.raises(KeyError):
        found["n"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    save_file({"w": np.array([0, value], np.float16)}, tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: w: contains a NaN or an infinity"):
        open_folder(tmp_path)["w"]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"", b"", "truncated or not safetensors"),
        (b"{", b"", "truncated or not safetensors"),
        (b"{]", b"", "the header is not valid JSON"),
        (b"[]", b"", "the header is not a JSON object"),
        (b"\xff\xfe", b"", "the header is not valid JSON"),
        (b"[" * 100_000, b"", "the header is not valid JSON"),
        (b'{"w": 1, "w": 2}', b"", "a name appears twice"),
        ({"w": 3}, b"", r": w: dtype None is not one"),
        ({"w": entry("F12")}, bytes(8), ": w: dtype 'F12' is not one"),
        ({"w": entry() | {"dtype": []}}, bytes(8), r": w: dtype \[\] is not one"),
        ({"w": entry(shape=(-2,))}, bytes(8), r": w: shape \[-2\] is not a list of sizes"),
        ({"w": entry() | {"shape": 2}}, bytes(8), ": w: shape 2 is not a list of sizes"),
        ({"w": entry(shape=(True,))}, bytes(8), ": w: shape .* is not a list of sizes"),
        ({"w": entry(offsets=(8, 0))}, bytes(8), r": w: data_offsets \[8, 0\] are not a range"),
        ({"w": entry(offsets=(0, 8, 9))}, bytes(8), ": w: data_offsets .* are not a range"),
        ({"w": entry(offsets=(0, 4))}, bytes(4), ": w: data_offsets span 4 bytes, not those of F32"),
        ({"w": entry()}, bytes(7), ": w: truncated: data ends at byte"),
        ({"w": entry()}, bytes(9), "1 bytes after the last tensor"),
        ({"w": entry(offsets=(4, 12))}, bytes(12), ": w: data_offsets leaves a hole"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), ": b: data_offsets overlaps"),
        ({"a": entry(), "b": entry()}, bytes(8), ": b: data_offsets overlaps"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(BadCheckpoint, match=rf"model\.safetensors{'' if message[0] == ':' else '.*'}{message}"):
        read_header(path)


@pytest.mark.parametrize("length", [0, 7, 8, 2**63])
def test_an_impossible_header_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length)[:7] if length == 7 else struct.pack("<Q", length))
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: truncated or not safetensors"):
        read_header(path)


@settings(max_examples=300)
@given(st.data())
def test_any_cut_or_changed_header_is_refused_or_consistent(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A byte of the header changed, or the file cut: the error is ours, or every tensor still lies inside the file."""
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    write(path, {"a": entry(), "b": entry("BF16", (2, 3), (8, 20))}, bytes(20))
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, len(whole) - 21))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        entries = read_header(path)
    except BadCheckpoint as refused:
        assert "model.safetensors" in str(refused)
        return
    assert len(whole) == 8 + int.from_bytes(whole[:8], "little") + 20
    for name, array in Tensors(path.parent, entries).items():
        assert array.size == entries[name].count


def test_shards_are_one_mapping(models: Path) -> None:
    tensors = open_folder(models / "llama2")
    assert {entry.path.name for entry in tensors.entries.values()} == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    }  # fmt: skip
    assert len(tensors) == 21


def test_shards_without_an_index_are_one_mapping(edited: Callable[..., Path]) -> None:
    folder = edited("llama2")
    whole = open_folder(folder).entries
    (folder / "model.safetensors.index.json").unlink()
    assert open_folder(folder).entries == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "lm_head.weight": "../x.safetensors"}, r"weight_map\.lm_head\.weight: .* must be a file name"),
        (lambda m: {**m, "lm_head.weight": 3}, r"weight_map\.lm_head\.weight: is 3, must be a string"),
        (lambda m: {**m, "w": m["lm_head.weight"]}, r"model-0000.-of-00002\.safetensors: w: tensor is missing, though"),
        (lambda m: {**m, "w": "model-3.safetensors"}, r"model-3\.safetensors: the file is missing"),
        (lambda m: None, r"index\.json: weight_map: the field is missing"),
    ],
)
def test_a_wrong_index_is_named(edited: Callable[..., Path], change: Callable, message: str) -> None:
    index = edited("llama2") / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps(values | {"weight_map": change(values["weight_map"])}))
    with pytest.raises(BadCheckpoint, match=message):
        open_folder(index.parent)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        save_file({"w": np.zeros(1, np.float32)}, tmp_path / file)
    with pytest.raises(BadCheckpoint, match=r"b\.safetensors: w: tensor is also in a\.safetensors"):
        open_folder(tmp_path)


def test_a_folder_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"no model\.safetensors .*\n  fix: .*convert"):
        open_folder(tmp_path)
