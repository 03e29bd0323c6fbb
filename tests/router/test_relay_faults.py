"""Model servers that refuse, break or leave: the client sees nothing of it while no byte has reached it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from multimodel_router.fleet import Endpoint

MODEL = {"name": "abacus", "alias": "math", "min": 1}

Start = Callable[..., Awaitable[Any]]


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "one two three"}]} | more


@pytest.fixture
async def router(start_on_processes: Start) -> Any:
    started = await start_on_processes([MODEL])
    await started.until("math", "loaded")
    return started


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["break_first", "unavailable", "stranger"])
async def test_a_server_that_fails_before_its_first_byte_is_tried_again(
    router: Any, tmp_path: Path, fault: str, stream: bool
) -> None:
    body = chat(stream=stream, standin={"fault": fault, "once": str(tmp_path / "once")})
    reply = await router.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert "three" in reply.text
    assert (tmp_path / "once").exists()


async def test_a_request_that_breaks_every_server_is_given_up(router: Any) -> None:
    reply = await router.http.post("/v1/chat/completions", json=chat(standin={"fault": "break_first"}))
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "model_server_broke"
    assert router.metrics.retries.labels("abacus", "broken")._value.get() == 3


async def test_a_stream_that_breaks_ends_with_an_error_event(router: Any) -> None:
    body = chat(stream=True, standin={"fault": "break_mid"})
    async with router.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        events = [line async for line in reply.aiter_lines() if line]
    assert len(events) == 2
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "model_server_broke")


async def test_the_openai_client_raises_when_a_stream_breaks(router: Any) -> None:
    stream = await router.openai.chat.completions.create(
        model="math",
        messages=[{"role": "user", "content": "one two"}],
        stream=True,
        extra_body={"standin": {"fault": "break_mid"}},
    )
    with pytest.raises(openai.APIError, match="broke off the answer"):
        async for _ in stream:
            pass


def server_at(endpoint: Endpoint) -> psutil.Process:
    return next(p for p in psutil.Process().children() if f"--port={endpoint.port}" in p.cmdline())


async def test_a_server_killed_while_a_request_runs_is_replaced_and_the_request_answered(
    router: Any, tmp_path: Path, until: Any
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    body = chat(standin={"gate": str(gate), "begun": str(begun)})
    request = asyncio.create_task(router.http.post("/v1/chat/completions", json=body))
    await until(lambda: asyncio.to_thread(begun.exists), True)
    (before,) = router.fleet.view("abacus").ready
    server_at(before).kill()
    gate.touch()
    assert (await request).status_code == 200
    assert router.fleet.view("abacus").ready != (before,)


async def test_a_server_that_says_that_only_a_restart_helps_gets_one(router: Any, tmp_path: Path) -> None:
    (before,) = router.fleet.view("abacus").ready
    body = chat(standin={"fault": "wedge", "once": str(tmp_path / "once")})
    reply = await router.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert router.fleet.view("abacus").ready != (before,)


async def test_the_server_hears_at_once_that_a_client_left(router: Any, tmp_path: Path, until: Any) -> None:
    for stream in (False, True):
        cancelled = tmp_path / f"cancelled-{stream}"
        begun = tmp_path / f"begun-{stream}"
        files = {"gate": str(tmp_path / "never"), "begun": str(begun), "cancelled": str(cancelled)}
        request = asyncio.create_task(_read_all(router.http, chat(stream=stream, standin=files)))
        await until(lambda path=begun: asyncio.to_thread(path.exists), True)
        request.cancel()
        await until(lambda path=cancelled: asyncio.to_thread(path.exists), True)


async def _read_all(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        await reply.aread()


async def test_a_client_that_leaves_while_it_waits_frees_its_place(
    start_on_processes: Start, tmp_path: Path, until: Any
) -> None:
    gate = tmp_path / "gate"
    router = await start_on_processes([MODEL | {"standin": {"load_gate": str(gate)}}])
    request = asyncio.create_task(router.http.post("/v1/chat/completions", json=chat()))

    async def waiting() -> float:
        return router.metrics.waiting.labels("abacus")._value.get()

    await until(waiting, 1)
    request.cancel()
    await until(waiting, 0)
    gate.touch()
    await router.until("math", "loaded")  # the load goes on: the next request finds the model ready


async def test_a_slow_client_holds_the_server_back_and_loses_nothing(router: Any) -> None:
    words = " ".join(str(number) for number in range(60_000))
    body = chat(messages=[{"role": "user", "content": words}], stream=True)
    async with router.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        pieces = []
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                pieces.append(json.loads(line[6:])["choices"][0]["delta"]["content"])
    assert "".join(pieces) == f"You said: {words}"


async def test_headers_and_status_are_kept_and_the_request_id_is_one(router: Any) -> None:
    given = await router.http.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "abc-1"})
    assert (given.headers["x-request-id"], given.headers["x-seen-request-id"]) == ("abc-1", "abc-1")
    made = await router.http.post("/v1/chat/completions?a=b%20c", json=chat())
    assert made.headers["x-request-id"] == made.headers["x-seen-request-id"] != ""
    assert made.headers["x-seen-path"] == "/v1/chat/completions?a=b%20c"
    assert made.headers.get_list("server") == []
    assert len(made.headers.get_list("date")) == 1


async def test_the_router_stops_without_cutting_a_request_that_ends_in_time(router: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    body = chat(stream=True, standin={"gate": str(gate)})
    async with router.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = reply.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        stopping = asyncio.create_task(router.stop())
        await asyncio.wait((stopping,), timeout=0.2)
        gate.touch()
        rest = [line async for line in lines]
    assert "data: [DONE]" in rest
    await stopping


async def test_a_client_whose_connection_was_kept_may_ask_once_more_while_the_router_stops(
    router: Any, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    body = chat(stream=True, standin={"gate": str(gate)})
    async with router.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert "connection" not in reply.headers
        stopping = asyncio.create_task(router.stop())
        await asyncio.wait((stopping,), timeout=0.2)
        gate.touch()
        await reply.aread()
    last = await router.http.post("/v1/chat/completions", json=chat())  # a new connection would be refused
    assert (last.status_code, last.headers["connection"]) == (200, "close")
    await stopping
