"""Request bodies: what is accepted, and that a refusal names the parameter, the value and the expectation."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from multimodel_api import errors
from multimodel_api.chat import ChatCompletionRequest
from multimodel_api.openai import CompletionRequest

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate_json(json.dumps({"messages": HELLO, **fields}))


def test_the_smallest_chat_request() -> None:
    request = chat()
    assert (request.model, request.stream, request.token_limit, request.stop) == (None, False, None, [])


def test_unknown_fields_are_ignored() -> None:
    assert chat(user="me", metadata={"a": 1}).messages[0].text == "hello"


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].text == "ab"


@pytest.mark.parametrize(("stop", "expected"), [("x", ["x"]), (["x", "y"], ["x", "y"]), (None, [])])
def test_stop_is_a_string_or_a_list(stop: Any, expected: list[str]) -> None:
    assert chat(stop=stop).stop == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"max_tokens": 3}, 3), ({"max_completion_tokens": 4}, 4), ({"max_tokens": 3, "max_completion_tokens": 4}, 4)],
)
def test_the_token_limit_has_two_names(fields: dict[str, int], expected: int) -> None:
    assert chat(**fields).token_limit == expected


@pytest.mark.parametrize("whole", [0, 1])
def test_whole_numbers_are_accepted_where_fractions_are(whole: int) -> None:
    assert chat(temperature=whole).temperature == whole


@pytest.mark.parametrize(
    ("fields", "param", "value"),
    [
        ({"messages": []}, "messages", "[]"),
        ({"messages": "hello"}, "messages", "hello"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "wizard"),
        ({"max_tokens": 0}, "max_tokens", "0"),
        ({"max_tokens": "5"}, "max_tokens", "5"),
        ({"temperature": -1}, "temperature", "-1"),
        ({"temperature": True}, "temperature", "True"),
        ({"top_p": 0}, "top_p", "0"),
        ({"top_k": 0}, "top_k", "0"),
        ({"stop": [""]}, "stop[0]", "''"),
        ({"seed": 2**63}, "seed", str(2**63)),
        ({"stream": "yes"}, "stream", "yes"),
        ({"model": 7}, "model", "7"),
    ],
)
def test_a_wrong_value_is_named(fields: dict[str, Any], param: str, value: str) -> None:
    with pytest.raises(ValidationError) as refused:
        chat(**fields)
    error = errors.from_validation(refused.value)
    assert error.status == 400
    assert error.detail.type == "invalid_request_error"
    assert error.detail.param == param
    assert param in error.detail.message
    assert value in error.detail.message


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValidationError) as refused:
        CompletionRequest.model_validate_json("{}")
    assert errors.from_validation(refused.value).detail.param == "prompt"


def test_malformed_json_is_said_to_be_so() -> None:
    with pytest.raises(ValidationError) as refused:
        ChatCompletionRequest.model_validate_json('{"messages": [')
    error = errors.from_validation(refused.value)
    assert "not valid JSON" in error.detail.message
    assert error.detail.param is None


def test_an_unknown_model_names_the_known_ones() -> None:
    error = errors.model_not_found("nope", ["math", "words"])
    assert error.status == 404
    assert error.detail.code == "model_not_found"
    assert "'math', 'words'" in error.detail.message
