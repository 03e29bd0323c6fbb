"""Looks at every MultiModel from time to time, whether or not anything seems to have changed."""

import asyncio

from multimodel_operator.cache import Cache
from multimodel_operator.workqueue import WorkQueue

OVERLOADED_SECONDS = 5.0
"""While something has been waiting for so long, nothing is looked at for no reason."""


class Resync:
    """Asks for work on each MultiModel once in a while: evenly spread, so that no edit waits behind all of them."""

    def __init__(self, cache: Cache, queue: WorkQueue, seconds: float) -> None:
        self._cache = cache
        self._queue = queue
        self._seconds = seconds

    async def run(self) -> None:
        """Look at everything once in so many seconds, until cancelled."""
        while True:
            busy = self._queue.longest_wait_seconds() > OVERLOADED_SECONDS
            keys = [] if busy else self._cache.keys()
            for number, key in enumerate(keys, start=1):
                self._queue.add(key, self._seconds * number / len(keys))
            await asyncio.sleep(self._seconds)
