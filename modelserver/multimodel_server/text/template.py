"""Chat templates: where a model's template is found, and how messages become its prompt.

Templates come with models from anywhere, so they run in Jinja's immutable sandbox, within limits of size and time.
"""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from multimodel_api.chat import ChatMessage, Tool, ToolCall
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
        self.source = source
        self._special_tokens = special_tokens
        environment = _environment()
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise bad_configuration(f"{origin}: the chat template is wrong: line {error.lineno}: {error}.") from error
        self._reads_parts = _reads_parts(environment.parse(source))

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt that asks for the assistant's next message; raises `TemplateFailure`."""
        variables = {
            **self._special_tokens,
            **kwargs,
            "messages": [self._message(message) for message in messages],
            "tools": [tool.model_dump(exclude_unset=True) for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces, length, deadline = [], 0, time.monotonic() + RENDER_SECONDS
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_RENDERED or time.monotonic() > deadline:
                    raise TemplateFailure("The chat template writes too much or takes too long.")
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise TemplateFailure(str(error)) from error
        return "".join(pieces)

    def _message(self, message: ChatMessage) -> dict[str, Any]:
        """Return a message as templates know it: parts only where they are read, arguments as an object."""
        document = message.model_dump(exclude_unset=True, exclude={"tool_calls"})
        if isinstance(message.content, list) and not self._reads_parts:
            document["content"] = message.text
        if message.tool_calls:
            document["tool_calls"] = [_call(call) for call in message.tool_calls]
        return document


def _call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise TemplateFailure(f"The arguments of {call.function.name} ({call.id}) are no JSON: {error}.") from error
    return {"type": "function", "id": call.id, "function": {"name": call.function.name, "arguments": arguments}}


def _reads_parts(template: nodes.Template) -> bool:
    """Say whether a template walks through a message's content part by part."""
    walked = [loop.iter for loop in template.find_all(nodes.For)]
    return any(
        (isinstance(one, nodes.Getattr) and one.attr == "content")
        or (isinstance(one, nodes.Getitem) and isinstance(one.arg, nodes.Const) and one.arg.value == "content")
        or (isinstance(one, nodes.Name) and one.name == "content")
        for one in walked
    )


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
