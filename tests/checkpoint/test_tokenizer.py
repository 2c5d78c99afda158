"""Text to ids and back: published vectors, and streams whose pieces are whole characters and add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers

from openlpu._base.errors import BadCheckpoint, BadRequest
from openlpu.checkpoint.folder import DEMO
from openlpu.checkpoint.tokenizer import Tokenizer

CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(CHARACTERS, max_size=30)


def streamed(tokenizer: Tokenizer, ids: list[int], after: list[int] | None = None) -> list[str]:
    stream = tokenizer.stream(after or ())
    return [*(stream.push(i) for i in ids), stream.finish()]


@pytest.fixture(scope="module")
def bytelevel() -> Tokenizer:
    """The demo's: GPT-2's kind, where a token is any bytes."""
    return Tokenizer(DEMO / "tokenizer.json")


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Llama 2's kind: words carry their space, and what has no piece is spelled in byte tokens."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdé", "▁a", "▁ab", "ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    vocab = {piece: at for at, piece in enumerate(pieces)}
    library = Library(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>"])
    path = tmp_path_factory.mktemp("fallback") / "tokenizer.json"
    library.save(str(path))
    return Tokenizer(path)


@pytest.mark.parametrize(("vectors", "name"), [("gpt-2", "gpt2"), ("llama-spm", "phi-3-mini"), ("phi-3", "phi-3-mini")])
def test_ids_equal_the_published_vectors(shared: Path, vectors: str, name: str) -> None:
    folder = shared / "models" / "tokenizers"
    tokenizer = Tokenizer(folder / name / "tokenizer.json")
    inputs = (folder / "vectors" / f"ggml-vocab-{vectors}.gguf.inp").read_bytes().decode()
    outputs = (folder / "vectors" / f"ggml-vocab-{vectors}.gguf.out").read_text().split("\n")
    texts = inputs.split("\n__ggml_vocab_test__\n")
    assert len(texts) == len(outputs) == 47
    for text, line in zip(texts, outputs, strict=True):
        ids = [int(word) for word in line.split()]
        assert tokenizer.encode(text, special=False) == ids
        assert "".join(streamed(tokenizer, ids)) == text


@given(text=TEXTS)
def test_bytelevel_streams_add_up_to_the_text(bytelevel: Tokenizer, text: str) -> None:
    pieces = streamed(bytelevel, bytelevel.encode(text))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 1100), max_size=30))
def test_bytelevel_streams_of_any_ids_add_up_to_the_library_s_text(bytelevel: Tokenizer, ids: list[int]) -> None:
    """Random ids are mostly broken UTF-8, specials and ids beyond the vocabulary."""
    assert "".join(streamed(bytelevel, ids)) == bytelevel.decode(ids) == bytelevel.spell(ids)


@given(text=st.text(st.one_of(st.sampled_from(" abcdé"), CHARACTERS), max_size=30))
def test_fallback_streams_add_up_to_the_text(fallback: Tokenizer, text: str) -> None:
    ids = fallback.encode(text)
    pieces = streamed(fallback, ids)
    # The tokenizer itself maps its space mark to a space, and drops the one it put in front.
    assert "".join(pieces) == text.replace("▁", " ") == fallback.spell(ids)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 270), max_size=30), split=st.integers(0, 30))
def test_pieces_are_final_and_add_up_to_the_decoding(fallback: Tokenizer, ids: list[int], split: int) -> None:
    """What has been shown never changes, however the stream goes on."""
    pieces = streamed(fallback, ids)
    assert "".join(pieces) == fallback.decode(ids)
    assert fallback.decode(ids).startswith("".join(streamed(fallback, ids[:split])[:-1]))


@given(text=TEXTS, split=st.integers(0, 60))
def test_a_continuation_begins_where_its_prompt_ends(bytelevel: Tokenizer, text: str, split: int) -> None:
    ids = bytelevel.encode(text)
    shown = bytelevel.decode(ids[:split])
    if shown.endswith("\ufffd"):
        return  # the prompt ends inside a character
    assert shown + bytelevel.decode(ids[split:], after=ids[:split]) == text


def test_a_word_s_space_is_kept_in_a_continuation_only(fallback: Tokenizer) -> None:
    word = fallback.encode("ab", special=False)
    assert fallback.decode(word) == "ab"
    assert fallback.decode(word, after=[1]) == "ab"  # after <s> alone a text begins
    assert fallback.decode(word, after=[1, *word]) == " ab"
    assert fallback.decode([*word, *word]) == "ab ab"
    assert fallback.decode([1, *word, 1, *word]) == "ab ab"


def test_a_character_appears_with_its_last_byte(fallback: Tokenizer) -> None:
    euro = [2 + byte for byte in "€".encode()]
    assert streamed(fallback, euro) == ["", "", "€", ""]
    assert streamed(fallback, euro[:2]) == ["", "", "\ufffd\ufffd"]
    assert fallback.decode([*euro, euro[0]]) == "€\ufffd"


def test_the_real_model_s_text(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    tokenizer = Tokenizer(folder / "tokenizer.json")
    for case in json.loads((folder / "golden.json").read_text())["greedy"]:
        assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]
        whole = tokenizer.decode(case["prompt_ids"] + case["greedy_ids"])
        assert whole == case["prompt"] + tokenizer.decode(case["greedy_ids"], after=case["prompt_ids"])


def test_specials_are_added_unless_the_text_has_its_own(bytelevel: Tokenizer) -> None:
    plain = bytelevel.encode("a", special=False)
    assert bytelevel.encode("a") == [0, *plain]
    assert bytelevel.encode("<|begin|>a<|end|>", special=False) == [0, *plain, 1]
    assert bytelevel.size == 1024


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_half_a_surrogate_pair_is_refused(bytelevel: Tokenizer, text: str) -> None:
    with pytest.raises(BadRequest, match="prompt: not Unicode: surrogates not allowed at character"):
        bytelevel.encode(text)


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "none"}}'])
def test_a_broken_tokenizer_is_named(edited: Callable[..., Path], content: str) -> None:
    path = edited() / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BadCheckpoint, match=r"smollm/tokenizer\.json: not a tokenizer: "):
        Tokenizer(path)
