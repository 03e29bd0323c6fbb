"""A full waiting room is no error for OpenAI's clients: they come again when they are told to."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from multimodel_router.settings import WaitingSettings

Start = Callable[..., Awaitable[Any]]
Until = Callable[..., Awaitable[None]]

ASKED: Any = {"model": "math", "messages": [{"role": "user", "content": "again"}]}


@pytest.fixture
async def full(start_on_processes: Start, tmp_path: Path, until: Until) -> Any:
    """Start a router whose model is known to load fast, and whose waiting room has just become full."""
    gate = tmp_path / "gate"
    gate.touch()
    model = {"name": "abacus", "alias": "math", "standin": {"load_gate": str(gate)}}
    waiting = WaitingSettings(requests=1, requests_per_model=1, seconds=30.0)
    router = await start_on_processes([model], settings={"waiting": waiting})
    await router.http.post("/v1/models/reload", json={"model_id": "math"})
    await router.http.post("/v1/models/unload", json={"model_id": "math"})
    gate.unlink()
    first = asyncio.create_task(router.openai.chat.completions.create(**ASKED))

    async def waiting_now() -> float:
        return float(router.metrics.waiting.labels("abacus")._value.get())

    await until(waiting_now, 1)

    async def open_when_refused() -> None:
        await until(lambda: asyncio.to_thread(refusals, router), 1)
        gate.touch()
        await first

    opening = asyncio.create_task(open_when_refused())
    yield router
    await opening


def refusals(router: Any) -> float:
    return float(router.metrics.refusals.labels("abacus")._value.get())


async def test_python(full: Any) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    reply = await full.openai.with_options(max_retries=3).chat.completions.create(**ASKED)
    assert reply.choices[0].message.content == "You said: again"
    assert loop.time() - began >= 1  # what Retry-After said
    assert refusals(full) >= 1


async def test_node(full: Any, node: Callable[[str, str], Any]) -> None:
    reply = await asyncio.to_thread(node, "retry", full.url)
    assert reply["content"].startswith("You said: ")
    assert reply["seconds"] >= 1
    assert refusals(full) >= 1
