"""A server that sleeps: its memory is given back, it stays ready, and whoever asks it something wakes it."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello world"}], "max_tokens": 8}
LONG = {**HELLO, "max_tokens": 500, "stream": True}


@pytest.fixture(scope="module")
def sleeper(tiny_model: Path, launch_server: Callable[..., Any]) -> Iterator[Any]:
    """A server with a cache large enough to be missed."""
    server = launch_server("--model", tiny_model, "--pa-memory-mb=64")
    yield server.wait_until_ready()
    server.stop()


@pytest.fixture
def client(sleeper: Any) -> Iterator[Any]:
    with sleeper.http() as client:
        yield client
        client.post("/wake_up").raise_for_status()


def text(client: Any) -> str:
    return client.post(CHAT, json=HELLO).json()["choices"][0]["message"]["content"]


def is_sleeping(client: Any) -> bool:
    return client.get("/is_sleeping").json()["is_sleeping"]


@pytest.mark.parametrize("path", ["/sleep", "/sleep?level=1", "/sleep?level=2"])
def test_a_request_wakes_a_sleeping_server_and_is_answered_as_before(client: Any, path: str) -> None:
    before = text(client)
    assert is_sleeping(client) is False
    assert client.post(path).json() == {"is_sleeping": True}
    assert is_sleeping(client) is True
    assert client.get("/health/ready").status_code == 200
    assert text(client) == before
    assert is_sleeping(client) is False


def test_a_server_is_woken_without_a_request(client: Any) -> None:
    client.post("/sleep").raise_for_status()
    assert client.post("/wake_up").json() == {"is_sleeping": False}
    assert is_sleeping(client) is False


def test_memory_is_given_back(client: Any, sleeper: Any) -> None:
    engine = sleeper.engine()
    long = {"messages": [{"role": "user", "content": "hello world " * 300}], "max_tokens": 1}
    client.post(CHAT, json=long).raise_for_status()
    before = engine.memory_info().rss
    client.post("/sleep").raise_for_status()
    assert before - engine.memory_info().rss > 500_000, "neither weights nor cache"


def test_what_runs_is_finished_first_and_what_comes_meanwhile_is_answered_after(client: Any, sleeper: Any) -> None:
    told: list[Any] = []

    def asked(ask: Callable[[], Any]) -> threading.Thread:
        thread = threading.Thread(target=lambda: told.append(ask()))
        thread.start()
        return thread

    with client.stream("POST", CHAT, json=LONG) as response:
        lines = response.iter_lines()
        next(lines)
        with sleeper.http() as other:
            sleeping = asked(lambda: other.post("/sleep").json())
            others = asked(lambda: text(other))
            rest = [line for line in lines if line]
            sleeping.join(60)
            others.join(60)
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert {"is_sleeping": True} in told
    assert text(client) in told


def test_a_level_that_is_none_is_refused(client: Any) -> None:
    refused = client.post("/sleep?level=3")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "level")


def test_an_engine_that_is_killed_in_its_sleep_comes_back_awake(client: Any, sleeper: Any) -> None:
    before, mark = text(client), len(sleeper.messages)
    client.post("/sleep").raise_for_status()
    engine: psutil.Process = sleeper.engine()
    engine.kill()
    sleeper.wait_for_line("Successfully rebooted", after=mark)
    assert is_sleeping(client) is False
    assert text(client) == before
