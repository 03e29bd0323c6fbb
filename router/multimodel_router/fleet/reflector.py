"""A local copy of one kind of object: listed, watched, and listed afresh so that a missed event heals in a minute.

While the API server is away the copy stays as it was last seen.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

logger = logging.getLogger(__name__)

RESYNC_SECONDS = 50
"""The longest a watch goes on before everything is listed afresh."""

MAX_BACK_OFF = 5.0

Object = dict[str, Any]
Event = tuple[str, Object]


class SourceUnavailableError(Exception):
    """The API server could not be reached, or refused; the message says which."""


class Source(Protocol):
    """Where objects of one kind come from."""

    kind: str

    async def list(self) -> tuple[list[Object], str]:
        """Return all objects and the version of the list; raises SourceUnavailableError."""

    def watch(self, version: str, seconds: int) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Yield what changes after `version`, for as long; raises SourceUnavailableError."""


class Reflector:
    """Keeps `objects`, by name, like those of a source."""

    def __init__(self, source: Source, changed: Callable[[], None]) -> None:
        self.objects: dict[str, Object] = {}
        self.synced = False
        self._source = source
        self._changed = changed
        self._version = ""
        self._failures = 0

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                await self._list()
                await self._watch()
            except SourceUnavailableError as unavailable:
                self._failures += 1
                log = logger.warning if self._failures == 1 else logger.debug
                log("%s: %s; what was last seen still counts", self._source.kind, unavailable)
                await asyncio.sleep(self._back_off())
            except Exception:  # a router whose watch has died would be blind, and look healthy
                self._failures += 1
                logger.exception("%s: an object that cannot be understood", self._source.kind)
                await asyncio.sleep(self._back_off())

    def put(self, found: Object) -> None:
        """Take an object's newer state, from a watch or from the answer to a write; an older one is ignored."""
        name = found["metadata"]["name"]
        known = self.objects.get(name)
        if known is not None and _version(found) < _version(known):
            return
        self.objects[name] = found
        self._changed()

    async def _list(self) -> None:
        items, self._version = await self._source.list()
        self._failures = 0
        self.objects = {item["metadata"]["name"]: self._newest(item) for item in items}
        self.synced = True
        self._changed()

    async def _watch(self) -> None:
        async with self._source.watch(self._version, RESYNC_SECONDS) as events:
            async for kind, found in events:
                if kind == "DELETED":
                    self.objects.pop(found["metadata"]["name"], None)
                    self._changed()
                else:
                    self.put(found)

    def _newest(self, listed: Object) -> Object:
        """Return the listed object, or what a write that overtook the list has answered."""
        known = self.objects.get(listed["metadata"]["name"], listed)
        same = known["metadata"].get("uid") == listed["metadata"].get("uid")
        return known if same and _version(known) > _version(listed) else listed

    def _back_off(self) -> float:
        return min(MAX_BACK_OFF, 0.1 * 2.0 ** min(self._failures, 10)) * random.uniform(0.8, 1.2)  # noqa: S311  (jitter)


def _version(found: Object) -> int:
    """Return an object's resource version, which the API server counts upwards."""
    return int(found["metadata"]["resourceVersion"])
