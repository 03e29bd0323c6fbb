"""One piece of work per key at a time, triggers that melt together, failures that come back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from multimodel_operator import workqueue
from multimodel_operator.errors import UnavailableError
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key
from multimodel_operator.workqueue import WorkQueue

A, B = Key("team", "a"), Key("team", "b")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "FIRST_RETRY_SECONDS", 0.01)


@asynccontextmanager
async def running(work: Callable[[Key], Awaitable[None]], workers: int = 4) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(work, workers, Metrics())
    task = asyncio.create_task(queue.run())
    yield queue
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()


async def test_triggers_of_a_key_melt_together() -> None:
    done: asyncio.Queue[Key] = asyncio.Queue()
    async with running(done.put) as queue:
        for _ in range(50):
            queue.add(A)
        queue.add(B)
        assert {await done.get(), await done.get()} == {A, B}
        queue.add(B)
        assert await done.get() == B
        assert done.empty()


async def test_a_key_is_never_worked_on_twice_at_once_and_never_forgotten() -> None:
    at_once, most, runs = 0, 0, 0
    started, release, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(_: Key) -> None:
        nonlocal at_once, most, runs
        at_once, runs = at_once + 1, runs + 1
        most = max(most, at_once)
        started.set()
        await release.wait()
        at_once -= 1
        if runs == 2:
            finished.set()

    async with running(work) as queue:
        queue.add(A, 0)
        await asyncio.wait_for(started.wait(), 5)
        queue.add(A, 0)  # while the first is at work: it must run again afterwards
        await asyncio.sleep(0.02)  # time enough for a second worker to do wrong
        assert queue.longest_work_seconds() > 0
        release.set()
        await asyncio.wait_for(finished.wait(), 5)
    assert (runs, most) == (2, 1)


async def test_no_more_workers_than_allowed() -> None:
    at_once, most = 0, 0
    done: asyncio.Queue[Key] = asyncio.Queue()

    async def work(key: Key) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        await done.put(key)

    async with running(work, workers=3) as queue:
        for number in range(20):
            queue.add(Key("team", str(number)), 0)
        for _ in range(20):
            await asyncio.wait_for(done.get(), 5)
    assert most == 3


@pytest.mark.parametrize("error", [UnavailableError("away"), KeyError("a bug")])
async def test_what_fails_is_tried_again_and_stops_nobody(error: Exception) -> None:
    tries: list[Key] = []
    done: asyncio.Queue[Key] = asyncio.Queue()

    async def work(key: Key) -> None:
        tries.append(key)
        if key == A and tries.count(A) < 3:
            raise error
        await done.put(key)

    async with running(work, workers=1) as queue:
        queue.add(A)
        queue.add(B)
        assert {await asyncio.wait_for(done.get(), 5) for _ in range(2)} == {A, B}
    assert tries.count(A) == 3


async def test_an_edit_does_not_wait_for_the_next_try() -> None:
    tries: list[float] = []
    done = asyncio.Event()

    async def work(_: Key) -> None:
        tries.append(asyncio.get_running_loop().time())
        if len(tries) == 2:
            done.set()

    async with running(work) as queue:
        queue.add(A, 3600)
        queue.add(A, 0)
        queue.add(A, 60)  # later than what is due: changes nothing
        while not tries:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        queue.add(A, 0)
        await asyncio.wait_for(done.wait(), 5)


async def test_what_waits_is_counted_and_timed() -> None:
    release = asyncio.Event()

    async def work(_: Key) -> None:
        await release.wait()

    async with running(work, workers=1) as queue:
        queue.add(A, 0)
        queue.add(B, 0)
        queue.add(Key("team", "later"), 3600)
        async with asyncio.timeout(5):
            while not (queue.longest_wait_seconds() > 0.01 and queue.longest_work_seconds() > 0.01):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert len(queue) == 1, "one is worked on, and one is not due"
        release.set()


async def test_what_waited_is_forgotten_when_the_work_ends() -> None:
    done: list[Key] = []

    async def work(key: Key) -> None:
        done.append(key)

    queue = WorkQueue(work, 1, Metrics())
    for _ in range(2):
        task = asyncio.create_task(queue.run())
        queue.add(A, 0)
        async with asyncio.timeout(5):
            while A not in done:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        queue.add(B, 0.05)
        task.cancel()
        await asyncio.wait((task,))
        done.clear()
    task = asyncio.create_task(queue.run())
    queue.add(A, 0.1)
    async with asyncio.timeout(5):
        while not done:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert done == [A]
    task.cancel()
    await asyncio.wait((task,))


async def test_failures_are_counted_by_their_cause() -> None:
    metrics, tried = Metrics(), asyncio.Event()

    async def work(_: Key) -> None:
        tried.set()
        raise UnavailableError("away")

    queue = WorkQueue(work, 1, metrics)
    task = asyncio.create_task(queue.run())
    queue.add(A, 0)
    await asyncio.wait_for(tried.wait(), 5)
    task.cancel()
    await asyncio.wait((task,))
    assert b'multimodel_operator_reconcile_errors_total{cause="unavailable"} 1.0' in metrics.page()
    assert b"multimodel_operator_reconcile_seconds_count 1.0" in metrics.page()
