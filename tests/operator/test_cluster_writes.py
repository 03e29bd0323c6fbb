"""What the operator writes, on a real API server: only while it leads, never over others, and read back at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from multimodel_operator import objects
from multimodel_operator.api_server import ApiServer, connected
from multimodel_operator.cache import Cache
from multimodel_operator.cluster import Cluster
from multimodel_operator.errors import AbsentError, NotLeadingError, OutdatedError, RefusedError
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key
from multimodel_operator.pace import Pace
from multimodel_operator.plan import Create, Delete, Update
from multimodel_testbed.control_plane import ControlPlane

SECONDS = 30.0

pytestmark = pytest.mark.control_plane

Namespace = Any


class Parts:
    """A cluster with a cache that does not watch: what it holds, writes have put there."""

    def __init__(self, api: ApiServer, metrics: Metrics) -> None:
        self.leads = True
        self.metrics = metrics
        self.cache = Cache(api, None, relist_seconds=60)
        self.cluster = Cluster(api, self.cache, Pace(1000, 1000), metrics, lambda: self.leads)


@pytest.fixture
async def parts(api_server: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Parts]:
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    metrics = Metrics()
    async with connected(metrics) as api:
        yield Parts(api, metrics)


def document(namespace: Namespace, kind: objects.Kind, name: str, **more: Any) -> dict[str, Any]:
    """Return an object whose label names a MultiModel that there is not; the garbage collector wants a true owner."""
    if "owner" not in namespace.names("serviceaccounts"):
        namespace.create(
            "serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "owner"}}
        )
    uid = namespace.get("serviceaccounts", "owner")["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": "owner", "uid": uid, "controller": True}
    labels = {"multimodel.dev/multimodel": "mm"}
    metadata = {"name": name, "namespace": namespace.name, "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **more}


def deployment(namespace: Namespace) -> dict[str, Any]:
    container = {"name": "c", "image": "i"}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}
    return document(namespace, objects.DEPLOYMENT, "mm-model-a", spec=spec)


async def test_a_write_is_read_back_at_once_and_counted(parts: Parts, namespace: Namespace) -> None:
    wanted = document(namespace, objects.SERVICE_ACCOUNT, "mm-router")
    made = await parts.cluster.take(Create(wanted, "does not exist"))
    key = Key(namespace.name, "mm-router")
    assert made is not None
    assert (parts.cache.child(objects.SERVICE_ACCOUNT, key) or {})["metadata"]["uid"] == made["metadata"]["uid"]
    uid = made["metadata"]["uid"]
    await parts.cluster.take(Delete(objects.SERVICE_ACCOUNT, *key, uid, "no longer in the spec"))
    assert parts.cache.child(objects.SERVICE_ACCOUNT, key) is None
    assert "mm-router" not in namespace.names("serviceaccounts")
    for verb in ("create", "delete"):
        line = f'multimodel_operator_writes_total{{kind="ServiceAccount",verb="{verb}"}} 1.0'
        assert line.encode() in parts.metrics.page()


async def test_what_exists_is_made_ours_only_if_it_is_ours(parts: Parts, namespace: Namespace) -> None:
    wanted = document(namespace, objects.SERVICE_ACCOUNT, "mm-router")
    first = await parts.cluster.take(Create(wanted, "does not exist"))
    again = await parts.cluster.take(Create(wanted, "not seen yet"))
    assert first is not None
    assert again is not None
    assert first["metadata"]["uid"] == again["metadata"]["uid"]

    namespace.create("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "theirs"}})
    before = namespace.get("serviceaccounts", "theirs")
    with pytest.raises(RefusedError, match="ServiceAccount theirs exists and belongs to something else"):
        await parts.cluster.take(Create(document(namespace, objects.SERVICE_ACCOUNT, "theirs"), "does not exist"))
    assert namespace.get("serviceaccounts", "theirs") == before
    assert b'multimodel_operator_refused_steps_total{kind="ServiceAccount"} 1.0' in parts.metrics.page()


async def test_nothing_is_written_without_leading(parts: Parts, namespace: Namespace) -> None:
    parts.leads = False
    with pytest.raises(NotLeadingError):
        await parts.cluster.take(Create(document(namespace, objects.SERVICE_ACCOUNT, "mm-router"), "does not exist"))
    assert "mm-router" not in namespace.names("serviceaccounts")


async def until_taken(parts: Parts, namespace: Namespace, update: Update) -> None:
    """Look and write until nobody has written in between, as the Deployment's own controller does now and then."""
    async with asyncio.timeout(SECONDS):
        while True:
            parts.cache.put(namespace.get("deployments", "mm-model-a"))
            with suppress(OutdatedError):
                await parts.cluster.take(update)
                return


async def test_what_another_leader_has_changed_since_is_not_undone(parts: Parts, namespace: Namespace) -> None:
    """As when a leader is stopped after it has looked at its Lease, and goes on when another has led for long."""
    wanted = deployment(namespace)
    made = await parts.cluster.take(Create(wanted, "does not exist"))
    assert made is not None
    namespace.patch(
        namespace.path("deployments", "mm-model-a"), {"spec": {"minReadySeconds": 5}}, "multimodel-operator"
    )
    old = {**wanted, "spec": {**wanted["spec"], "minReadySeconds": 1}}
    for keep_replicas in (None, 1):
        with pytest.raises(OutdatedError, match="Deployment mm-model-a has changed since it was last seen"):
            await parts.cluster.take(Update(old, "the spec or the operator changed", keep_replicas))
    assert namespace.get("deployments", "mm-model-a")["spec"]["minReadySeconds"] == 5
    await until_taken(parts, namespace, Update(old, "the spec or the operator changed"))
    assert namespace.get("deployments", "mm-model-a")["spec"]["minReadySeconds"] == 1


async def test_a_status_that_another_leader_has_written_since_stands(
    parts: Parts, namespace: Namespace, model: Any, operator: Any
) -> None:
    with operator.paused():
        seen = namespace.multimodel(model("a"))
        parts.cache.put(seen)
        key = Key(namespace.name, "mm")
        await parts.cluster.write_status(key, {"loaded": "0/1"})
        namespace.patch(f"{namespace.path('multimodels', 'mm')}/status", {"status": {"loaded": "1/1"}})
        with pytest.raises(OutdatedError):
            await parts.cluster.write_status(key, {"loaded": "0/1"})
        assert namespace.status()["loaded"] == "1/1"


async def test_a_scale_yields_to_whoever_scaled_since(parts: Parts, namespace: Namespace) -> None:
    with pytest.raises(AbsentError):
        await parts.cluster.scale(Key(namespace.name, "mm"), "a", 3, "somebody")
    await parts.cluster.take(Create(deployment(namespace), "does not exist"))
    namespace.scale("mm-model-a", 2)
    with pytest.raises(RefusedError):
        await parts.cluster.scale(Key(namespace.name, "mm"), "a", 0, "somebody")
    assert namespace.get("deployments", "mm-model-a")["spec"]["replicas"] == 2
