"""What the probes say, by what the operator gets done; and what its metrics tell."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from multimodel_api import names
from multimodel_operator import health, inventory, objects, settings
from multimodel_operator.__main__ import Operator
from multimodel_operator.cache import Cache
from multimodel_operator.cluster import Cluster
from multimodel_operator.errors import AbsentError, UnavailableError
from multimodel_operator.health import Health
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key, Kind
from multimodel_operator.scaler import Scaler
from multimodel_operator.workqueue import WorkQueue


class FaultySource:
    """Lists what there is of a kind, or raises `error`; hangs if told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False
        self.found: list[dict[str, Any]] = []

    async def list(self, kind: Kind, *_: Any) -> tuple[list[Any], str]:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        return [found for found in self.found if found["kind"] == kind.name], "1"

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
        self.health = Health(self.cache, [self.queue])

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


class StuckCluster(Cluster):
    """Lets pods in, but never gets done with it."""

    async def admit(self, pod: Key) -> None:  # noqa: ARG002
        await asyncio.Event().wait()


def found(kind: Kind, name: str, **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1", "generation": 1}
    metadata |= {"creationTimestamp": "2026-01-01T00:00:00Z"} | fields.pop("metadata", {})
    return {"kind": kind.name, "metadata": metadata, **fields}


async def test_not_alive_when_scaling_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    source, metrics = FaultySource(), Metrics()
    labels = {"labels": {names.LABEL_INSTANCE: "mm", names.LABEL_MODEL: "a"}}
    source.found = [
        found(objects.MULTIMODEL, "mm", spec={"models": [{"name": "a", "plain": {"modelId": "org/a"}}]}),
        found(objects.DEPLOYMENT, "mm-model-a", metadata=labels, spec={"replicas": 1}),
        found(objects.POD, "a-1", metadata=labels, spec={"schedulingGates": [{"name": names.RESIDENCY_GATE}]}),
    ]
    cache = Cache(source, None, relist_seconds=0.01)
    scaler = Scaler(cache, StuckCluster(None, cache, None, metrics), metrics)  # type: ignore[arg-type]
    scaled = Health(cache, [scaler.queue])
    tasks = [asyncio.create_task(run()) for run in (cache.run, scaler.run)]
    async with asyncio.timeout(5):
        await cache.synced()
        while not scaler.queue.longest_work_seconds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert scaled.live
    monkeypatch.setattr(health, "STUCK_SECONDS", 0.5)
    async with asyncio.timeout(5):
        while scaled.live:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_an_operator_lives_by_all_its_loops() -> None:
    made = Operator(None, settings.parse([], {}), Metrics())  # type: ignore[arg-type]
    (scaler,) = (duty for duty in made._duties if isinstance(duty, Scaler))
    (reconciling,) = (duty for duty in made._duties if isinstance(duty, WorkQueue))
    assert set(made._queues) == {reconciling, scaler.queue}


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
