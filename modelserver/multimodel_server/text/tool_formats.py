"""The ways in which models write calls of tools, which of them a model knows, and the grammar that forces a call."""

import json
import string
from dataclasses import dataclass
from hashlib import blake2b

from multimodel_api.chat import Tool
from multimodel_server.engine.messages import Grammar
from multimodel_server.text.grammar import literal, terminal, thought_rules
from multimodel_server.text.tokenizer import TextTokenizer

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Free white space would let a weak model write blanks until its tokens are spent."""
_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9
_NO_PARAMETERS = {"properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Calls are JSON objects that hold `name` and the arguments, between two markers."""

    begin: str
    end: str
    arguments: str
    """The key of the arguments."""
    may_be_bare: bool = False
    """Whether a call may also begin the answer without a marker."""
    in_list: bool = False
    """Whether the calls are the items of a JSON list."""


HERMES = ToolFormat("<tool_call>", "</tool_call>", "arguments")
LLAMA = ToolFormat("<|python_tag|>", "", "parameters", may_be_bare=True)
MISTRAL = ToolFormat("[TOOL_CALLS]", "", "arguments", in_list=True)


def call_id(answer: str, index: int) -> str:
    """Return the id of a call, the same for an answer of the same name.

    Nine letters and digits, since Mistral's templates accept nothing else.
    """
    digest = blake2b(f"{answer}.{index}".encode(), digest_size=_ID_LENGTH).digest()
    return "".join(_ID_CHARACTERS[byte % len(_ID_CHARACTERS)] for byte in digest)


def tool_format(template: str, tokenizer: TextTokenizer) -> ToolFormat:
    """Return the format that a model was trained on, by the marker in its template or else among its tokens."""
    formats = (HERMES, MISTRAL, LLAMA)
    by_template = [known for known in formats if known.begin in template]
    by_token = [known for known in formats if tokenizer.id_of(known.begin) is not None]
    return next(iter([*by_template, *by_token, HERMES]))


def markers(known: ToolFormat) -> tuple[str, ...]:
    """Return the names of the tokens that must stay visible in an answer's text."""
    return tuple(marker for marker in (known.begin, known.end) if marker)


def call_grammar(
    known: ToolFormat, tools: list[Tool], tokenizer: TextTokenizer, *, several: bool, thinks: bool
) -> Grammar:
    """Return the grammar of an answer that calls one of `tools`, or `several` one after the other.

    `thinks` says that the prompt has opened the reasoning.
    """
    calls = _calls(known, tokenizer, several=several)
    rules = [f"start: thought {calls}", *thought_rules(tokenizer)] if thinks else [f"start: {calls}"]
    rules.append("call: " + " | ".join(f"call_{place}" for place in range(len(tools))))
    for place, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool.function.name)}, "{known.arguments}": '
        schema = {"type": "object", **(tool.function.parameters or _NO_PARAMETERS), "x-guidance": _COMPACT}
        rules.append(f"call_{place}: {literal(head)} arguments_{place} {literal('}')}")
        rules.append(f"arguments_{place}: %json {json.dumps(schema)}")
    return Grammar("lark", "\n".join(rules))


def _calls(known: ToolFormat, tokenizer: TextTokenizer, *, several: bool) -> str:
    """Return the expression of one call, or of several where the format has room for them."""
    begin, end = (terminal(marker, tokenizer) for marker in (known.begin, known.end))
    newline = literal("\n")
    if known.in_list:
        more = f"({literal(', ')} call)*" if several else ""
        return f"{begin} {literal('[')} call {more} {literal(']')}"
    if known.end:
        one = f"{begin} {newline} call {newline} {end}"
        return f"{one} ({newline} {one})*" if several else one
    return "call"
