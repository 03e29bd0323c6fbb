"""What form of answer a request asks for, and which requests the edge refuses."""

import json

import pytest

from multimodel_api.errors import ApiError
from multimodel_api.openai import CompletionRequest
from multimodel_server.engine.messages import Grammar
from multimodel_server.text.structure import MAX_GRAMMAR_BYTES, wanted_grammar

SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}, "required": ["z"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}


def wanted(**fields: object) -> Grammar | None:
    return wanted_grammar(CompletionRequest.model_validate_json(json.dumps({"prompt": "a", **fields})))


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"response_format": None}])
def test_free_text_has_no_grammar(fields: dict[str, object]) -> None:
    assert wanted(**fields) is None


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, Grammar("json_schema", '{"type": "object"}')),
        ({"grammar": {"type": "regex", "value": "a+"}}, Grammar("regex", "a+")),
        ({"grammar": {"type": "lark", "value": 'start: "a"'}}, Grammar("lark", 'start: "a"')),
        ({"grammar": {"type": "regex", "value": "b"}, "response_format": {"type": "text"}}, Grammar("regex", "b")),
    ],
)
def test_each_form_has_its_grammar(fields: dict[str, object], grammar: Grammar) -> None:
    assert wanted(**fields) == grammar


@pytest.mark.parametrize("fields", [{"response_format": FORMAT}, {"grammar": {"type": "json_schema", "value": SCHEMA}}])
def test_a_schema_keeps_the_order_of_its_properties(fields: dict[str, object]) -> None:
    grammar = wanted(**fields)
    assert grammar is not None
    assert grammar.kind == "json_schema"
    assert json.loads(grammar.text) == SCHEMA
    assert grammar.text.index('"z"') < grammar.text.index('"a"')


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": FORMAT, "grammar": {"type": "regex", "value": "a"}}, "grammar", "cannot be combined"),
        ({"response_format": FORMAT, "ignore_eos": True}, "ignore_eos", "response_format says where the answer ends"),
        ({"grammar": {"type": "regex", "value": "ä" * 32769}}, "grammar", "grammar has 65538 bytes"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 65536]}}}},
            "response_format",
            f"at most {MAX_GRAMMAR_BYTES}",
        ),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], param: str, words: str) -> None:
    with pytest.raises(ApiError, match=words) as refused:
        wanted(**fields)
    assert refused.value.status == 400
    assert refused.value.detail.param == param
