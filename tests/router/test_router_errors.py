"""Whatever goes wrong is answered in OpenAI's shape."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

Start = Callable[..., Awaitable[Any]]


@pytest.fixture
async def router(start_on_processes: Start) -> Any:
    return await start_on_processes([{"name": "abacus", "alias": "math"}])


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b'{"model": "math", ', None, "not valid JSON"),
        (b"", None, "not valid JSON"),
        (b"\xff\xfe", None, "not valid JSON"),
        (b'["math"]', None, "object"),
        (b'{"model": 5}', "model", "valid string (got 5)"),
        (b'{"model": ["math"]}', "model", "valid string (got ['math'])"),
    ],
)
async def test_a_body_that_names_no_model_is_refused(router: Any, body: bytes, param: str | None, words: str) -> None:
    reply = await router.http.post("/v1/chat/completions", content=body)
    error = error_of(reply)
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert await router.status("math") == "unloaded"


@pytest.mark.parametrize("action", ["unload", "reload", "status"])
@pytest.mark.parametrize(
    ("body", "param"),
    [(b"{", None), (b"{}", "model_id"), (b'{"model_id": 7}', "model_id"), (b'{"model_id": ""}', "model_id")],
)
async def test_a_wrong_lifecycle_body_is_refused(router: Any, action: str, body: bytes, param: str | None) -> None:
    reply = await router.http.post(f"/v1/models/{action}", content=body)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


async def test_lifecycle_bodies_need_no_content_type(router: Any) -> None:
    reply = await router.http.post("/v1/models/status", content=b'{"model_id": "math"}')
    assert reply.json() == {"model_id": "math", "status": "unloaded"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/chat/completion", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/math", 405, "method_not_allowed"),
    ],
)
async def test_unknown_routes_and_methods(router: Any, method: str, path: str, status: int, code: str) -> None:
    reply = await router.http.request(method, path)
    assert (reply.status_code, error_of(reply)["code"]) == (status, code)
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_50_mib_is_refused(router: Any, declared: bool) -> None:
    size, piece = 50 * 2**20 + 1, b" " * 2**20
    whole = piece * 50 + b" "

    async def pieces() -> Any:
        for start in range(0, size, len(piece)):
            yield whole[start : start + len(piece)]

    reply = await router.http.post("/v1/chat/completions", content=whole if declared else pieces())
    assert (reply.status_code, error_of(reply)["code"]) == (413, "request_too_large")


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(
    router: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/v1/chat/completions", "/v1/models/status"):
        _, writer = await asyncio.open_connection("127.0.0.1", int(router.url.rsplit(":", 1)[1]))
        writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf".encode())
        await writer.drain()
        writer.transport.abort()
    assert await router.status("math") == "unloaded"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_long_body_within_the_limit_is_answered(router: Any) -> None:
    body = {"model": "math", "padding": "x" * (8 * 2**20), "messages": [{"role": "user", "content": "hi"}]}
    reply = await router.http.post("/v1/chat/completions", content=json.dumps(body))
    assert reply.status_code == 200, reply.text


async def test_health_and_metrics(router: Any) -> None:
    assert (await router.http.get("/health/live")).status_code == 200
    assert (await router.http.get("/health/ready")).status_code == 200
    await router.http.post("/v1/completions", json={"model": "math", "prompt": "x"})
    page = (await router.http.get("/metrics")).text
    assert 'multimodel_router_requests_total{model="abacus",status="200"} 1.0' in page
    assert 'multimodel_router_ready_endpoints{model="abacus"} 1.0' in page
    assert 'multimodel_router_wakes_total{model="abacus"} 1.0' in page
    assert 'multimodel_router_requests_waiting{model="abacus"} 0.0' in page


async def test_a_client_cannot_make_metrics_grow(router: Any) -> None:
    for number in range(5):
        await router.http.post("/v1/completions", json={"model": f"made-up-{number}", "prompt": "x"})
    assert "made-up" not in (await router.http.get("/metrics")).text
