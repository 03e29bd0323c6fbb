"""Looking at everything, evenly spread: each MultiModel once in a while, and an edit never behind all of them."""

import asyncio
from typing import Any

import pytest

from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key
from multimodel_operator.resync import Resync
from multimodel_operator.workqueue import WorkQueue

KEYS = [Key("team", str(number)) for number in range(20)]


class ManyMultiModels:
    def keys(self) -> list[Key]:
        return KEYS


async def test_an_overload_is_not_made_worse() -> None:
    class Overloaded:
        def longest_wait_seconds(self) -> float:
            return 60.0

        def add(self, *_: Any) -> None:
            pytest.fail("there is enough to do")

    cache: Any = ManyMultiModels()
    queue: Any = Overloaded()
    task = asyncio.create_task(Resync(cache, queue, 0.001).run())
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()


async def test_each_is_looked_at_again_and_again_and_an_edit_comes_first() -> None:
    done: list[Key] = []
    all_seen = asyncio.Event()

    async def work(key: Key) -> None:
        done.append(key)
        if min(done.count(each) for each in KEYS) == 2:
            all_seen.set()

    queue = WorkQueue(work, 1, Metrics())
    cache: Any = ManyMultiModels()
    tasks = [asyncio.create_task(duty.run()) for duty in (queue, Resync(cache, queue, 0.5))]
    async with asyncio.timeout(10):
        while len(done) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        queue.add(KEYS[-1], 0)
        await asyncio.sleep(0)
        edited_at = len(done)
        await all_seen.wait()
    assert KEYS[-1] in done[edited_at : edited_at + 3]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
