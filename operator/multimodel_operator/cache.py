"""All that the operator looks at, as last seen: a mirror of each kind, so that a look at a MultiModel costs nothing."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from multimodel_api import names
from multimodel_operator import objects
from multimodel_operator.mirror import Mirror, Source
from multimodel_operator.objects import Key, Kind, Object, Observed

OURS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY},{names.LABEL_INSTANCE}"
"""Selects on the API server, so that other people's objects never travel here."""

_EVERYTHING = ""


class Cache:
    """The MultiModels of a namespace, or of all for None, with their children and pods."""

    def __init__(self, source: Source, namespace: str | None, relist_seconds: float) -> None:
        self._followers: list[Callable[[Key], None]] = []

        def mirror(kind: Kind, labels: str) -> Mirror:
            return Mirror(source, kind, (namespace, labels), self._changed, relist_seconds)

        self._multimodels = mirror(objects.MULTIMODEL, _EVERYTHING)
        self._children = {kind.name: mirror(kind, OURS) for kind in objects.CHILD_KINDS}
        self._pods = mirror(objects.POD, OURS)

    @property
    def mirrors(self) -> Sequence[Mirror]:
        """The mirrors of all kinds."""
        return self._multimodels, *self._children.values(), self._pods

    def keys(self) -> list[Key]:
        """Return which MultiModels there are."""
        return self._multimodels.multimodels()

    def multimodels(self) -> list[Object]:
        """Return every MultiModel as last seen."""
        return [multimodel for key in self.keys() for multimodel in self._multimodels.of(key)]

    def observe(self, key: Key) -> Observed | None:
        """Return a MultiModel with its children and pods as last seen; None when there is no such MultiModel."""
        multimodel = self._multimodels.get(key)
        if multimodel is None:
            return None
        children = [child for mirror in self._children.values() for child in mirror.of(key)]
        return Observed(multimodel, tuple(children), tuple(self._pods.of(key)))

    def child(self, kind: Kind, key: Key) -> Object | None:
        """Return one child by its own name."""
        return self._children[kind.name].get(key)

    def version_of(self, document: Object) -> str | None:
        """Return the resource version in which the object that a document describes was last seen."""
        known = self._mirror_of(document).get(Key(document["metadata"]["namespace"], document["metadata"]["name"]))
        return None if known is None else str(known["metadata"]["resourceVersion"])

    def put(self, written: Object) -> None:
        """Take what a write has answered, so that the next look sees it; an older state than the known is ignored."""
        self._mirror_of(written).put(written)

    def end(self, deleted: Object) -> None:
        """Forget an object that was deleted."""
        self._mirror_of(deleted).end(deleted)

    @contextmanager
    def following(self, changed: Callable[[Key], None]) -> Iterator[None]:
        """Call `changed` with every MultiModel now, and then with those of which anything changes."""
        self._followers.append(changed)
        for key in self.keys():
            changed(key)
        try:
            yield
        finally:
            self._followers.remove(changed)

    async def run(self) -> None:
        """List and watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for mirror in self.mirrors:
                tasks.create_task(mirror.run())

    async def synced(self) -> None:
        """Return when every kind has been listed."""
        for mirror in self.mirrors:
            await mirror.synced.wait()

    def _mirror_of(self, found: Object) -> Mirror:
        match found["kind"]:
            case objects.MULTIMODEL.name:
                return self._multimodels
            case objects.POD.name:
                return self._pods
            case child:
                return self._children[child]

    def _changed(self, key: Key) -> None:
        for follower in self._followers:
            follower(key)
