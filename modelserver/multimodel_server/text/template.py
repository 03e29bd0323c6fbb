"""Chat templates: where a model's template is found, and how messages become its prompt.

Templates come with models from anywhere, so they run in Jinja's immutable sandbox, within limits of size and time.
"""

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from multimodel_api.openai import ChatMessage
from multimodel_server.text.files import bad_configuration, read_text
from multimodel_server.text.tokenizer import TokenizerSettings

MAX_TEMPLATE = 1 << 20
"""Longest template, in characters."""
MAX_RENDERED = 64 << 20
"""Longest prompt that a template may write, in characters."""
RENDER_SECONDS = 10.0

_FILE = "chat_template.jinja"


class TemplateFailure(Exception):  # noqa: N818  (its message is the template's own)
    """A template could not make a prompt of these messages."""


class ChatTemplate:
    """A compiled chat template with the model's special tokens."""

    def __init__(self, source: str, special_tokens: dict[str, str], origin: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise bad_configuration(f"{origin}: the chat template is longer than {MAX_TEMPLATE} characters.")
        self._special_tokens = special_tokens
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise bad_configuration(f"{origin}: the chat template is wrong: line {error.lineno}: {error}.") from error

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """Return the prompt that asks for the assistant's next message; raises `TemplateFailure`."""
        conversation = [{"role": message.role, "content": message.text} for message in messages]
        pieces, length, deadline = [], 0, time.monotonic() + RENDER_SECONDS
        try:
            for piece in self._template.generate(
                messages=conversation, add_generation_prompt=True, **self._special_tokens
            ):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_RENDERED or time.monotonic() > deadline:
                    raise TemplateFailure("The chat template writes too much or takes too long.")
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise TemplateFailure(str(error)) from error
        return "".join(pieces)


def find_template(
    model_dir: Path, settings: TokenizerSettings, *, chat_template: str | None, jinja_explicit: Path | None
) -> ChatTemplate | None:
    """Return the template that counts, or None when there is none.

    In order: `--jinja-explicit`, `--chat-template` (text or file), the model's `chat_template.jinja`, and the template
    in its `tokenizer_config.json`. Raises `LoadError` when the one that counts cannot be read or compiled.
    """
    tokens = settings.special_tokens
    if jinja_explicit is not None:
        return ChatTemplate(read_text(jinja_explicit), tokens, f"--jinja-explicit {jinja_explicit}")
    if chat_template is not None:
        return ChatTemplate(_text_or_file(chat_template), tokens, "--chat-template")
    if (model_dir / _FILE).is_file():
        return ChatTemplate(read_text(model_dir / _FILE), tokens, str(model_dir / _FILE))
    source = _default_of(settings)
    return None if source is None else ChatTemplate(source, tokens, str(model_dir / "tokenizer_config.json"))


def _text_or_file(value: str) -> str:
    if "{{" in value or "{%" in value:
        return value
    if not Path(value).is_file():
        raise bad_configuration(f"--chat-template '{value}' is neither a Jinja template nor the path of a file.")
    return read_text(Path(value))


def _default_of(settings: TokenizerSettings) -> str | None:
    if not isinstance(settings.chat_template, list):
        return settings.chat_template
    named = {entry.name: entry.template for entry in settings.chat_template}
    return named.get("default", next(iter(named.values()), None))


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it is only passed through."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as Hugging Face's templates expect: plain, without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
