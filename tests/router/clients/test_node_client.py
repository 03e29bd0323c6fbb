"""OpenAI's client for Node, unchanged, against the router and the example models."""

from collections.abc import Callable
from typing import Any

import httpx

Node = Callable[[str, str], Any]


def test_models(node: Node, url: str) -> None:
    assert node("models", url) == {"listed": ["default", "math", "words"], "one": "math"}


def test_chat(node: Node, url: str) -> None:
    said = node("chat", url)
    assert said["content"] == "2 + 3 = 5."
    assert said["tokens"] > 10
    assert said["id"]


def test_a_stream(node: Node, url: str) -> None:
    assert node("stream", url) == "2 + 3 = 5."


def test_a_tool_call(node: Node, url: str) -> None:
    call = node("tools", url)
    assert (call["name"], call["finish"]) == ("add", "tool_calls")
    assert {"a", "b"} == set(call["given"])


def test_embeddings(node: Node, url: str) -> None:
    first, second = node("embeddings", url)
    assert first == second > 16


def test_errors_are_of_the_right_class(node: Node, url: str) -> None:
    errors = node("errors", url)
    unknown, wrong, late = errors["unknown"], errors["wrong"], errors["late"]
    assert (unknown["name"], unknown["status"], unknown["code"]) == ("NotFoundError", 404, "model_not_found")
    assert "'math', 'words'" in unknown["message"]
    assert (wrong["name"], wrong["status"], wrong["param"]) == ("BadRequestError", 400, "messages")
    assert late["name"] == "APIConnectionTimeoutError"


def test_an_aborted_stream_ends_upstream_too(node: Node, url: str) -> None:
    assert node("abort", url) == {"pieces": 3, "afterwards": "2 + 3 = 5."}
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'multimodel_router_requests_in_flight{model="abacus"} 0.0' in metrics
