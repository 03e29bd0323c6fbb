"""What form a request wants its answer in: `response_format` and `grammar`, checked as far as the edge can tell.

Whether the grammar itself is sound the engine finds when it compiles it.
"""

import json
from typing import Any

from multimodel_api.errors import invalid_request
from multimodel_api.openai import SamplingFields
from multimodel_server.engine.messages import Grammar

MAX_GRAMMAR_BYTES = 64 * 1024

_ANY_OBJECT = {"type": "object"}


def wanted_grammar(request: SamplingFields) -> Grammar | None:
    """Return the grammar of a request's answer, None for free text; raises the 400."""
    grammar, param = _grammar(request)
    if grammar is None:
        return None
    if request.ignore_eos:
        raise invalid_request(
            f"ignore_eos and {param} cannot be combined: {param} says where the answer ends; leave ignore_eos out.",
            param="ignore_eos",
        )
    size = len(grammar.text.encode())
    if size > MAX_GRAMMAR_BYTES:
        raise invalid_request(f"{param} has {size} bytes; at most {MAX_GRAMMAR_BYTES} are accepted.", param=param)
    return grammar


def _grammar(request: SamplingFields) -> tuple[Grammar | None, str]:
    """Return the grammar, and the parameter that asks for it."""
    response_format, grammar = request.response_format, request.grammar
    wants_json = response_format is not None and response_format.type != "text"
    if wants_json and grammar is not None:
        raise invalid_request("grammar and response_format cannot be combined; leave one of them out.", param="grammar")
    if grammar is not None:
        if isinstance(grammar.value, str):
            return Grammar(grammar.type, grammar.value), "grammar"
        return _schema(grammar.value), "grammar"
    if response_format is not None and wants_json:
        named = response_format.json_schema
        definition = named.definition if named is not None and response_format.type == "json_schema" else _ANY_OBJECT
        return _schema(definition), "response_format"
    return None, ""


def _schema(definition: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(definition, ensure_ascii=False))
