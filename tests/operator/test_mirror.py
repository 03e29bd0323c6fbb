"""The operator's copy of one kind: it follows, prunes, keeps its own writes, and outlives every fault of a watch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from multimodel_operator import mirror, objects
from multimodel_operator.errors import UnavailableError
from multimodel_operator.mirror import Mirror
from multimodel_operator.objects import Key

RELIST_SECONDS = 60.0
A, B = Key("team", "a"), Key("team", "b")


def service(name: str, version: int, *, of: str = "mm", uid: str | None = None) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "team",
        "uid": uid or name,
        "resourceVersion": str(version),
        "labels": {"multimodel.dev/multimodel": of},
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata}


class ScriptedSource:
    """Lists `items` at `version`, and yields the events that the test sends; an exception breaks the watch."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.version = 1
        self.away = False
        self.lists = 0
        self.events: asyncio.Queue[Any] = asyncio.Queue()

    async def list(self, *_: Any) -> tuple[list[dict[str, Any]], str]:
        self.lists += 1
        if self.away:
            raise UnavailableError("away")
        return list(self.items), str(self.version)

    @asynccontextmanager
    async def watch(self, *_: Any) -> AsyncIterator[AsyncIterator[Any]]:
        async def sent() -> AsyncIterator[Any]:
            while True:
                event = await self.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event

        yield sent()

    def relist(self, *items: dict[str, Any], version: int) -> None:
        """Break the watch, and list this afterwards."""
        self.items, self.version = list(items), version
        self.events.put_nowait(UnavailableError("too old resource version"))


class Watched:
    def __init__(self) -> None:
        self.source = ScriptedSource()
        self.changed: list[Key] = []
        self.news = asyncio.Event()
        self.mirror = Mirror(self.source, objects.SERVICE, ("team", ""), self._note, RELIST_SECONDS)

    def _note(self, key: Key) -> None:
        self.changed.append(key)
        self.news.set()

    @property
    def versions(self) -> dict[str, str]:
        found = (self.mirror.get(key) for key in (A, B, Key("team", "c")))
        return {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in found if item}

    async def until(self, **versions: str) -> None:
        async with asyncio.timeout(5):
            while self.versions != versions:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(mirror, "FIRST_BACK_OFF", 0.001)
    made = Watched()
    made.source.items = [service("a", 1), service("b", 1)]
    task = asyncio.create_task(made.mirror.run())
    await made.until(a="1", b="1")
    yield made
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()


async def test_events_are_followed_and_told(watched: Watched) -> None:
    watched.changed.clear()
    for event in [
        ("ADDED", service("c", 2, of="other")),
        ("MODIFIED", service("a", 3)),
        ("DELETED", service("b", 4)),
    ]:
        watched.source.events.put_nowait(event)
    await watched.until(a="3", c="2")
    mine, other = Key("team", "mm"), Key("team", "other")
    assert watched.changed == [other, mine, mine]
    assert [item["metadata"]["name"] for item in watched.mirror.of(mine)] == ["a"]
    assert set(watched.mirror.multimodels()) == {mine, other}


async def test_a_deletion_that_the_watch_missed_is_pruned_and_told(watched: Watched) -> None:
    watched.changed.clear()
    watched.source.relist(service("a", 1), version=9)
    await watched.until(a="1")
    assert watched.changed == [Key("team", "mm")], "what has not changed is no news"


async def test_it_lists_afresh_though_the_watch_goes_on(watched: Watched) -> None:
    watched.mirror._relist_seconds = 0.01
    watched.source.relist(service("a", 1), service("b", 2), version=2)
    await watched.until(a="1", b="2")
    watched.source.items = [service("a", 1), service("b", 5)]  # and the watch says nothing
    await watched.until(a="1", b="5")


async def test_a_child_that_changes_hands_is_news_for_both(watched: Watched) -> None:
    watched.changed.clear()
    watched.source.events.put_nowait(("MODIFIED", service("a", 3, of="other")))
    await watched.until(a="3", b="1")
    assert set(watched.changed) == {Key("team", "mm"), Key("team", "other")}
    assert [item["metadata"]["name"] for item in watched.mirror.of(Key("team", "mm"))] == ["b"]


async def test_an_older_state_never_replaces_what_a_write_answered(watched: Watched) -> None:
    assert watched.mirror.put(service("a", 9))
    assert not watched.mirror.put(service("a", 9)), "a second time is no news"
    watched.source.events.put_nowait(("MODIFIED", service("a", 7)))
    watched.source.events.put_nowait(("ADDED", service("c", 10)))
    await watched.until(a="9", b="1", c="10")
    watched.source.relist(service("a", 8), service("b", 2), version=8)  # a list that the writes overtook
    await watched.until(a="9", b="2", c="10")


async def test_an_answer_that_comes_after_the_deletion_brings_nothing_back(watched: Watched) -> None:
    watched.source.events.put_nowait(("DELETED", service("a", 12)))
    await watched.until(b="1")
    assert not watched.mirror.put(service("a", 11))
    assert watched.mirror.put(service("a", 13, uid="new"))


async def test_the_end_of_an_object_is_not_that_of_its_successor(watched: Watched) -> None:
    watched.mirror.put(service("a", 5, uid="new"))
    watched.mirror.end(service("a", 6))
    assert watched.versions["a"] == "5"


@pytest.mark.parametrize("fault", [UnavailableError("gone"), KeyError("metadata")], ids=repr)
async def test_a_broken_watch_is_begun_anew(
    watched: Watched, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    watched.source.items = [service("a", 5)]
    watched.source.version = 5
    watched.source.events.put_nowait(fault)
    await watched.until(a="5")
    assert watched.mirror.reachable


async def test_what_was_last_seen_counts_while_the_api_server_is_away(watched: Watched) -> None:
    watched.source.away = True
    watched.source.relist(service("b", 8), version=8)
    async with asyncio.timeout(5):
        while watched.source.lists < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert set(watched.versions) == {"a", "b"}
    assert not watched.mirror.reachable
    assert watched.mirror.idle_seconds < 5, "a round that failed is a round"
    watched.source.away = False
    await watched.until(b="8")
    assert watched.mirror.reachable


def test_of_the_owners_of_fields_only_those_of_replicas_are_remembered() -> None:
    live = service("a", 1)
    live["metadata"]["managedFields"] = [
        {"manager": "one", "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {"f:x": {}}}}},
        {"manager": "two", "operation": "Update", "fieldsV1": {"f:status": {"f:replicas": {}}}},
        {"manager": "three", "operation": "Apply"},
    ]
    slim = mirror.slimmed(live)
    assert slim["metadata"]["managedFields"] == [{"manager": "one", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]
    assert len(live["metadata"]["managedFields"]) == 3, "what came is not changed"
