"""A model gives the same bits and the same ids from a GGUF file as from the Hugging Face folder it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import Blocks, export, metadata, tensors, tokenizer, write

from openlpu import compile as pipeline
from openlpu.checkpoint import gguf_tokenizer, gguf_vocabulary
from openlpu.checkpoint.fields import Fields
from openlpu.checkpoint.folder import DEMO, load
from openlpu.checkpoint.tokenizer import Tokenizer
from openlpu.cli import main

NAMES = ("llama2", "llama3", "llama-bias", "qwen2", "qwen3", "smollm")


def built(words: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer of some metadata; ``path`` only has to exist."""
    vocabulary = gguf_vocabulary.read(Fields(path, words))
    return Tokenizer(path, gguf_tokenizer.document(vocabulary))


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_has_the_folders_bits(models: Path, tmp_path: Path, name: str) -> None:
    """Configuration, tensors and integer graph; a fingerprint covers every bit that reaches a logit."""
    path = export(models / name, tmp_path / "m.gguf", pre="gpt-2")
    folder, file = load(models / name), load(path)
    assert file.config == folder.config and list(file.tensors) == list(folder.tensors)
    assert all(np.array_equal(file.tensors[n], array) for n, array in folder.tensors.items())
    assert pipeline.compile(path).fingerprint() == pipeline.compile(models / name).fingerprint()


def test_mistral_is_a_llama_until_it_has_a_window(models: Path, tmp_path: Path) -> None:
    folder = load(models / "mistral")
    file = load(export(models / "mistral", tmp_path / "m.gguf", pre="gpt-2"))
    assert (file.config.architecture, folder.config.architecture) == ("llama", "mistral")
    assert all(np.array_equal(file.tensors[n], array) for n, array in folder.tensors.items())
    words = metadata(models / "mistral", "gpt-2") | {"llama.attention.sliding_window": 8}
    windowed = load(write(tmp_path / "w.gguf", words, tensors(models / "mistral")), context=8)
    assert windowed.config.architecture == "mistral"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_the_demo_has_the_folders_bits_where_they_are_representable(tmp_path: Path, kind: str) -> None:
    """Its weights are bf16: exact in fp32 and bf16; in fp16 each is the nearest."""
    path = export(DEMO, tmp_path / "demo.gguf", kind, "gpt-2")
    demo, file = load(DEMO), load(path)
    assert file.config == demo.config and file.sampling == demo.sampling
    for name, array in demo.tensors.items():
        wanted = array.astype(np.float16).astype(np.float32) if kind == "F16" and array.ndim > 1 else array
        assert np.array_equal(file.tensors[name], wanted)
    if kind != "F16":
        assert pipeline.compile(path).fingerprint() == pipeline.compile("demo").fingerprint()
    for text in ("ROMEO:\nIt is the east", "  two  spaces\t\n", "O 😀!", "<|end|>x"):
        assert file.tokenizer.encode(text) == demo.tokenizer.encode(text)


