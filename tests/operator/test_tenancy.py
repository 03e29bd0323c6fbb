"""What Deployments and pods say of a model's place."""

from datetime import UTC, datetime
from typing import Any

import pytest

from multimodel_api import names
from multimodel_api.manifest import MultiModelSpec
from multimodel_operator.load_samples import Counted, RouterPod, Sample
from multimodel_operator.objects import Observed
from multimodel_operator.residency import Tenant
from multimodel_operator.tenancy import LATE_SECONDS, idle_since, router_pods, tenants, with_loads

NOW = 1_700_000_000.0
GATE = {"schedulingGates": [{"name": names.RESIDENCY_GATE}]}
SPEC = MultiModelSpec.model_validate({"models": [{"name": "a", "plain": {"modelId": "org/a"}}]})


def at(seconds: float) -> str:
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat().replace("+00:00", "Z")


def deployment(model: str, replicas: int, **metadata: Any) -> dict[str, Any]:
    name = names.model_object_name("mm", model)
    metadata = {"name": name, "labels": {names.LABEL_MODEL: model}, **metadata}
    return {"kind": "Deployment", "metadata": metadata, "spec": {"replicas": replicas}}


def pod(name: str, spec: dict[str, Any], *, created: float = -100, ending: float | None = None, **status: Any) -> Any:
    labels = {names.LABEL_MODEL: name.partition("-")[0]}
    metadata = {"name": name, "creationTimestamp": at(created), "labels": labels}
    if ending is not None:
        metadata["deletionTimestamp"] = at(ending)
    return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def condition(kind: str, status: str, since: float = 0, **more: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, "lastTransitionTime": at(since), **more}]}


def only(*objects: dict[str, Any]) -> Tenant:
    children = tuple(found for found in objects if found["kind"] == "Deployment")
    pods = tuple(found for found in objects if found["kind"] == "Pod")
    (tenant,) = tenants(Observed({"metadata": {"name": "mm", "namespace": "n"}}, children, pods), NOW)
    return tenant


def test_a_gated_pod_waits_since_it_was_made() -> None:
    tenant = only(deployment("a", 1), pod("a-1", GATE, created=-7))
    assert (tenant.gated, tenant.asked_at, tenant.settled, tenant.waits_for_place) == (("a-1",), NOW - 7, False, True)


def test_another_gate_is_not_ours() -> None:
    tenant = only(deployment("a", 1), pod("a-1", {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}))
    assert (tenant.gated, tenant.free) == ((), ("a-1",))


def test_a_ready_pod_holds_a_place_since_it_got_ready() -> None:
    ready = pod("a-1", {"nodeName": "n"}, **condition("Ready", "True", -50))
    tenant = only(deployment("a", 2), ready, pod("a-2", GATE))
    assert (tenant.free, tenant.gated, tenant.ready_since) == (("a-1",), ("a-2",), NOW - 50)
    assert not tenant.waits_for_place


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_pod_on_its_way_out_holds_its_place(replicas: int) -> None:
    tenant = only(deployment("a", replicas), pod("a-1", {"nodeName": "n"}, ending=600, **condition("Ready", "True")))
    assert (tenant.leaving, tenant.settled, tenant.ready_since) == (True, False, None)


def test_a_pod_that_nobody_has_ended_yet_leaves_with_its_deployments_replicas() -> None:
    assert only(deployment("a", 0), pod("a-1", {"nodeName": "n"})).leaving
    assert only(deployment("a", 1, deletionTimestamp=at(0)), pod("a-1", {"nodeName": "n"})).leaving
    assert only(pod("a-1", {"nodeName": "n"})).leaving


def test_a_pod_that_ended_or_should_have_long_ago_holds_nothing() -> None:
    assert not only(deployment("a", 1), pod("a-1", {"nodeName": "n"}, phase="Failed")).holds_place
    lost = pod("a-1", {"nodeName": "n"}, ending=-LATE_SECONDS)
    assert not only(deployment("a", 1), lost).holds_place
    assert only(deployment("a", 1), pod("a-1", {"nodeName": "n"}, ending=1 - LATE_SECONDS)).holds_place


def test_the_scheduler_says_which_device_is_short() -> None:
    words = "0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu. preemption: 0/3 nodes help."
    pending = pod("a-1", {}, created=-9, **condition("PodScheduled", "False", reason="Unschedulable", message=words))
    tenant = only(deployment("a", 1), pending)
    assert (tenant.starved_of, tenant.asked_at, tenant.failing) == ({"nvidia.com/gpu"}, NOW - 9, True)
    serves = pod("a-2", {"nodeName": "n"}, **condition("Ready", "True"))
    assert only(deployment("a", 2), pending, serves).starved_of == frozenset()


def test_a_gated_pod_starves_of_nothing_and_fails_in_nothing() -> None:
    gated = pod("a-1", GATE, **condition("PodScheduled", "False", reason="SchedulingGated"))
    tenant = only(deployment("a", 1), gated)
    assert (tenant.starved_of, tenant.failing) == (frozenset(), False)


def test_a_placed_pod_has_the_devices_that_it_limits() -> None:
    limits = {"containers": [{"resources": {"limits": {"cpu": "1", "nvidia.com/gpu": "1"}}}]}
    assert only(deployment("a", 1), pod("a-1", limits | {"nodeName": "n"})).devices == {"nvidia.com/gpu"}
    assert only(deployment("a", 1), pod("a-1", limits)).devices == frozenset()


def test_a_model_in_use_was_used_now() -> None:
    found = [Tenant("a", ready_since=10), Tenant("b", ready_since=50), Tenant("c")]
    sample = Sample(99, {"a": Counted(1, 20), "b": Counted(0, 20)}, began=30, heard=1)
    used = with_loads(found, sample)
    assert [tenant.last_used for tenant in used] == [99, 20, 30]
    assert [tenant.in_flight for tenant in used] == [1, 0, 0]
    assert [idle_since(tenant) for tenant in used] == [99, 50, None]


def router(name: str, ip: str | None = "10.0.0.1", **fields: Any) -> dict[str, Any]:
    made = pod(name, {"nodeName": "n"}, ending=fields.pop("ending", None), **({"podIP": ip} if ip else {}), **fields)
    made["metadata"]["labels"] = {names.LABEL_COMPONENT: "router"}
    return made


def asked(*pods: dict[str, Any], spec: MultiModelSpec = SPEC) -> list[RouterPod]:
    return router_pods(Observed({}, (), pods), spec, NOW)


def test_every_router_that_may_have_requests_is_asked() -> None:
    running = {"containerStatuses": [{"state": {"running": {"startedAt": at(-20)}}}]}
    ready = router("ready", **condition("Ready", "True"), **running)
    assert asked(ready) == [RouterPod("ready", "http://10.0.0.1:1234/metrics", NOW - 20, must_answer=True)]
    assert [found.must_answer for found in asked(router("ending", ending=600))] == [True]
    assert [found.must_answer for found in asked(router("starting", startTime=at(-3)))] == [False]
    assert asked(router("lost", ending=-LATE_SECONDS)) == asked(router("ended", phase="Failed")) == []
    assert asked(router("unplaced", ip=None)) == asked(pod("a-1", {}, podIP="10.0.0.2")) == []


def test_a_router_is_asked_in_its_own_protocol_and_address_family() -> None:
    secured = SPEC.model_copy(update={"router": SPEC.router.model_validate({"tls": {"secretName": "tls"}})})
    assert [found.url for found in asked(router("six", ip="fd00::1"), spec=secured)] == [
        "https://[fd00::1]:1234/metrics"
    ]
