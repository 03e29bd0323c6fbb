"""Requests that are wrong get an answer in OpenAI's shape that says what is wrong."""

import json
from typing import Any

import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def refusal(server: Any, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with server.http() as client:
        response = client.post(path, content=content)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {}, "messages"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"messages": HELLO, "max_tokens": "5"}, "max_tokens"),
        (CHAT, {"messages": HELLO, "max_tokens": 1.5}, "max_tokens"),
        (CHAT, {"messages": HELLO, "temperature": -1}, "temperature"),
        (CHAT, {"messages": HELLO, "temperature": "warm"}, "temperature"),
        (CHAT, {"messages": HELLO, "top_p": 0}, "top_p"),
        (CHAT, {"messages": HELLO, "top_k": 0}, "top_k"),
        (CHAT, {"messages": HELLO, "seed": 2**63}, "seed"),
        (CHAT, {"messages": HELLO, "stream": "yes"}, "stream"),
        (CHAT, {"messages": HELLO, "stop": [""]}, "stop[0]"),
        (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"prompt": 5}, "prompt"),
        (COMPLETIONS, {}, "prompt"),
        (CHAT, [], None),
        (CHAT, b"", None),
        (CHAT, b'{"messages": [', None),
        (CHAT, b"\xff\xfe", None),
        (CHAT, b"[" * 100_000, None),
    ],
)
def test_wrong_fields_are_named(server: Any, path: str, body: Any, param: str | None) -> None:
    error = refusal(server, path, body)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_unknown_model_names_the_known_ones(server: Any, path: str) -> None:
    error = refusal(server, path, {"model": "gpt-5", "messages": HELLO, "prompt": "a"}, 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'gpt-5'" in error["message"]
    assert "'tiny'" in error["message"]


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        (CHAT, "messages", {"messages": [{"role": "user", "content": "xy" * 5000}]}),
        (COMPLETIONS, "prompt", {"prompt": "xy" * 5000}),
        (CHAT, "messages", {"messages": [{"role": "user", "content": "xy" * 5000}], "stream": True, "max_tokens": 1}),
    ],
)
def test_a_prompt_longer_than_the_context(server: Any, path: str, param: str, body: Any) -> None:
    error = refusal(server, path, body)
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    assert "2048" in error["message"]
    assert "The prompt has 100" in error["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_fit(server: Any, name: str) -> None:
    error = refusal(server, CHAT, {"messages": HELLO, name: 2048})
    assert (error["param"], error["code"]) == (name, "context_length_exceeded")


def test_a_templates_refusal_is_the_clients_error(server: Any) -> None:
    error = refusal(server, CHAT, {"messages": [{"role": "tool", "content": "a"}]})
    assert (error["param"], "no tools here" in error["message"]) == ("messages", True)


def test_unknown_routes_and_methods(server: Any) -> None:
    assert refusal(server, "/v1/images/generations", {}, 404)["code"] == "unknown_url"
    assert refusal(server, "/v1/models", {}, 405)["code"] == "method_not_allowed"


def test_a_body_beyond_the_limit(server: Any) -> None:
    with server.http() as client:
        response = client.post(CHAT, content=b" " * (50 * 1024 * 1024 + 1))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        response = client.post(CHAT, content=(b" " * (1 << 20) for _ in range(52)))
        assert response.status_code == 413


def test_the_official_client_raises_its_own_errors(server: Any) -> None:
    with server.openai() as client:
        with pytest.raises(openai.NotFoundError, match="gpt-5"):
            client.chat.completions.create(model="gpt-5", messages=HELLO)
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=[])
    assert caught.value.param == "messages"


def test_unknown_fields_are_ignored(server: Any) -> None:
    with server.http() as client:
        body = {"messages": HELLO, "max_tokens": 1, "user": "me", "logit_bias": {}, "made_up": [1]}
        assert client.post(CHAT, json=body).status_code == 200