def test_a_real_model_generates_the_same(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "stories260K"
    path = export(folder, tmp_path / "stories.gguf")
    golden = json.loads((folder / "golden.json").read_text())["greedy"][0]
    assert load(path).config == load(folder).config
    answers = []
    for source in (folder, path):
        with pipeline.load(source, target="ref") as model:
            answers.append(model.generate(golden["prompt"], max_tokens=12, temperature=0).finish())
    assert answers[0].token_ids == answers[1].token_ids == golden["greedy_ids"][:12]
    assert answers[0].logits_sha256 == answers[1].logits_sha256


@pytest.mark.parametrize(("vectors", "name", "pre"), [("gpt-2", "gpt2", "gpt-2"), ("llama-spm", "phi-3-mini", "")])
def test_ids_equal_the_published_vectors(shared: Path, vectors: str, name: str, pre: str) -> None:
    folder = shared / "models" / "tokenizers"
    source = folder / name / "tokenizer.json"
    made, original = built(tokenizer(source, pre), source), Tokenizer(source)
    texts = (folder / "vectors" / f"ggml-vocab-{vectors}.gguf.inp").read_bytes().decode()
    lines = (folder / "vectors" / f"ggml-vocab-{vectors}.gguf.out").read_text().split("\n")
    for text, line in zip(texts.split("\n__ggml_vocab_test__\n"), lines, strict=True):
        ids = [int(word) for word in line.split()]
        assert made.encode(text, special=False) == ids
        assert made.decode(ids) == original.decode(ids) == text


def test_sentencepiece_scores_give_the_folders_ids(shared: Path) -> None:
    """With the scores of the model's own tokenizer.model, on stories, emoji, digits, tabs and double spaces."""
    folder = shared / "models" / "stories260K"
    source = folder / "tokenizer.json"
    made, original = built(tokenizer(source, ""), source), Tokenizer(source)
    stories = (shared / "data" / "tinystories-valid-part-a.txt").read_text("utf-8")[:20000].split("\n")
    for text in [*stories, "😀 1234 \t  x", "", " ", "<s>a</s> b", "日本語 ▁ x"]:
        ids = original.encode(text)
        assert made.encode(text) == ids
        assert made.decode(ids) == original.decode(ids)


def words(**more: Any) -> dict[str, Any]:
    """A small byte-level vocabulary, whose merges show where a pre-tokenizer cuts."""
    alphabet = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    joined = ["12", "123", "Ġa", "ab", "!!", "é", "Ã", "©", "Ã©"]
    tokens = alphabet + [t for t in joined if t != "é"] + ["<|a|>", "<|b|>"]
    types = [1] * (len(tokens) - 2) + [3, 4]
    merges = ["1 2", "12 3", "Ġ a", "a b", "! !", "Ã ©"]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": len(tokens) - 2} | more


def test_pre_tokenizers_differ_where_their_models_do() -> None:
    def pieces(pre: str, text: str) -> list[str | None]:
        made = built(words(**{"tokenizer.ggml.pre": pre}), DEMO / "tokenizer.json")
        return [made.token(i) for i in made.encode(text, special=False)]

    assert pieces("gpt-2", "123 ab") == ["123", "Ġa", "b"]
    assert pieces("smollm", "123") == pieces("qwen2", "123") == pieces("tekken", "123") == ["1", "2", "3"]
    assert pieces("llama-bpe", "1234") == ["123", "4"]
    assert pieces("default", "1231") == ["123", "1"]
    assert pieces("qwen2", "e\u0301") == ["Ã©"]  # composed first
    assert pieces("gpt-2", "e\u0301") == ["e"]  # the bytes of the accent have no token here
    assert pieces("gpt-2", "a<|b|>b<|a|>") == ["a", "<|b|>", "b", "<|a|>"]


@pytest.mark.parametrize(
    ("fields", "begins"),
    [
        ({"tokenizer.ggml.pre": "llama-bpe"}, True),
        ({"tokenizer.ggml.pre": "gpt-2"}, False),
        ({"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": True}, True),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, False),
    ],
)
def test_a_text_begins_with_bos_where_the_file_or_the_kind_says_so(fields: dict[str, Any], begins: bool) -> None:
    made = built(words(**fields), DEMO / "tokenizer.json")
    assert [made.token(i) for i in made.encode("a")] == (["<|a|>", "a"] if begins else ["a"])


def test_eos_is_added_after_a_text() -> None:
    given = words(**{"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": 1})
    assert built(given, DEMO / "tokenizer.json").encode("a")[-1] == 1


