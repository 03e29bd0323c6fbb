"""Every path that a model server answers goes through the router, with errors in the shape that its clients know."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
]


@pytest.fixture
async def router(start_on_processes: Callable[..., Awaitable[Any]]) -> Any:
    return await start_on_processes([{"name": "abacus", "alias": "math"}])


def asked(**standin: Any) -> dict[str, Any]:
    return {"model": "math", "messages": [{"role": "user", "content": "one two"}], "standin": standin}


async def test_every_inference_path_is_passed_through(router: Any) -> None:
    for path in PATHS:
        reply = await router.http.post(f"{path}?beta=true", json=asked())
        assert (reply.status_code, reply.headers["x-seen-path"]) == (200, f"{path}?beta=true")


@pytest.mark.parametrize("path", PATHS)
async def test_an_unknown_model_is_told_in_the_clients_shape(router: Any, path: str) -> None:
    reply = await router.http.post(path, json={"model": "claude"})
    document = reply.json()
    assert reply.status_code == 404
    assert "'claude'" in document["error"]["message"]
    if path.startswith("/v1/messages"):
        assert (document["type"], document["error"]["type"]) == ("error", "not_found_error")
    else:
        assert document["error"]["code"] == "model_not_found"


async def test_a_broken_stream_of_messages_ends_with_an_event_that_its_clients_know(router: Any) -> None:
    body = {**asked(fault="break_mid"), "stream": True}
    async with router.http.stream("POST", "/v1/messages?beta=true", json=body) as reply:
        lines = [line async for line in reply.aiter_lines() if line]
    assert lines[-2] == "event: error"
    document = json.loads(lines[-1].removeprefix("data: "))
    assert (document["type"], document["error"]["type"]) == ("error", "api_error")
