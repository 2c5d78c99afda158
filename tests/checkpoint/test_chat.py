"""Chat templates of real models render what the models were trained on; those of strangers stay in the sandbox."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from openlpu._base.errors import BadCheckpoint, BadRequest
from openlpu.checkpoint.chat import Chat, read

TALK = [
    {"role": "user", "content": "Hi <b> & é"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "clock", "description": "The é time <now>", "parameters": {}}}


def real(shared: Path, tmp_path: Path, name: str) -> Chat:
    """A real template in a folder whose tokenizer_config names special tokens both ways."""
    shutil.copy(shared / "models" / "chat_templates" / f"{name}.jinja", tmp_path / "chat_template.jinja")
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "the older place"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    chat = read(tmp_path)
    assert chat is not None
    return chat


def inline(source: str) -> Chat:
    return Chat(Path("folder/chat_template.jinja"), source, {"bos_token": "<s>"})


def test_qwen(shared: Path, tmp_path: Path) -> None:
    chat = real(shared, tmp_path, "Qwen-Qwen2.5-7B-Instruct")
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    turns = (
        "<|im_start|>user\nHi <b> & é<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
    )
    assert chat.render(TALK) == f"<|im_start|>system\n{default}<|im_end|>\n{turns}<|im_start|>assistant\n"
    assert chat.render([SYSTEM, *TALK], reply=False) == f"<|im_start|>system\nBe brief.<|im_end|>\n{turns}"


def test_qwen_tools_are_plain_json(shared: Path, tmp_path: Path) -> None:
    text = real(shared, tmp_path, "Qwen-Qwen2.5-7B-Instruct").render([SYSTEM, *TALK], tools=[TOOL])
    assert f"<tools>\n{json.dumps(TOOL, ensure_ascii=False)}\n</tools>" in text
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n")


def test_phi(shared: Path, tmp_path: Path) -> None:
    chat = real(shared, tmp_path, "microsoft-Phi-3.5-mini-instruct")
    turns = "<|user|>\nHi <b> & é<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBye<|end|>\n"
    assert chat.render([SYSTEM, *TALK]) == f"<|system|>\nBe brief.<|end|>\n{turns}<|assistant|>\n"
    assert chat.render(TALK, reply=False) == f"{turns}</s>"


def test_mistral(shared: Path, tmp_path: Path) -> None:
    chat = real(shared, tmp_path, "mistralai-Mistral-Nemo-Instruct-2407")
    first = "<s>[INST]Hi <b> & é[/INST]Hello</s>"
    assert chat.render(TALK) == f"{first}[INST]Bye[/INST]"
    assert chat.render([SYSTEM, *TALK]) == f"{first}[INST]Be brief.\n\nBye[/INST]"
    with pytest.raises(BadRequest, match=r"chat_template\.jinja: the chat template refuses .* roles must alternate"):
        chat.render(TALK[1:])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "{{ bos_token }}{% for m in messages %}{{ m.role }}{% if true %}{% break %}{% endif %}{% endfor %}",
            "<s>user",
        ),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "Hello"),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ messages[0] | tojson(indent=1) }}", '{\n "role": "user",\n "content": "Hi <b> & é"\n}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ tools is none }}{{ add_generation_prompt }}{{ mood }}", "TrueTruegood"),
    ],
)
def test_what_templates_may_use(source: str, text: str) -> None:
    assert inline(source).render(TALK, mood="good") == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.x.y }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ raise_exception('no') }}",
        "{{ 'x' * 10 ** 12 }}",
    ],
)
def test_what_a_template_cannot_do_is_a_bad_request(source: str) -> None:
    with pytest.raises(BadRequest, match=r"folder/chat_template\.jinja: the chat template refuses the messages"):
        inline(source).render(TALK)


def test_a_broken_template_is_named() -> None:
    with pytest.raises(BadCheckpoint, match=r"chat_template\.jinja: line 2: chat_template is not valid Jinja"):
        inline("a\n{% if %}").render(TALK)


@pytest.mark.parametrize(
    ("config", "source"),
    [
        ({}, None),
        ({"chat_template": "one"}, "one"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}, "d"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}]}, None),
    ],
)
def test_templates_of_the_tokenizer_s_configuration(tmp_path: Path, config: dict, source: str | None) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<e>"}')
    chat = read(tmp_path)
    assert (chat.source if chat else None) == source
    assert chat is None or chat.special == {"eos_token": "<e>"}


def test_a_template_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3}')
    with pytest.raises(BadCheckpoint, match=r"tokenizer_config\.json: chat_template: is 3, must be a string"):
        read(tmp_path)


def test_a_model_without_any_tokenizer_configuration_has_no_chat(tmp_path: Path) -> None:
    assert read(tmp_path) is None
