"""What a GGUF file can get wrong is one error that names the file and the field or tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import Blocks, blocks, export, metadata, tensors, write
from hypothesis import given
from hypothesis import strategies as st

from openlpu._base.errors import BadCheckpoint, DoesNotFit, Unsupported
from openlpu.checkpoint import gguf_container
from openlpu.checkpoint.folder import Checkpoint, load
from openlpu.graph import build


@pytest.fixture(scope="session")
def raw(models: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole file: a tiny model with rotary factors."""
    return export(models / "llama3", tmp_path_factory.mktemp("gguf") / "llama3.gguf", pre="gpt-2").read_bytes()


@pytest.fixture
def changed(models: Path, tmp_path: Path) -> Callable[..., Path]:
    """A tiny model with metadata fields changed (``...`` removes one) and tensors replaced."""

    def make(name: str = "llama2", more: dict[str, Blocks] | None = None, /, **fields: Any) -> Path:
        words = metadata(models / name, "gpt-2") | {key.replace("__", "."): value for key, value in fields.items()}
        kept = {key: value for key, value in words.items() if value is not ...}
        return write(tmp_path / "model.gguf", kept, tensors(models / name) | (more or {}))

    return make


def use(path: Path) -> Checkpoint:
    """Everything that reads a model reads all of it."""
    model = load(path)
    build(model)
    assert all(np.isfinite(array).all() for array in model.tensors.values())
    model.tokenizer.decode(model.tokenizer.encode("a bc"))
    return model


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"general__architecture": "gemma2"}, Unsupported, "general.architecture: the architecture 'gemma2'"),
        ({"general__architecture": ...}, BadCheckpoint, "general.architecture: the field is missing"),
        ({"llama__block_count": ...}, BadCheckpoint, "llama.block_count: the field is missing"),
        ({"llama__block_count": 7}, BadCheckpoint, "blk.2.attn_norm.weight: the tensor is missing"),
        ({"llama__block_count": "two"}, BadCheckpoint, "llama.block_count: is 'two', must be an integer"),
        ({"llama__attention__head_count": [4, 8]}, Unsupported, "head_count: differs from layer to layer"),
        ({"llama__attention__head_count": 5}, BadCheckpoint, "head_count_kv: .* 5 is not a multiple of"),
        ({"llama__attention__key_length": 15, "llama__rope__dimension_count": 15}, BadCheckpoint, "is 15, 15 is odd"),
        ({"llama__attention__value_length": 4}, Unsupported, "value_length: values of another size than keys"),
        ({"llama__rope__dimension_count": 4}, Unsupported, "dimension_count: rotating a part of each head"),
        ({"llama__rope__scaling__type": "longrope"}, Unsupported, "llama.rope.scaling.type: the RoPE type 'longrope'"),
        ({"llama__rope__scaling__type": "linear"}, BadCheckpoint, "llama.rope.scaling.factor: the field is missing"),
        ({"llama__expert_count": 8}, Unsupported, "llama.expert_count: is 8, only 0 is read"),
        ({"llama__rope__scaling__attn_factor": 1.5}, Unsupported, "attn_factor: is 1.5, only 1.0 is read"),
        ({"llama__rope__scaling__yarn_attn_factor": 1.5, "llama__rope__scaling__yarn_ext_factor": 1.0}, Unsupported,
         "yarn_attn_factor: is 1.5, beside yarn_ext_factor only 1.0 is read"),
        ({"llama__attention__causal": False}, Unsupported, "llama.attention.causal: is False, only True is read"),
        ({"tokenizer__ggml__model": "t5"}, Unsupported, "tokenizer.ggml.model: the tokenizer model 't5'"),
        ({"tokenizer__ggml__pre": "klingon"}, Unsupported, "tokenizer.ggml.pre: the pre-tokenizer 'klingon'"),
        ({"tokenizer__ggml__tokens": ...}, BadCheckpoint, "tokenizer.ggml.tokens: must be a list of str"),
        ({"tokenizer__ggml__merges": ...}, BadCheckpoint, "tokenizer.ggml.merges: must be a list of str"),
        ({"tokenizer__ggml__merges": ["a nothing"]}, BadCheckpoint, "not a tokenizer: .*nothing"),
        ({"tokenizer__ggml__token_type": [1]}, BadCheckpoint, "token_type: has 1 entries, the vocabulary 61"),
        ({"tokenizer__ggml__bos_token_id": 64}, BadCheckpoint, "bos_token_id: is 64, the vocabulary has 61 tokens"),
        ({"tokenizer__ggml__tokens": ["a"] * 61}, BadCheckpoint, "tokens: tokens 0 and 1 are both 'a'"),
        ({"llama__vocab_size": 60}, BadCheckpoint, "the tokenizer has 61 tokens, the model's vocab_size is 60"),
        ({"general__alignment": 24}, BadCheckpoint, "general.alignment: is 24, must be a power of two"),
        ({"split__count": 2}, BadCheckpoint, "one of several files, but not named"),
    ],
)
def test_a_field_that_is_missing_or_impossible_is_named(
    changed: Callable[..., Path], fields: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=r"model\.gguf: .*" + message if "one of several" not in message else message):
        use(changed(**fields))


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"output.weight": Blocks("IQ9", (64, 32), b"")}, Unsupported, "output.weight: a tensor of type number 99"),
        ({"output.weight": Blocks("Q2_K", (64, 32), b"")}, Unsupported, r"type Q2_K\n  fix: one of: F32, F16, .*Q6_K"),
        ({"output.weight": Blocks("Q4_K", (64, 32), b"")}, BadCheckpoint, "not whole blocks of Q4_K, 256 numbers"),
        ({"output.weight": Blocks("F32", (4, 4, 4, 4, 4), b"")}, BadCheckpoint, "a tensor of 5 dimensions"),
        ({"output.weight": blocks(np.zeros((64, 16)), "F16")}, BadCheckpoint, r"\[64, 16\], the metadata asks"),
        ({"blk.0.attn_q.weight": blocks(np.zeros((6, 32)), "F32")}, BadCheckpoint, r"attn_q.* shape \[6, 32\],"),
        ({"blk.0.ffn_gate_exps.weight": blocks(np.zeros((2, 2)), "F32")}, Unsupported, "none of these architectures"),
        ({"blk.0.attn_q_norm.weight": blocks(np.ones(8), "F32")}, Unsupported, "attn_q_norm.weight: .* that llama"),
        ({"blk.2.attn_norm.weight": blocks(np.ones(32), "F32")}, Unsupported, "blk.2.attn_norm.weight: .* 2 layers"),
        ({"output_norm.bias": blocks(np.ones(32), "F32")}, Unsupported, "output_norm.bias: a tensor that llama"),
        ({"rope_freqs.weight": blocks(np.ones(3), "F32")}, BadCheckpoint, r"rope_freqs.weight: \[3\] factors"),
        ({"rope_freqs.weight": blocks(np.arange(1, 5), "F32")}, Unsupported, "rope_freqs.weight: these factors"),
        ({"output_norm.weight": blocks(np.full(32, np.nan), "F32")}, BadCheckpoint, "output_norm.weight: .* a NaN"),
    ],
)
def test_a_tensor_that_cannot_be_used_is_named(
    changed: Callable[..., Path], more: dict[str, Blocks], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        use(changed("llama2", more))


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (b"GGML\3\0\0\0", BadCheckpoint, "not a GGUF file: it begins with b'GGML'"),
        (b"GGUF\0\0\0\3", Unsupported, "a big-endian GGUF file"),
        (b"GGUF\1\0\0\0", Unsupported, "GGUF version 1"),
        (b"GGUF\4\0\0\0", Unsupported, "GGUF version 4"),
        (b"", BadCheckpoint, "truncated or not GGUF: 0 bytes"),
    ],
)
def test_other_files_are_refused(raw: bytes, tmp_path: Path, start: bytes, error: type, message: str) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(start and start + raw[8:])
    with pytest.raises(error, match=rf"other\.gguf: {message}"):
        load(path)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_any_alignment_and_no_extension(models: Path, tmp_path: Path, version: int) -> None:
    words = metadata(models / "qwen2", "gpt-2") | {"general.alignment": 256}
    path = write(tmp_path / "blob", words, tensors(models / "qwen2"), version)
    assert use(path).config == load(models / "qwen2").config


