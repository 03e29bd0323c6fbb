"""Requests to a real API server: pages, watches, and what each failure means."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from multimodel_operator import api_server as requests
from multimodel_operator import objects
from multimodel_operator.api_server import ApiServer, connected, path_of
from multimodel_operator.errors import AbsentError, RefusedError, UnavailableError
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key, Kind
from multimodel_testbed.control_plane import ControlPlane
from multimodel_testbed.faults import FaultyWay, faulty_way

pytestmark = pytest.mark.control_plane

Namespace = Any
ACCOUNT = objects.SERVICE_ACCOUNT
UNKNOWN = Kind("nowhere.dev/v1", "Nothing", "nothings")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def api(api_server: ControlPlane, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    async with connected(metrics) as server:
        yield server


def make(namespace: Namespace, name: str) -> None:
    metadata = {"name": name, "labels": {"made-by": "test"}}
    namespace.create("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})


async def test_a_list_comes_in_pages(api: ApiServer, namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PAGE_OBJECTS", 2)
    for number in range(5):
        make(namespace, f"a-{number}")
    found, version = await api.list(ACCOUNT, namespace.name, "made-by=test")
    assert [item["metadata"]["name"] for item in found] == [f"a-{number}" for number in range(5)]
    assert {(item["apiVersion"], item["kind"]) for item in found} == {("v1", "ServiceAccount")}
    assert int(version) >= max(int(item["metadata"]["resourceVersion"]) for item in found)


async def test_a_watch_tells_what_came_after_the_list(api: ApiServer, namespace: Namespace, metrics: Metrics) -> None:
    make(namespace, "before")
    _, version = await api.list(ACCOUNT, namespace.name, "made-by=test")
    make(namespace, "after")
    namespace.delete("serviceaccounts", "before")
    async with api.watch(ACCOUNT, namespace.name, "made-by=test", version, 10) as events:
        seen = [(kind, found["metadata"]["name"]) async for kind, found in _first(2, events)]
    assert seen == [("ADDED", "after"), ("DELETED", "before")]
    assert b'multimodel_operator_api_requests_total{method="GET",status="200"} 2.0' in metrics.page()


async def _first(number: int, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    for _ in range(number):
        yield await anext(events)


async def test_what_is_not_there_is_absent(api: ApiServer, namespace: Namespace) -> None:
    assert await api.get(ACCOUNT, Key(namespace.name, "nobody")) is None
    with pytest.raises(AbsentError):
        await api.list(UNKNOWN, None, "")
    with pytest.raises(AbsentError):
        async with api.watch(UNKNOWN, None, "", "1", 1):
            pytest.fail("there is nothing to watch")


async def test_what_is_refused_is_told_in_the_words_of_the_api_server(api: ApiServer, namespace: Namespace) -> None:
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "Not A Name"}}
    with pytest.raises(RefusedError, match='Invalid value: "Not A Name"'):
        await api.call("POST", path_of(ACCOUNT, namespace.name), body=body)


async def test_no_answer_and_no_good_answer_are_unavailable(
    api_server: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metrics: Metrics
) -> None:
    with faulty_way(api_server, tmp_path) as way:
        monkeypatch.setenv("KUBECONFIG", str(way.kubeconfig))
        async with connected(metrics) as api:
            await _expect_unavailable(api, way, 503)
            await _expect_unavailable(api, way, 429)
            monkeypatch.setattr(requests, "REQUEST_SECONDS", 0.2)
            way.heal()
            way.hanging = True
            with pytest.raises(UnavailableError):
                await api.list(ACCOUNT, "default", "")
            way.heal()
            monkeypatch.setattr(requests, "REQUEST_SECONDS", 10)
            assert (await api.list(ACCOUNT, "default", ""))[0]
    with pytest.raises(UnavailableError):  # nobody listens any more
        async with connected(metrics) as api:
            await api.list(ACCOUNT, "default", "")
    assert b'multimodel_operator_api_requests_total{method="GET",status="503"} 1.0' in metrics.page()


async def _expect_unavailable(api: ApiServer, way: FaultyWay, status: int) -> None:
    way.status = status
    with pytest.raises(UnavailableError, match=f"{status} injected"):
        await api.list(ACCOUNT, "default", "")
