"""Requests held while their model loads: bounded, comforted, answered or told why not; over both fleets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from multimodel_router import comfort
from multimodel_router.settings import AbandonedLoads, WaitingSettings

MATH = {"name": "abacus", "alias": "math"}
BAD_WEIGHTS = {"reason": "BadWeights", "message": "model.safetensors: the file is truncated; download it again"}
OPTED_OUT = {"x-multimodel-progress": "off"}

Start = Callable[..., Awaitable[Any]]


def chat(stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "good morning"}], "stream": stream} | more


def ask(router: Any, **more: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(router.http.post("/v1/chat/completions", json=chat(**more)))


class Gate:
    """A file without which the stand-in goes on loading."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.model = MATH | {"standin": {"load_gate": str(file)}}

    def open(self) -> None:
        self._file.touch()

    def close(self) -> None:
        self._file.unlink()

    def failing(self, **more: Any) -> dict[str, Any]:
        return MATH | {"standin": {"load_gate": str(self._file), "fail": BAD_WEIGHTS}} | more


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waiting clients hear something soon."""
    monkeypatch.setattr(comfort, "STREAM_AFTER", 0.05)
    monkeypatch.setattr(comfort, "WHOLE_AFTER", 0.05)
    monkeypatch.setattr(comfort, "EVERY", 0.05)


async def until_held(router: Any, until: Any, count: int) -> None:
    async def held() -> float:
        value: float = router.metrics.waiting.labels("abacus")._value.get()
        return value

    await until(held, count)


async def test_of_a_burst_on_a_cold_model_exactly_those_over_the_bound_are_refused(
    start_router: Start, gate: Gate, until: Any
) -> None:
    limit, over = 6, 4
    router = await start_router([gate.model], settings={"waiting": WaitingSettings(requests_per_model=limit)})
    first = ask(router)
    await until_held(router, until, 1)
    await asyncio.wait((first,), timeout=1.2)
    gate.open()
    assert (await first).status_code == 200
    gate.close()
    await router.http.post("/v1/models/unload", json={"model_id": "math"})
    burst = [ask(router) for _ in range(limit + over)]
    await until_held(router, until, limit)
    done, held = await asyncio.wait(burst, return_when=asyncio.ALL_COMPLETED, timeout=0.5)
    assert [task.result().status_code for task in done] == [429] * over
    for refused in (task.result() for task in done):
        assert refused.json()["error"]["code"] == "too_many_waiting"
        assert 1 <= int(refused.headers["retry-after"]) <= 5, "as this model's last load, which took a little over 1 s"
    gate.open()
    assert [reply.status_code for reply in await asyncio.gather(*held)] == [200] * limit
    assert router.metrics.refusals.labels("abacus")._value.get() == over


async def test_a_model_that_has_never_loaded_is_expected_to_take_a_while(
    start_on_processes: Start, gate: Gate, until: Any
) -> None:
    router = await start_on_processes([gate.model], settings={"waiting": WaitingSettings(requests_per_model=1)})
    held = ask(router)
    await until_held(router, until, 1)
    assert 20 < int((await ask(router)).headers["retry-after"]) <= 30
    gate.open()
    assert (await held).status_code == 200


async def test_one_models_crowd_leaves_room_for_another(start_on_processes: Start, gate: Gate, until: Any) -> None:
    waiting = WaitingSettings(requests=3, requests_per_model=2)
    router = await start_on_processes([gate.model, {"name": "scribe"}], settings={"waiting": waiting})
    crowd = [ask(router) for _ in range(2)]
    await until_held(router, until, 2)
    assert (await ask(router)).status_code == 429
    assert (await ask(router, model="standins/scribe")).status_code == 200
    gate.open()
    assert [reply.status_code for reply in await asyncio.gather(*crowd)] == [200] * 2


async def test_bytes_are_bounded_too(start_on_processes: Start, gate: Gate, until: Any) -> None:
    router = await start_on_processes([gate.model], settings={"waiting": WaitingSettings(bytes_per_model=3000)})
    held = ask(router, padding="x" * 2000)
    await until_held(router, until, 1)
    refused = await ask(router, padding="x" * 2000)
    assert refused.status_code == 429
    assert "3000 bytes of requests wait for this model already" in refused.json()["error"]["message"]
    small = ask(router)
    await until_held(router, until, 2)
    gate.open()
    assert [reply.status_code for reply in await asyncio.gather(held, small)] == [200] * 2


async def test_a_client_that_leaves_makes_room(start_on_processes: Start, gate: Gate, until: Any) -> None:
    router = await start_on_processes([gate.model], settings={"waiting": WaitingSettings(requests_per_model=1)})
    gone = ask(router)
    await until_held(router, until, 1)
    assert (await ask(router)).status_code == 429
    gone.cancel()
    await until_held(router, until, 0)
    comes = ask(router)
    await until_held(router, until, 1)
    gate.open()
    assert (await comes).status_code == 200


async def test_a_load_that_nobody_waits_for_ends_where_that_is_wanted(
    start_router: Start, gate: Gate, until: Any
) -> None:
    router = await start_router(
        [gate.model], settings={"waiting": WaitingSettings(abandoned_loads=AbandonedLoads.CANCEL)}
    )
    first, second = ask(router), ask(router)
    await until_held(router, until, 2)
    await router.until("math", "reloading")
    first.cancel()
    await until_held(router, until, 1)
    assert await router.status("math") == "reloading"
    second.cancel()
    await router.until("math", "unloaded")
    gate.open()
    assert (await ask(router)).status_code == 200


async def comments_then_data(reply: httpx.Response) -> AsyncIterator[str]:
    async for line in reply.aiter_lines():
        if line:
            yield line


async def test_a_stream_hears_how_the_load_goes_and_is_then_unbroken(
    start_router: Start, gate: Gate, soon: None
) -> None:
    router = await start_router([gate.model])
    async with router.http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as reply:
        assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        lines = comments_then_data(reply)
        comments = [await anext(lines) for _ in range(3)]
        while "reading weights" not in comments[-1]:
            comments.append(await anext(lines))
        gate.open()
        rest = [line async for line in lines]
    told = comments + [line for line in rest if line.startswith(":")]
    data = [line.removeprefix("data: ") for line in rest if not line.startswith(":")]
    assert all(line.startswith(": loading math: ") or line == ": math is ready" for line in told)
    assert data[-1] == "[DONE]"
    assert [json.loads(entry)["choices"][0]["delta"]["content"] for entry in data[:-1]] == [
        *("You", " said:", " good", " morning")
    ]
    assert rest.index(f"data: {data[0]}") == len(rest) - len(data), "no comment comes between the answer's events"


async def test_the_openai_client_reads_over_the_comments(start_on_processes: Start, gate: Gate, soon: None) -> None:
    router = await start_on_processes([gate.model])
    stream = await router.openai.chat.completions.create(
        model="math", messages=[{"role": "user", "content": "good morning"}], stream=True
    )
    gate.open()
    pieces = [chunk.choices[0].delta.content async for chunk in stream]
    assert pieces == ["You", " said:", " good", " morning"]


async def test_a_json_answer_begins_with_white_space(start_router: Start, gate: Gate, soon: None) -> None:
    router = await start_router([gate.model])
    async with router.http.stream("POST", "/v1/chat/completions", json=chat()) as reply:
        assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
        pieces = reply.aiter_text()
        assert await anext(pieces) == " "
        assert await anext(pieces) == " "
        gate.open()
        text = "".join([piece async for piece in pieces])
    assert json.loads(text)["choices"][0]["message"]["content"] == "You said: good morning"


@pytest.mark.parametrize("stream", [False, True])
async def test_who_opts_out_hears_nothing_before_the_answer(
    start_on_processes: Start, gate: Gate, soon: None, until: Any, stream: bool
) -> None:
    router = await start_on_processes([gate.model])
    asked = router.http.post("/v1/chat/completions", json=chat(stream), headers=OPTED_OUT)
    reply = asyncio.create_task(asked)
    await until_held(router, until, 1)
    await asyncio.wait((reply,), timeout=0.3)
    gate.open()
    assert (await reply).text.startswith("data: {" if stream else "{")


async def test_a_failure_before_anything_was_said_is_a_status(
    start_router: Start, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfort, "STREAM_AFTER", 60.0)
    router = await start_router([gate.failing()])
    reply = ask(router, stream=True)
    await router.until("math", "reloading")
    gate.open()
    error = (await reply).json()["error"]
    assert ((await reply).status_code, error["code"]) == (503, "BadWeights")
    assert BAD_WEIGHTS["message"] in error["message"]


async def test_a_failure_after_comments_is_an_event(start_router: Start, gate: Gate, soon: None) -> None:
    router = await start_router([gate.failing()])
    async with router.http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as reply:
        lines = comments_then_data(reply)
        assert (await anext(lines)).startswith(": loading math")
        gate.open()
        rest = [line async for line in lines]
    assert reply.status_code == 200
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "BadWeights"
    assert router.metrics.failures_in_a_row.labels("abacus")._value.get() == 1


async def test_a_failure_after_comments_is_an_event_of_anthropics(
    start_on_processes: Start, gate: Gate, soon: None
) -> None:
    router = await start_on_processes([gate.failing()])
    async with router.http.stream("POST", "/v1/messages", json=chat(stream=True)) as reply:
        lines = comments_then_data(reply)
        assert (await anext(lines)).startswith(": loading math")
        gate.open()
        rest = [line async for line in lines]
    assert rest[-2] == "event: error"
    assert json.loads(rest[-1].removeprefix("data: "))["type"] == "error"


async def test_a_failure_after_white_space_is_the_document(start_on_processes: Start, gate: Gate, soon: None) -> None:
    router = await start_on_processes([gate.failing()])
    async with router.http.stream("POST", "/v1/chat/completions", json=chat()) as reply:
        pieces = reply.aiter_text()
        assert await anext(pieces) == " "
        gate.open()
        text = "".join([piece async for piece in pieces])
    assert json.loads(text)["error"]["code"] == "BadWeights"


async def test_a_wait_that_takes_too_long_ends_the_stream_that_has_begun(
    start_on_processes: Start, gate: Gate, soon: None
) -> None:
    router = await start_on_processes([gate.model], settings={"waiting": WaitingSettings(seconds=0.5)})
    reply = await router.http.post("/v1/chat/completions", json=chat(stream=True))
    assert json.loads(reply.text.split("data: ")[-1])["error"]["code"] == "LoadTimeout"


async def test_a_model_may_bound_how_long_its_own_requests_wait(start_on_processes: Start, gate: Gate) -> None:
    impatient, patient = gate.model | {"wait": 1}, gate.model | {"name": "scribe", "alias": "text"}
    router = await start_on_processes([impatient, patient])
    patiently = ask(router, model="text")
    refused = await router.http.post("/v1/chat/completions", json=chat(model="math"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "LoadTimeout")
    assert "waitSeconds" in refused.json()["error"]["message"]
    reloaded = await router.http.post("/v1/models/reload", json={"model_id": "math"})
    assert reloaded.json()["status"] == "internal_error"
    assert not patiently.done()
    gate.open()
    assert (await patiently).status_code == 200


@pytest.mark.parametrize("unloads", [1, 3])
async def test_an_unload_does_not_send_those_away_who_came_first(
    start_router: Start, gate: Gate, until: Any, unloads: int
) -> None:
    router = await start_router([gate.model])
    held = [ask(router, stream=index % 2 == 1) for index in range(6)]
    await until_held(router, until, 6)
    for _ in range(unloads):
        reply = await router.http.post("/v1/models/unload", json={"model_id": "math"})
        assert reply.json()["status"] == "unloaded"
        await router.until("math", "reloading")
    gate.open()
    assert [reply.status_code for reply in await asyncio.gather(*held)] == [200] * 6
