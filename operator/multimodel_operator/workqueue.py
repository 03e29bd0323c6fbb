"""Runs one piece of work per key at a time: triggers of the same key melt together, failures come back later."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from multimodel_operator.errors import OperatorError
from multimodel_operator.objects import Key

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.1
"""Triggers of a key within this time cause one piece of work: a change seldom comes alone."""
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0


class WorkQueue:
    """Keys that wait for work, and a bounded number of workers."""

    def __init__(self, work: Callable[[Key], Awaitable[None]], workers: int) -> None:
        self._work = work
        self._workers = workers
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._running: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._failures: Counter[Key] = Counter()

    def add(self, key: Key, delay: float = GATHER_SECONDS) -> None:
        """Ask for work on `key` soon; does nothing if it waits already."""
        if key not in self._waiting:
            self._waiting.add(key)
            asyncio.get_running_loop().call_later(delay, self._queue.put_nowait, key)

    def longest_seconds(self) -> float:
        """Return for how long the oldest piece of work has been running."""
        now = asyncio.get_running_loop().time()
        return max((now - since for since in self._running.values()), default=0.0)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._workers):
                workers.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._queue.get()
            self._waiting.discard(key)
            if key in self._running:
                self._again.add(key)
                continue
            self._running[key] = asyncio.get_running_loop().time()
            try:
                await self._attempt(key)
            finally:
                del self._running[key]
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    async def _attempt(self, key: Key) -> None:
        try:
            await self._work(key)
        except OperatorError as error:
            self._retry(key, str(error))
        except Exception as error:  # one MultiModel's trouble must not stop the others
            logger.exception("%s: unexpected error", key)
            self._retry(key, repr(error))
        else:
            del self._failures[key]

    def _retry(self, key: Key, problem: str) -> None:
        delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures[key], 10))
        delay *= random.uniform(0.5, 1.0)  # noqa: S311  (spreads retries, hides nothing)
        self._failures[key] += 1
        logger.warning("%s: %s; trying again in %.1f s", key, problem, delay)
        self.add(key, delay)
