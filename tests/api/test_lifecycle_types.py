"""Lifecycle requests, and the record of a model's last command."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from multimodel_api import names
from multimodel_api.lifecycle import LifecycleRequest
from multimodel_api.status import CommandAction, LastCommand, command_record, withdrawal


@pytest.mark.parametrize(
    ("body", "drain_seconds", "reason"),
    [
        ({}, None, None),
        ({"drain_seconds": 0}, 0.0, None),
        ({"drain_seconds": 1.5, "reason": "x" * 256}, 1.5, "x" * 256),
        ({"drain_seconds": None, "reason": None}, None, None),
    ],
)
def test_a_drain_and_a_reason_may_be_given(body: dict[str, Any], drain_seconds: float | None, reason: str) -> None:
    request = LifecycleRequest.model_validate_json(json.dumps({"model_id": "m", **body}))
    assert (request.drain_seconds, request.reason) == (drain_seconds, reason)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('"drain_seconds": -1', "drain_seconds"),
        ('"drain_seconds": 1e999', "drain_seconds"),
        ('"drain_seconds": "5"', "drain_seconds"),
        (f'"reason": "{"x" * 257}"', "reason"),
        ('"reason": 1', "reason"),
    ],
)
def test_a_wrong_drain_or_reason_is_named(body: str, field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        LifecycleRequest.model_validate_json(f'{{"model_id": "m", {body}}}')
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


def test_a_record_holds_one_models_command_alone() -> None:
    command = LastCommand(action=CommandAction.UNLOAD, by="alice", at="2026-01-01T00:00:00Z")
    record = command_record("team", "chat", "a", command)
    assert record["metadata"] == {"name": "chat", "namespace": "team"}
    written = {"action": "unload", "by": "alice", "at": "2026-01-01T00:00:00Z"}
    assert record["status"] == {"models": [{"name": "a", "lastCommand": written}]}
    assert "status" not in withdrawal("team", "chat")


def test_each_model_has_a_manager_of_its_own_that_the_api_server_takes() -> None:
    assert names.command_manager("a") != names.command_manager("b")
    assert len(names.command_manager("m" * 63)) <= 128
