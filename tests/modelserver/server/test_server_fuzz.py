"""Whatever is sent, within the OpenAPI document or beside it, is no error of the server."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

POSTS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
]
LIMITS = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "n": 2, "best_of": 2}
"""The largest values that are sent, since the model would go on for long."""


@pytest.fixture(scope="module")
def document(server: Any) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", POSTS)
def test_no_request_makes_the_server_fail(document: Any, path: str, mode: GenerationMode) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(document[path]["POST"].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if isinstance(case.body, dict):
            for name, limit in LIMITS.items():
                given_value = case.body.get(name)
                if isinstance(given_value, int) and given_value > limit:
                    case.body[name] = limit
            case.body.setdefault("max_output_tokens" if path == "/v1/responses" else "max_tokens", 3)
        case.call_and_validate(checks=[not_a_server_error], timeout=30)

    send()


def test_every_route_that_takes_a_body_is_in_the_document(document: Any) -> None:
    operations = [result.ok() for result in document.get_all_operations()]
    takes_body = {operation.path: bool(operation.body) for operation in operations if operation.method == "post"}
    assert takes_body == dict.fromkeys(POSTS, True) | {"/sleep": False, "/wake_up": False}


def test_the_gets_of_the_document_are_answered(document: Any) -> None:
    gets = [result.ok() for result in document.get_all_operations() if result.ok().method == "get"]
    assert len(gets) == 6
    for operation in gets:
        assert operation.Case().call(timeout=30).status_code == 200
