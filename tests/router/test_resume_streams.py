"""A stream whose model server dies goes on at another one, and its client sees one unbroken stream."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

MODEL = {"name": "abacus", "alias": "math", "min": 1}
WORDS = "one two three four five six"
PIECES = ["You", " said:", " one", " two", " three", " four", " five", " six"]

Start = Callable[..., Awaitable[Any]]


def chat(**standin: Any) -> dict[str, Any]:
    scripted = {"resumable": True} | standin
    return {"messages": [{"role": "user", "content": WORDS}], "stream": True, "standin": scripted}


class Seen:
    """What a client saw of a stream."""

    def __init__(self, text: str) -> None:
        self.blocks = [block for block in text.split("\n\n") if block]
        data = [block.removeprefix("data: ") for block in self.blocks]
        self.documents = [json.loads(entry) for entry in data if entry.startswith("{")]
        chunks = [document for document in self.documents if "choices" in document]
        self.pieces = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
        self.servers = [chunk["system_fingerprint"] for chunk in chunks]
        self.whole = data[-1] == "[DONE]"

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.documents[-1]["error"]
        return error


async def stream(router: Any, body: dict[str, Any]) -> Seen:
    reply = await router.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert "x-multimodel-resume" not in reply.headers
    return Seen(reply.text)


def resumed(router: Any) -> float:
    count: float = router.metrics.resumed_streams.labels("abacus")._value.get()
    return count


def broken(router: Any) -> float:
    count: float = router.metrics.broken_streams.labels("abacus")._value.get()
    return count


async def start_replicas(start: Start, until: Any, count: int, **settings: Any) -> Any:
    router = await start([MODEL | {"min": count}], settings=settings)

    async def ready() -> int:
        return len(router.fleet.view("abacus").ready)

    await until(ready, count)
    return router


def assert_unbroken(seen: Seen) -> None:
    assert seen.pieces == PIECES
    assert seen.whole
    assert not any(block.startswith(":") for block in seen.blocks), "a client sees no marker"


@pytest.mark.parametrize("fault", ["break_mid", "die_mid"])
@pytest.mark.parametrize("after", [1, 4, len(PIECES)])
async def test_another_replica_goes_on(start_router: Start, until: Any, fault: str, after: int) -> None:
    router = await start_replicas(start_router, until, 2)
    seen = await stream(router, chat(fault=fault, after=[after]))
    assert_unbroken(seen)
    assert len(set(seen.servers[:after])) == 1
    assert len(set(seen.servers)) == (1 if after == len(PIECES) else 2)
    assert (resumed(router), broken(router)) == (1, 0)


async def test_the_only_replica_goes_on_when_it_is_back(start_on_processes: Start, until: Any) -> None:
    router = await start_replicas(start_on_processes, until, 1)
    seen = await stream(router, chat(fault="die_mid", after=[3]))
    assert_unbroken(seen)
    assert len(set(seen.servers)) == 2, "the process was started again"


async def test_what_no_marker_followed_is_made_again(start_on_processes: Start, until: Any, tmp_path: Path) -> None:
    router = await start_replicas(start_on_processes, until, 2)
    once = str(tmp_path / "once")
    seen = await stream(router, chat(fault="break_mid", after=[4], unmarked=True, once=once))
    assert_unbroken(seen)
    assert len(set(seen.servers[:3])) == len(set(seen.servers[3:])) == 1
    assert seen.servers[0] != seen.servers[3]


async def test_a_stream_that_breaks_before_its_first_marker_is_begun_again(
    start_on_processes: Start, until: Any, tmp_path: Path
) -> None:
    router = await start_replicas(start_on_processes, until, 2)
    once = str(tmp_path / "once")
    assert_unbroken(await stream(router, chat(fault="break_mid", after=[1], unmarked=True, once=once)))
    assert resumed(router) == 0
    assert router.metrics.retries.labels("abacus", "broken")._value.get() == 1


async def test_a_stream_may_break_twice(start_on_processes: Start, until: Any) -> None:
    router = await start_replicas(start_on_processes, until, 2)
    assert_unbroken(await stream(router, chat(fault="break_mid", after=[2, 5])))
    assert resumed(router) == 2


async def test_a_stream_that_breaks_every_server_is_given_up(start_on_processes: Start, until: Any) -> None:
    router = await start_replicas(start_on_processes, until, 2)
    seen = await stream(router, chat(fault="break_mid", after=[2, 3, 4, 5]))
    assert seen.pieces == PIECES[:4]
    assert (seen.error["code"], seen.whole) == ("model_server_broke", False)
    assert (resumed(router), broken(router)) == (2, 1)


async def test_a_stream_that_breaks_after_its_last_marker_is_whole(start_on_processes: Start, until: Any) -> None:
    router = await start_replicas(start_on_processes, until, 1)
    assert_unbroken(await stream(router, chat(fault="break_end")))
    assert (resumed(router), broken(router)) == (0, 0)


@pytest.mark.parametrize("standin", [{"resumable": False}, {"no_resume": True}], ids=str)
async def test_a_stream_that_cannot_go_on_ends_with_an_error(
    start_on_processes: Start, until: Any, standin: dict[str, Any]
) -> None:
    router = await start_replicas(start_on_processes, until, 2)
    seen = await stream(router, chat(fault="break_mid", after=[3], **standin))
    assert seen.pieces == PIECES[:3]
    assert (seen.error["type"], seen.error["code"]) == ("server_error", "model_server_broke")
    assert (resumed(router), broken(router)) == (0, 1)


async def test_going_on_can_be_switched_off(start_on_processes: Start, until: Any) -> None:
    router = await start_replicas(start_on_processes, until, 2, resume=False)
    seen = await stream(router, chat(fault="break_mid", after=[3]))
    assert seen.pieces == PIECES[:3]
    assert seen.error["code"] == "model_server_broke"
    assert resumed(router) == 0


async def test_a_whole_stream_shows_its_client_no_marker(start_on_processes: Start, until: Any) -> None:
    router = await start_replicas(start_on_processes, until, 1)
    assert_unbroken(await stream(router, chat()))
