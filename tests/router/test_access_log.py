"""One line for every request, in words or as JSON, with what an operator looks for."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Awaitable[Any]]
Until = Callable[..., Awaitable[None]]

LOGGER = "multimodel_router.access"
CHAT = {"messages": [{"role": "user", "content": "one two"}]}


@pytest.fixture
def start(start_on_processes: Start, caplog: pytest.LogCaptureFixture) -> Callable[[str], Awaitable[Any]]:
    async def start_router(style: str) -> Any:
        caplog.set_level("INFO", LOGGER)
        model = {"name": "abacus", "alias": "math", "min": 1}
        return await start_on_processes([model], settings={"access_log": style})

    return start_router


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [record.getMessage() for record in caplog.records if record.name == LOGGER]


Lines = Callable[[], list[str]]


@pytest.mark.parametrize("stream", [False, True])
async def test_json(start: Start, lines: Lines, stream: bool) -> None:
    router = await start("json")
    asked = {"x-request-id": "trace-7", "authorization": "Bearer secret"}
    reply = await router.http.post("/v1/chat/completions?a=secret", json=CHAT | {"stream": stream}, headers=asked)
    (line,) = lines()
    said = json.loads(line)
    assert {"first_byte_ms", "duration_ms"} <= set(said)
    assert 0 < said.pop("first_byte_ms") <= said.pop("duration_ms")
    tokens = {"prompt_tokens": said.pop("prompt_tokens"), "completion_tokens": said.pop("completion_tokens")}
    assert tokens == (
        {"prompt_tokens": 0, "completion_tokens": 0} if stream else {"prompt_tokens": 1, "completion_tokens": 4}
    )
    assert said == {
        "request_id": "trace-7",
        "peer": "127.0.0.1",
        "caller": "anonymous",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "abacus",
        "status": 200,
        "bytes": len(reply.content),
        "retries": 0,
        "resumed": 0,
    }
    assert "secret" not in line


async def test_text(start: Start, lines: Lines) -> None:
    router = await start("text")
    await router.http.get("/v1/models", headers={"x-request-id": "trace-8"})
    await router.http.post("/v1/chat/completions", json=CHAT | {"model": "nope\nforged line"})
    listed, unknown = lines()
    assert listed.startswith(
        "request_id=trace-8 peer=127.0.0.1 caller= method=GET path=/v1/models model=None status=200 "
    )
    assert " status=404 " in unknown
    assert "forged" not in unknown


async def test_what_is_no_request_is_logged_too(start: Start, lines: Lines) -> None:
    router = await start("json")
    reader, writer = await asyncio.open_connection(*router.http.base_url.netloc.decode().split(":"))
    writer.write(b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
    writer.close()
    (line,) = lines()
    said = json.loads(line)
    assert (said["status"], said["peer"], said["method"], said["path"]) == (431, "127.0.0.1", "", "")


async def test_retries_are_counted(start: Start, lines: Lines, tmp_path: Path) -> None:
    router = await start("json")
    refused = {"fault": "unavailable", "once": str(tmp_path / "once")}
    await router.http.post("/v1/chat/completions", json=CHAT | {"standin": refused})
    assert json.loads(lines()[0])["retries"] == 1


async def test_a_client_that_left(start: Start, lines: Lines, tmp_path: Path, until: Until) -> None:
    router = await start("json")
    begun = tmp_path / "begun"
    waits = {"gate": str(tmp_path / "never"), "begun": str(begun)}
    request = asyncio.create_task(router.http.post("/v1/chat/completions", json=CHAT | {"standin": waits}))
    await until(lambda: asyncio.to_thread(begun.exists), True)
    request.cancel()
    await until(lambda: asyncio.to_thread(lambda: len(lines())), 1)
    assert json.loads(lines()[0])["status"] == 499


async def test_off(start: Start, lines: Lines) -> None:
    router = await start("off")
    assert (await router.http.get("/v1/models")).status_code == 200
    assert lines() == []
