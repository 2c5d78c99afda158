"""A chat template in, the prompt text of a conversation out.

Templates come with models, from strangers: they run in Jinja's sandbox, with the functions and filters that
Hugging Face's ``apply_chat_template`` gives them and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from openlpu._base.errors import BadCheckpoint, BadRequest
from openlpu.checkpoint.fields import Fields

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]
# What a template's expressions can run into on their own, without Jinja noticing.
_FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Chat:
    """A template's ``source``, the file it is from, and the special tokens it may write."""

    path: Path
    source: str
    special: Mapping[str, str]

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, reply: bool = True, **extra: Any
    ) -> str:
        """The conversation as the model was trained to read it; ``reply`` ends it where the model's turn begins.

        Messages are ``{"role": …, "content": …}``.  :class:`BadRequest` when the template refuses them.
        """
        import jinja2

        template = self._compiled()
        try:
            return template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=reply, **self.special, **extra
            )
        except (jinja2.TemplateError, *_FAILURES) as refused:
            what = f"the chat template refuses the messages: {refused}"
            raise BadRequest(what, where=str(self.path), fix="give messages that the template takes") from refused

    def _compiled(self) -> jinja2.Template:
        import jinja2

        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateSyntaxError as broken:
            what = f"chat_template is not valid Jinja: {broken.message}"
            raise BadCheckpoint(what, where=f"{self.path}: line {broken.lineno}") from broken


def read(folder: Path) -> Chat | None:
    """The folder's template: chat_template.jinja, or ``chat_template`` of tokenizer_config.json; None without."""
    config = Fields.optional(folder / "tokenizer_config.json")
    special = _special_tokens(config) or _special_tokens(Fields.optional(folder / "special_tokens_map.json"))
    file = folder / "chat_template.jinja"
    if file.is_file():
        return Chat(file, file.read_text("utf-8"), special)
    given = config.values.get("chat_template")
    if isinstance(given, list):  # several named templates: tools and retrieval have their own
        named = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
        given = named.get("default")
    if given is None:
        return None
    if not isinstance(given, str):
        raise config.wrong("chat_template", "must be a string or a list with one named 'default'")
    return Chat(config.path, given, special)


def _special_tokens(config: Fields) -> dict[str, str]:
    """Special tokens by role; a token is a string or an object with its ``content``."""
    tokens = {}
    for role in _SPECIAL:
        value = config.values.get(role)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[role] = value
    return tokens


def _environment() -> jinja2.Environment:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks an assistant's own text for training; a prompt shows it as it is."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes HTML, which a model has never seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