def test_chat_template_sampling_and_ends(models: Path, tmp_path: Path) -> None:
    source = models / "smollm"
    given = metadata(source, "gpt-2")
    tokens, types = list(given["tokenizer.ggml.tokens"]), list(given["tokenizer.ggml.token_type"])
    tokens[10], types[10] = "<|im_end|>", 3
    tokens[11] = "<|eot_id|>"  # an ordinary token of that text ends nothing
    merges = ["a b"] if "ab" in tokens else [m for m in given["tokenizer.ggml.merges"] if all(
        part in tokens for part in (*m.split(" "), m.replace(" ", "")))] or ["x y"]
    given |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges,
              "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}", "general.sampling.temp": 0.7,
              "general.sampling.top_k": 20, "general.sampling.penalty_repeat": 1.25}
    model = load(write(tmp_path / "m.gguf", given, tensors(source)))
    assert model.chat and model.chat.render([{"role": "user", "content": "hi"}]).endswith("hi")
    s = model.sampling
    assert (s.sample, s.temperature, s.top_k, s.repetition_penalty) == (True, 0.7, 20, 1.25)
    assert model.config.eos[-1] == 10 and 11 not in model.config.eos
    texts = model.texts()
    assert json.loads(texts["generation_config.json"])["top_k"] == 20
    assert texts["chat_template.jinja"].decode() == given["tokenizer.chat_template"]
    assert json.loads(texts["tokenizer.json"])["model"]["type"] == "BPE"


def test_scalings_are_translated(models: Path, tmp_path: Path) -> None:
    def rope(**fields: Any) -> Any:
        given = metadata(models / "qwen2", "gpt-2") | {f"qwen2.rope.scaling.{k}": v for k, v in fields.items()}
        return load(write(tmp_path / "m.gguf", given, tensors(models / "qwen2"))).config.rope

    assert rope(type="none").kind == "default"
    linear = rope(type="linear", factor=4.0)
    assert (linear.kind, linear.factor) == ("linear", 4.0)
    yarn = rope(type="yarn", factor=8.0, original_context_length=16)
    assert (yarn.kind, yarn.factor, yarn.original_context, yarn.attention_factor) == ("yarn", 8.0, 16, 0.0)
    assert rope(factor=4.0) == linear  # no type: llama.cpp takes it for linear too
    given = {"type": "yarn", "factor": 8.0, "original_context_length": 16}
    assert rope(**given, yarn_attn_factor=1.25).attention_factor == 1.25  # transformers' attention_factor
    assert rope(**given, yarn_attn_factor=1.0, yarn_ext_factor=1.0) == yarn  # YaRN's own: a multiplier


def test_the_hash_depends_on_weights_and_vocabulary(models: Path, tmp_path: Path) -> None:
    given, weights = metadata(models / "qwen3", "gpt-2"), tensors(models / "qwen3")
    first = load(write(tmp_path / "a.gguf", given, weights)).sha256()
    assert load(write(tmp_path / "b.gguf", given, weights, version=2)).sha256() == first
    norm = weights["output_norm.weight"]
    other = weights | {"output_norm.weight": Blocks("F32", norm.shape, b"\0\0\0\0" + norm.data[4:])}
    assert load(write(tmp_path / "c.gguf", given, other)).sha256() != first


def test_a_compiled_model_has_the_files_of_its_tokenizer(models: Path, tmp_path: Path) -> None:
    path, made = export(models / "smollm", tmp_path / "m.gguf", pre="gpt-2"), tmp_path / "compiled"
    assert main(["compile", str(path), "-o", str(made)]) == 0
    file = load(path)
    again = Tokenizer(made / "tokenizer.json")
    assert again.encode("a b") == file.tokenizer.encode("a b")
    assert json.loads((made / "generation_config.json").read_text())["eos_token_id"] == list(file.config.eos)


def test_the_command_line_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export(DEMO, tmp_path / "demo.gguf", "BF16", "gpt-2")
    answers = []
    for source in (str(path), "demo"):
        assert main(["run", source, "ROMEO:", "--max-tokens", "4", "--target", "ref", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["logits_sha256"] == answers[1]["logits_sha256"] and answers[0]["text"] == answers[1]["text"]
    assert main(["run", str(tmp_path / "none.gguf"), "x"]) == 2
    assert "none.gguf" in capsys.readouterr().err
