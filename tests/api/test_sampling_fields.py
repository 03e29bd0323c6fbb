"""The request fields that steer sampling: their ranges, and that a refusal names the field."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from multimodel_api import errors
from multimodel_api.openai import CompletionRequest


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(json.dumps({"prompt": "a", **fields}))


def test_a_request_may_use_every_field() -> None:
    fields = {
        "min_p": 0.1,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "repetition_penalty": 1.1,
        "dry_multiplier": 0.8,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_sequence_breakers": ["\n"],
        "ignore_eos": True,
        "stop_token_ids": [3],
    }
    request = completion(**fields, logit_bias={"50256": -100})
    assert {name: getattr(request, name) for name in fields} == fields
    assert request.logit_bias == {50256: -100.0}


def test_null_is_as_good_as_nothing() -> None:
    names = ("min_p", "presence_penalty", "logit_bias", "response_format", "grammar", "ignore_eos", "dry_base")
    request = completion(**dict.fromkeys(names))
    assert all(getattr(request, name) is None for name in names)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"dry_multiplier": -1}, "dry_multiplier"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"dry_allowed_length": 0}, "dry_allowed_length"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers[0]"),
        ({"dry_sequence_breakers": ["x"] * 65}, "dry_sequence_breakers"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {str(token): 0 for token in range(1025)}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
            "response_format.json_schema.schema",
        ),
        ({"grammar": {"type": "bnf", "value": "a"}}, "grammar.type"),
        ({"grammar": {"type": "regex", "value": {}}}, "grammar.value"),
        ({"grammar": {"type": "json_schema", "value": "{}"}}, "grammar.value"),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as refused:
        completion(**fields)
    assert errors.from_validation(refused.value).detail.param == param


@pytest.mark.parametrize("name", ["x", "-1", "1.5"])
def test_a_bias_must_name_a_token(name: str) -> None:
    with pytest.raises(ValidationError, match="logit_bias"):
        completion(logit_bias={name: 1})
