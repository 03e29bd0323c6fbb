"""What the probes say, by what the operator gets done; and what its metrics tell."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from multimodel_operator import health, inventory
from multimodel_operator.cache import Cache
from multimodel_operator.errors import AbsentError, UnavailableError
from multimodel_operator.health import Health
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key
from multimodel_operator.workqueue import WorkQueue


class FaultySource:
    """Lists nothing, or raises `error`; hangs if told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False

    async def list(self, *_: Any) -> tuple[list[Any], str]:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        return [], "1"

    @asynccontextmanager
    async def watch(self, *_: Any) -> AsyncIterator[AsyncIterator[Any]]:
        async def nothing() -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield

        yield nothing()


class Parts:
    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.source = FaultySource()
        self.cache = Cache(self.source, None, relist_seconds=0.01)
        self.queue = WorkQueue(self._work, 1, Metrics())
        self.health = Health(self.cache, self.queue)

    async def _work(self, _: Key) -> None:
        await self.release.wait()

    async def until(self, *, ready: bool | None = None, live: bool | None = None) -> None:
        async with asyncio.timeout(5):
            while (ready is not None and self.health.ready != ready) or (live is not None and self.health.live != live):  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    made = Parts()
    tasks = [asyncio.create_task(run()) for run in (made.cache.run, made.queue.run)]
    yield made
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("error", [AbsentError("404 page not found"), UnavailableError("503")], ids=repr)
async def test_ready_when_everything_has_been_seen_and_alive_all_the_time(
    parts: Parts, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert not Parts().health.ready, "nothing has been seen"
    await parts.until(ready=True)
    parts.source.error = error
    await parts.until(ready=False)
    assert parts.health.live
    assert ("install" in caplog.text) == isinstance(error, AbsentError)
    parts.source.error = None
    await parts.until(ready=True)


async def test_not_alive_when_work_never_ends(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    await parts.until(ready=True)
    monkeypatch.setattr(health, "STUCK_SECONDS", 0.5)
    parts.queue.add(Key("team", "a"), 0)
    await parts.until(live=False)
    parts.release.set()
    await parts.until(live=True)


async def test_not_alive_when_what_is_due_finds_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts()  # nothing of which runs
    parts.queue.add(Key("team", "a"), 0)
    await asyncio.sleep(0.01)
    assert parts.health.live
    monkeypatch.setattr(health, "STUCK_SECONDS", 0.01)
    await parts.until(live=False)


async def test_not_alive_when_a_list_never_ends(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    await parts.until(ready=True)
    monkeypatch.setattr(health, "STUCK_SECONDS", 0.5)
    parts.source.hangs = True
    await parts.until(live=False)


def multimodel(*holding: str, models: tuple[str, ...] = ()) -> dict[str, Any]:
    conditions = [{"type": kind, "status": "True"} for kind in holding] + [{"type": "Other", "status": "False"}]
    return {"status": {"conditions": conditions, "models": [{"name": state, "state": state} for state in models]}}


def test_multimodels_and_models_are_counted_by_state() -> None:
    seen = [
        {},
        multimodel(models=("reloading",)),
        multimodel("Ready", models=("loaded", "unloaded")),
        multimodel("Ready", "Degraded", models=("loaded", "internal_error")),
    ]
    assert inventory.multimodels_by_state(seen) == {"pending": 2, "ready": 1, "degraded": 1}
    counted = {state: number for state, number in inventory.models_by_state(seen).items() if number}
    assert counted == {"reloading": 1, "loaded": 2, "unloaded": 1, "internal_error": 1}


def test_numbers_are_looked_up_when_the_page_is_read() -> None:
    metrics, seen = Metrics(), {"ready": 1}
    metrics.watch_each("multimodels", "MultiModels.", "state", lambda: dict(seen))
    metrics.watch("leader", "Leads.", lambda: 1.0)
    seen["ready"] = 5
    assert b'multimodel_operator_multimodels{state="ready"} 5.0' in metrics.page()
    assert b"multimodel_operator_leader 1.0" in metrics.page()
