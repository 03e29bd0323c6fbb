"""When every call of a model fails, everybody can see it, until one does not."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

from multimodel_router import outcomes
from multimodel_router.fleet import ModelView
from multimodel_router.outcomes import LONG_SECONDS, MANY, Outcomes
from multimodel_testbed.calls import call

MATH = {"name": "abacus", "alias": "math", "min": 1}

Start = Callable[..., Awaitable[Any]]


class Told:
    """A fleet that is told whether calls fail; `others` is what it learns from other routers."""

    def __init__(self) -> None:
        self.records: list[str | None] = []
        self.failing = False

    def view(self, _model: str) -> ModelView:
        return ModelView(desired=1, calls_failing=self.failing)

    async def record_calls(self, _model: str, failing_since: str | None) -> None:
        self.records.append(failing_since)
        self.failing = failing_since is not None


class Calls:
    def __init__(self) -> None:
        self.told = Told()
        self.outcomes = Outcomes(self.told)

    async def end(self, *times: float, succeeded: bool = False) -> list[str | None]:
        """Let calls end at these times; returns what has been told so far."""
        for time in times:
            self.outcomes.note("m", succeeded=succeeded, now=time)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return self.told.records


@pytest.fixture
async def calls() -> Calls:
    return Calls()


async def test_many_failures_over_a_while_are_told_once_and_since_the_first(calls: Calls) -> None:
    assert await calls.end(100, 101, 102, 103, 104, 100 + LONG_SECONDS - 0.1) == []
    assert await calls.end(100 + LONG_SECONDS, 120, 130) == ["1970-01-01T00:01:40+00:00"]


async def test_few_failures_are_no_alarm_however_long_they_take(calls: Calls) -> None:
    assert await calls.end(*(1000.0 * n for n in range(MANY - 1))) == []


async def test_a_call_in_between_that_succeeds_begins_the_count_anew(calls: Calls) -> None:
    await calls.end(100, 101, 102, 103)
    await calls.end(104, succeeded=True)
    assert await calls.end(111, 112, 113, 114) == []


async def test_the_first_success_ends_it(calls: Calls) -> None:
    await calls.end(100, 101, 102, 103, 120)
    assert (await calls.end(121, 122, succeeded=True))[1:] == [None]


async def test_a_success_here_ends_what_another_router_has_told(calls: Calls) -> None:
    calls.told.failing = True
    assert await calls.end(100, succeeded=True) == [None]
    assert await calls.end(101, 102, 103, 104, 105) == [None]


async def fail_often(router: Any) -> None:
    broken = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "standin": {"fault": "break_mid"}}
    for _ in range(MANY):
        assert b"model_server_broke" in (await call([router.url], broken)).body


async def succeed(router: Any) -> None:
    assert (await call([router.url], {"messages": [{"role": "user", "content": "hi"}]})).good


async def test_a_gauge_counts_the_failures_in_a_row(start_on_processes: Start) -> None:
    router = await start_on_processes([MATH])
    gauge = router.metrics.failures_in_a_row.labels("abacus")._value
    await succeed(router)
    assert gauge.get() == 0
    await fail_often(router)
    assert gauge.get() == MANY
    unknown = await call([router.url], {"model": "nobody", "messages": []})
    assert (unknown.status, gauge.get()) == (404, MANY)
    await succeed(router)
    assert gauge.get() == 0


@pytest.mark.control_plane
async def test_the_multimodels_status_tells_it_and_any_router_ends_it(
    cluster: Any, start_on_kubernetes: Start, join: Start, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "LONG_SECONDS", 0.0)
    here = await start_on_kubernetes([MATH, {"name": "scribe"}])
    there = await join(models=2)

    async def since() -> str | None:
        told: str | None = (await cluster.models_status())["abacus"].get("callsFailingSince")
        return told

    async def is_told() -> bool:
        return await since() is not None

    await here.until("math", "loaded")
    await fail_often(here)
    await until(is_told, True)
    assert datetime.fromisoformat(str(await since())).tzinfo is not None
    assert "callsFailingSince" not in json.dumps((await cluster.models_status())["scribe"])

    async def is_known_there() -> bool:
        return bool(there.fleet.view("abacus").calls_failing)

    await until(is_known_there, True)
    await succeed(there)
    await until(is_told, False)
    assert (await cluster.models_status())["abacus"]["id"] == "math", "nothing else is taken away"
