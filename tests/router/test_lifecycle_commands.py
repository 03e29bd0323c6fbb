"""Who commanded what is written down, and an unload gives running answers the time that it says."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from multimodel_router import endpoints

MATH = {"name": "abacus", "alias": "math"}

Start = Callable[..., Awaitable[Any]]


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "CHECK_SECONDS", 0.05)


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "good morning"}]} | more


async def command(router: Any, action: str, **more: Any) -> dict[str, Any]:
    reply = await router.http.post(f"/v1/models/{action}", json={"model_id": "math"} | more)
    document: dict[str, Any] = reply.json()
    return document


class Running:
    """A stream that has begun and goes on when its gate opens."""

    def __init__(self, router: Any, gate: Path) -> None:
        self._gate = gate
        self.begun = asyncio.Event()
        self.lines: list[str] = []
        self.ended = asyncio.create_task(self._read(router))

    async def _read(self, router: Any) -> None:
        body = chat(stream=True, standin={"gate": str(self._gate)})
        async with router.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            async for line in reply.aiter_lines():
                self.lines += [line] if line else []
                self.begun.set()

    async def end(self) -> list[str]:
        self._gate.touch()
        await self.ended
        return self.lines


async def test_answers_that_take_longer_than_an_unload_allows_are_cut_with_an_error(
    start_router: Start, tmp_path: Path
) -> None:
    router = await start_router([MATH | {"min": 1}])
    await router.until("math", "loaded")
    quick, slow = (Running(router, tmp_path / name) for name in ("quick", "slow"))
    await asyncio.gather(quick.begun.wait(), slow.begun.wait())
    began = asyncio.get_running_loop().time()
    assert (await command(router, "unload", drain_seconds=1))["status"] == "unloaded"
    assert (await quick.end())[-1] == "data: [DONE]"
    await slow.ended
    assert 1 <= asyncio.get_running_loop().time() - began < 3
    error = json.loads(slow.lines[-1].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "model_unloaded")


async def test_an_answer_that_has_not_begun_is_cut_with_a_status(start_on_processes: Start, tmp_path: Path) -> None:
    router = await start_on_processes([MATH | {"min": 1}])
    await router.until("math", "loaded")
    body = chat(standin={"gate": str(tmp_path / "never"), "begun": str(tmp_path / "begun")})
    request = asyncio.create_task(router.http.post("/v1/chat/completions", json=body))
    async with asyncio.timeout(10):
        while not await asyncio.to_thread((tmp_path / "begun").exists):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await command(router, "unload", drain_seconds=0)
    reply = await request
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_unloaded")


async def test_without_a_limit_answers_end_when_they_end(start_router: Start, tmp_path: Path) -> None:
    router = await start_router([MATH | {"min": 1}])
    await router.until("math", "loaded")
    running = Running(router, tmp_path / "gate")
    await running.begun.wait()
    await command(router, "unload")
    await asyncio.wait((running.ended,), timeout=1)
    assert (await running.end())[-1] == "data: [DONE]"


async def test_requests_that_come_after_the_unload_are_not_cut(start_on_processes: Start, tmp_path: Path) -> None:
    router = await start_on_processes([MATH | {"min": 1}])
    await router.until("math", "loaded")
    await command(router, "unload", drain_seconds=0)
    later = Running(router, tmp_path / "gate")
    await later.begun.wait()
    await asyncio.wait((later.ended,), timeout=0.3)
    assert (await later.end())[-1] == "data: [DONE]"


@pytest.mark.control_plane
async def test_another_router_keeps_to_an_unload_as_well(
    start_on_kubernetes: Start, join: Start, tmp_path: Path
) -> None:
    here = await start_on_kubernetes([MATH | {"min": 1}])
    there = await join()
    await there.until("math", "loaded")
    running = Running(there, tmp_path / "never")
    await running.begun.wait()
    await command(here, "unload", drain_seconds=0.2)
    await running.ended
    assert "model_unloaded" in running.lines[-1]


@pytest.mark.control_plane
async def test_the_multimodels_status_says_who_commanded_what_and_why(
    cluster: Any, start_on_kubernetes: Start, until: Any
) -> None:
    router = await start_on_kubernetes([MATH, {"name": "scribe"}])

    async def said() -> tuple[Any, ...]:
        last = (await cluster.models_status())["abacus"].get("lastCommand", {})
        return tuple(last.get(key) for key in ("action", "by", "reason", "drainSeconds"))

    assert (await router.http.post("/v1/chat/completions", json=chat())).status_code == 200
    await until(said, ("wake", "anonymous", None, None))
    await command(router, "unload", drain_seconds=2.5, reason="room for another")
    assert await said() == ("unload", "anonymous", "room for another", 2.5)
    await command(router, "reload", reason="it is wanted again")
    await until(said, ("reload", "anonymous", "it is wanted again", None))
    await command(router, "reload", reason="to be sure")
    assert await said() == ("reload", "anonymous", "to be sure", None)
    assert "lastCommand" not in (await cluster.models_status())["scribe"]


@pytest.mark.control_plane
async def test_a_command_that_cannot_be_recorded_is_carried_out_and_logged(
    cluster: Any, start_on_kubernetes: Start, caplog: pytest.LogCaptureFixture
) -> None:
    router = await start_on_kubernetes([MATH | {"min": 1}])
    await router.until("math", "loaded")
    path = f"{cluster.path('roles', '/apis/rbac.authorization.k8s.io/v1')}/router"
    rights = (await cluster.api.get(path)).json()
    rights["rules"] = [rule for rule in rights["rules"] if "multimodels/status" not in rule["resources"]]
    assert (await cluster.api.put(path, json=rights)).is_success

    async def is_refused() -> bool:
        await command(router, "unload")
        return "the unload by anonymous is not recorded" in caplog.text

    async with asyncio.timeout(10):
        while not await is_refused():  # the API server takes a moment to see the change
            pass
    assert await router.status("math") == "unloaded"
