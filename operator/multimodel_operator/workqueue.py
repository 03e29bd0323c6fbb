"""Runs one piece of work per key at a time: triggers of the same key melt together, failures come back later."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from multimodel_operator.errors import NotLeadingError, OutdatedError, RefusedError, UnavailableError
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.1
"""Triggers of a key within this time cause one piece of work: a change seldom comes alone."""
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0

_CAUSES = {
    RefusedError: "refused",
    OutdatedError: "outdated",
    UnavailableError: "unavailable",
    NotLeadingError: "not_leading",
}
"""The word for each kind of error; the first that fits counts."""


class WorkQueue:
    """Keys that wait for work, and a bounded number of workers."""

    def __init__(
        self, work: Callable[[Key], Awaitable[None]], workers: int, metrics: Metrics, name: str = "reconcile"
    ) -> None:
        self._work = work
        self._workers = workers
        self._seconds, self._errors = metrics.of_work(name)
        self._forget()

    def _forget(self) -> None:
        self._due: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: dict[Key, float] = {}
        """When work on a key is due."""
        self._running: dict[Key, float] = {}
        """Since when there has been work on a key."""
        self._again: set[Key] = set()
        self._failures: Counter[Key] = Counter()

    def __len__(self) -> int:
        return self._due.qsize()

    def add(self, key: Key, delay: float = GATHER_SECONDS) -> None:
        """Ask for work on `key` within `delay` seconds; does nothing if it waits for less already."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        if self._waiting.get(key, due + 1) > due:
            self._waiting[key] = due
            loop.call_at(due, self._come_due, key, due)

    def longest_work_seconds(self) -> float:
        """Return for how long the oldest piece of work has been running."""
        return self._age(self._running)

    def longest_wait_seconds(self) -> float:
        """Return for how long the oldest key has been waiting for a worker, beyond the time it was due."""
        return self._age(self._waiting)

    async def run(self) -> None:
        """Work until cancelled; what waits then is forgotten."""
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._workers):
                    workers.create_task(self._worker())
        finally:
            self._forget()

    def _age(self, since: dict[Key, float]) -> float:
        now = asyncio.get_running_loop().time()
        return max(0.0, now - min(since.values(), default=now))

    def _come_due(self, key: Key, due: float) -> None:
        if self._waiting.get(key) == due:  # else it came earlier, or was forgotten
            self._due.put_nowait(key)

    async def _worker(self) -> None:
        while True:
            key = await self._due.get()
            self._waiting.pop(key, None)
            if key in self._running:
                self._again.add(key)
                continue
            self._running[key] = asyncio.get_running_loop().time()
            try:
                with self._seconds.time():
                    await self._attempt(key)
            finally:
                del self._running[key]
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    async def _attempt(self, key: Key) -> None:
        try:
            await self._work(key)
        except (RefusedError, UnavailableError, NotLeadingError) as error:
            cause = next(word for kind, word in _CAUSES.items() if isinstance(error, kind))
            self._retry(key, cause, str(error))
        except Exception as error:  # one MultiModel's trouble must not stop the others
            logger.exception("%s: unexpected error", key)
            self._retry(key, "unexpected", repr(error))
        else:
            del self._failures[key]

    def _retry(self, key: Key, cause: str, problem: str) -> None:
        self._errors.labels(cause).inc()
        delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures[key], 10))
        delay *= random.uniform(0.5, 1.0)  # noqa: S311  (spreads retries, hides nothing)
        self._failures[key] += 1
        level = logging.INFO if cause == _CAUSES[OutdatedError] else logging.WARNING
        logger.log(level, "%s: %s; trying again in %.1f s", key, problem, delay)
        self.add(key, delay)
