"""The local copy of a cluster's objects heals from every fault of its watch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from multimodel_router.fleet import Changes
from multimodel_router.fleet.reflector import Reflector, SourceUnavailableError


def found(name: str, version: int, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version), "uid": name}} | more


class ScriptedSource:
    """Lists `items` and yields the events that the test sends; "end" ends a watch, an exception breaks it."""

    kind = "things"

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.away = False
        self.asked_in_vain = asyncio.Event()
        self.events: asyncio.Queue[Any] = asyncio.Queue()

    async def list(self) -> tuple[list[dict[str, Any]], str]:
        if self.away:
            self.asked_in_vain.set()
            raise SourceUnavailableError("away")
        return list(self.items), "1"

    @asynccontextmanager
    async def watch(self, _version: str, _seconds: int) -> AsyncIterator[AsyncIterator[Any]]:
        yield self._sent()

    async def _sent(self) -> AsyncIterator[Any]:
        while (event := await self.events.get()) != "end":
            if isinstance(event, Exception):
                raise event
            yield event


class Watched:
    def __init__(self) -> None:
        self.source = ScriptedSource()
        self.changes = Changes()
        self.reflector = Reflector(self.source, self.changes.notify)

    async def until(self, **versions: str) -> None:
        async with asyncio.timeout(5):
            while {n: o["metadata"]["resourceVersion"] for n, o in self.reflector.objects.items()} != versions:
                await self.changes.wait()


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    made.source.items = [found("a", 1), found("b", 1)]
    task = asyncio.create_task(made.reflector.run())
    await made.until(a="1", b="1")
    yield made
    task.cancel()
    await asyncio.wait((task,))


async def test_events_are_followed(watched: Watched) -> None:
    for event in [("ADDED", found("c", 2)), ("MODIFIED", found("a", 3)), ("DELETED", found("b", 4))]:
        watched.source.events.put_nowait(event)
    await watched.until(a="3", c="2")
    assert watched.reflector.synced


async def test_a_deletion_that_the_watch_missed_is_pruned_by_the_next_list(watched: Watched) -> None:
    watched.source.items = [found("a", 1)]
    watched.source.events.put_nowait("end")
    await watched.until(a="1")


@pytest.mark.parametrize("fault", [SourceUnavailableError("too old resource version"), KeyError("metadata")], ids=repr)
async def test_a_broken_watch_is_begun_anew(watched: Watched, fault: Exception) -> None:
    watched.source.items = [found("a", 5)]
    watched.source.events.put_nowait(fault)
    await watched.until(a="5")


async def test_what_was_last_seen_counts_while_the_api_server_is_away(watched: Watched) -> None:
    watched.source.away = True
    watched.source.events.put_nowait("end")
    await watched.source.asked_in_vain.wait()
    assert set(watched.reflector.objects) == {"a", "b"}
    watched.source.away = False
    watched.source.items = [found("b", 8)]
    await watched.until(b="8")


async def test_an_event_older_than_what_a_write_answered_is_ignored(watched: Watched) -> None:
    watched.reflector.put(found("a", 9, scaled=True))
    watched.source.events.put_nowait(("MODIFIED", found("a", 7)))
    watched.source.events.put_nowait(("ADDED", found("c", 10)))
    await watched.until(a="9", b="1", c="10")
    assert watched.reflector.objects["a"]["scaled"]


async def test_a_list_that_a_write_overtook_does_not_undo_it(watched: Watched) -> None:
    watched.reflector.put(found("a", 9))
    watched.source.items.append(found("c", 2))
    watched.source.events.put_nowait("end")
    await watched.until(a="9", b="1", c="2")
