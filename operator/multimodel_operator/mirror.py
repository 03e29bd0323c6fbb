"""A local copy of the objects of one kind: listed, watched, and listed afresh, so that a missed event heals.

While the API server is away the copy stays as it was last seen.
"""

import asyncio
import logging
import random
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Protocol

from multimodel_api import names
from multimodel_operator import objects
from multimodel_operator.errors import AbsentError, OperatorError
from multimodel_operator.objects import Key, Kind, Object, label_of, name_of

logger = logging.getLogger(__name__)

FIRST_BACK_OFF = 0.2
LAST_BACK_OFF = 5.0
OWNS_REPLICAS: Mapping[str, Any] = {"f:spec": {"f:replicas": {}}}
INSTALL_CRD = "`kubectl apply --server-side -f crds/`"


class Source(Protocol):
    """Where the objects of a kind come from."""

    async def list(self, kind: Kind, namespace: str | None, labels: str) -> tuple[Sequence[Object], str]:
        """Return the objects that a label selector finds, and the version of the list; raises OperatorError."""

    def watch(
        self, kind: Kind, namespace: str | None, labels: str, version: str, seconds: float
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Object]]]:
        """Yield what changes after `version`, for about as long; raises OperatorError."""


class Mirror:
    """The objects of one kind that belong to MultiModels, as last seen."""

    def __init__(
        self,
        source: Source,
        kind: Kind,
        scope: tuple[str | None, str],
        changed: Callable[[Key], None],
        relist_seconds: float,
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self._source = source
        self._namespace, self._labels = scope
        self._changed = changed
        self._relist_seconds = relist_seconds
        self._objects: dict[Key, Object] = {}
        self._of: dict[Key, dict[Key, Object]] = {}
        self._ended: dict[Key, int] = {}
        """At which version an object was deleted, since the last list."""
        self._failures = 0
        self._tried_at = asyncio.get_running_loop().time()
        self._listed_at = self._tried_at

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def reachable(self) -> bool:
        """Whether everything has been listed, and the last try succeeded."""
        return self.synced.is_set() and not self._failures

    @property
    def idle_seconds(self) -> float:
        """For how long there has been no try to list or watch that ended: beyond two rounds, the loop is stuck."""
        return asyncio.get_running_loop().time() - self._tried_at

    @property
    def age_seconds(self) -> float:
        """Time since everything was last listed."""
        return asyncio.get_running_loop().time() - self._listed_at

    def multimodels(self) -> list[Key]:
        """Return the MultiModels that objects belong to."""
        return list(self._of)

    def of(self, multimodel: Key) -> Sequence[Object]:
        """Return the objects of one MultiModel."""
        return list(self._of.get(multimodel, {}).values())

    def get(self, key: Key) -> Object | None:
        """Return one object."""
        return self._objects.get(key)

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                await self._watch(await self._list())
            except OperatorError as error:
                await self._back_off(error)
            except Exception as error:  # an operator whose watch has died would be blind, and look healthy
                logger.exception("%s: an object that cannot be understood", self.kind.plural)
                await self._back_off(error)
            self._tried_at = asyncio.get_running_loop().time()

    def put(self, found: Object) -> bool:
        """Take an object's newer state, from a watch or from the answer to a write; returns whether it is news."""
        key = _key(found)
        known = self._objects.get(key)
        if _version(found) <= max(self._ended.get(key, 0), _version(known) if known else 0):
            return False
        self._place(key, found)
        return True

    def end(self, gone: Object) -> None:
        """Forget an object that has been deleted, unless one of its name came later."""
        key = _key(gone)
        known = self._objects.get(key)
        if known is not None and known["metadata"]["uid"] == gone["metadata"]["uid"]:
            self._ended[key] = max(_version(gone), _version(known))
            self._remove(key)

    async def _list(self) -> str:
        """Make the copy like what is there, and return the version of the list."""
        items, version = await self._source.list(self.kind, self._namespace, self._labels)
        listed = {_key(item) for item in items}
        self._ended.clear()
        for key, known in list(self._objects.items()):
            if key not in listed and _version(known) <= int(version):  # else: made since, by a write of our own
                self._remove(key)
                self._changed(belongs_to(known))
        for item in items:
            self._take(item)
        self.synced.set()
        self._failures = 0
        self._listed_at = asyncio.get_running_loop().time()
        return version

    async def _watch(self, version: str) -> None:
        seconds = self._relist_seconds * random.uniform(0.8, 1.0)  # noqa: S311  (so that kinds take turns)
        scope = self.kind, self._namespace, self._labels
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._source.watch(*scope, version, seconds) as events:
                async for event, found in events:
                    if event == "DELETED":
                        self.end(found)
                        self._changed(belongs_to(found))
                    else:
                        self._take(found)
                await asyncio.sleep(FIRST_BACK_OFF)  # the API server ended it before its time, and may do so again

    def _take(self, found: Object) -> None:
        known = self._objects.get(_key(found))
        if self.put(found):
            for multimodel in {belongs_to(found), belongs_to(known or found)}:
                self._changed(multimodel)

    def _place(self, key: Key, found: Object) -> None:
        self._remove(key)
        slim: Object = _interned(slimmed(found))
        self._objects[key] = slim
        self._of.setdefault(belongs_to(slim), {})[key] = slim

    def _remove(self, key: Key) -> None:
        known = self._objects.pop(key, None)
        if known is None:
            return
        multimodel = belongs_to(known)
        del self._of[multimodel][key]
        if not self._of[multimodel]:
            del self._of[multimodel]

    async def _back_off(self, error: Exception) -> None:
        self._failures += 1
        log = logger.warning if self._failures == 1 else logger.debug
        hint = f"; is the CRD installed? {INSTALL_CRD}" if isinstance(error, AbsentError) else ""
        log("%s: %s%s; what was last seen still counts", self.kind.plural, error, hint)
        longest = min(LAST_BACK_OFF, FIRST_BACK_OFF * 2.0 ** min(self._failures, 10))
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311  (so that operators take turns)


def belongs_to(found: Object) -> Key:
    """Return the MultiModel that an object is, or that its label names."""
    name = name_of(found) if found["kind"] == objects.MULTIMODEL.name else label_of(found, names.LABEL_INSTANCE)
    return Key(found["metadata"]["namespace"], name or "")


def slimmed(found: Object) -> Object:
    """Return an object without the record of who owns which field, half of its size, but for who owns `replicas`."""
    metadata = found["metadata"]
    owners = [
        {"manager": entry.get("manager"), "fieldsV1": OWNS_REPLICAS}
        for entry in metadata.get("managedFields", ())
        if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
    ]
    return {**found, "metadata": {**metadata, "managedFields": owners}}


def _interned(value: Any) -> Any:
    """Return a document that shares its strings with all others: most are in every object, and that halves its size."""
    if isinstance(value, dict):
        return {sys.intern(key): _interned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_interned(item) for item in value]
    return sys.intern(value) if isinstance(value, str) else value


def _key(found: Object) -> Key:
    return Key(found["metadata"]["namespace"], name_of(found))


def _version(found: Object) -> int:
    """Return an object's resource version, which the API server counts upwards."""
    return int(found["metadata"]["resourceVersion"])