def test_a_model_too_large_for_the_machine(changed: Callable[..., Path]) -> None:
    with pytest.raises(DoesNotFit, match=r"model\.gguf: not enough memory"):
        load(changed(), room=1000)


def split(models: Path, folder: Path, count: int = 3) -> list[Path]:
    """A model in several files, the first of which has the metadata."""
    whole = list(tensors(models / "qwen3").items())
    paths = []
    for n in range(count):
        words = metadata(models / "qwen3", "gpt-2") if n == 0 else {}
        words |= {"split.no": n, "split.count": count, "split.tensors.count": len(whole)}
        paths.append(folder / f"m-{n + 1:05}-of-{count:05}.gguf")
        write(paths[-1], words, dict(whole[n::count]))
    return paths


def test_a_split_model_is_read_from_its_first_file(models: Path, tmp_path: Path) -> None:
    paths = split(models, tmp_path)
    found, expected = use(paths[0]), load(models / "qwen3")
    assert all(np.array_equal(found.tensors[name], array) for name, array in expected.tensors.items())
    with pytest.raises(BadCheckpoint, match=r"00002-of-00003\.gguf: split\.no: .* not the first"):
        load(paths[1])
    paths[2].rename(tmp_path / "elsewhere")
    with pytest.raises(BadCheckpoint, match=r"m-00003-of-00003\.gguf: the file is missing"):
        load(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(BadCheckpoint, match=r"00003-of-00003\.gguf: split\.no"):
        load(paths[0])


@given(at=st.integers(0, 1 << 30), value=st.integers(0, 255), length=st.integers(0, 1 << 30))
def test_changed_bytes_and_cut_files_give_an_error_or_a_model(
    raw: bytes, shared_folder: Path, at: int, value: int, length: int
) -> None:
    """Never anything else: no crash of a library, no allocation of what a broken size asks for."""
    directory = raw.index(b"blk.0")  # most of the file is weights: aim at what comes before them
    broken = bytearray(raw)
    broken[at % (directory + 2000)] = value
    for content in (bytes(broken), raw[: length % len(raw)]):
        path = shared_folder / "broken.gguf"
        path.write_bytes(content)
        try:
            use(path)
        except (BadCheckpoint, Unsupported, DoesNotFit) as error:
            assert "broken.gguf" in str(error)
        else:
            assert content is not raw[: length % len(raw)]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broken")


def test_the_cursor_asks_for_no_more_than_there_is(raw: bytes, tmp_path: Path) -> None:
    """A count of 2**60 texts is refused before a list of them is begun."""
    at = raw.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    path = tmp_path / "long.gguf"
    path.write_bytes(raw[:at] + (1 << 60).to_bytes(8, "little") + raw[at + 8 :])
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.ggml\.tokens: truncated"):
        gguf_container.read(path)


def test_reading_stays_lazy(changed: Callable[..., Path]) -> None:
    path = changed()
    model = load(path)
    assert all(not isinstance(value, np.ndarray) for value in vars(model.tensors).values())
    assert isinstance(model.tensors["model.norm.weight"].base, np.ndarray)  # a view of the file
