"""What Deployments, EndpointSlices and Pods say about a model."""

from typing import Any

import pytest

from multimodel_api.manifest import MultiModelSpec
from multimodel_api.progress import LoadPhase, LoadProgress
from multimodel_api.state import ModelState
from multimodel_router.fleet import Endpoint
from multimodel_router.fleet.objects import as_scaled, loading_endpoint, model_view, ready_endpoints

PLAIN, SPEECH = MultiModelSpec.model_validate(
    {"models": [{"name": "a", "plain": {"modelId": "a"}}, {"name": "b", "speech": {"modelId": "b"}}]}
).models
DEPLOYMENT = {"metadata": {"name": "d", "resourceVersion": "7"}, "spec": {"replicas": 1, "paused": False}}
PROGRESS = LoadProgress(phase=LoadPhase.READING_WEIGHTS)


def slice_of(*conditions: dict[str, bool], **more: Any) -> dict[str, Any]:
    endpoints = [{"addresses": [f"192.0.2.{n}"], "conditions": c} for n, c in enumerate(conditions)]
    return {"addressType": "IPv4", "ports": [{"port": 8000}], "endpoints": endpoints} | more


def test_only_endpoints_that_are_ready_and_stay_count() -> None:
    found = slice_of({"ready": True}, {"ready": False}, {"ready": True, "terminating": True}, {})
    assert list(ready_endpoints(found)) == [Endpoint("192.0.2.0", 8000), Endpoint("192.0.2.3", 8000)]


@pytest.mark.parametrize(
    "more",
    [{"ports": None}, {"ports": [{"name": "all"}]}, {"endpoints": None}, {"endpoints": [{}]}, {"addressType": "FQDN"}],
    ids=str,
)
def test_slices_that_name_nothing_to_connect_to(more: dict[str, Any]) -> None:
    assert list(ready_endpoints(slice_of({"ready": True}, **more))) == []


def test_views() -> None:
    ready = slice_of({"ready": True})
    loaded = model_view(PLAIN, DEPLOYMENT, [ready, ready], [], PROGRESS)
    assert (loaded.state, loaded.ready, loaded.progress) == (ModelState.LOADED, (Endpoint("192.0.2.0", 8000),), None)
    loading = model_view(PLAIN, DEPLOYMENT, [slice_of({"ready": False})], [], PROGRESS)
    assert (loading.state, loading.progress) == (ModelState.RELOADING, PROGRESS)
    assert model_view(PLAIN, None, [], [], None).state is ModelState.NO_LOADER_CONFIG
    unsupported = model_view(SPEECH, None, [], [], None)
    assert unsupported.state is ModelState.NO_LOADER_CONFIG
    assert unsupported.failure is not None
    assert "kind 'speech'" in unsupported.failure.message


def test_a_writer_reads_its_own_write() -> None:
    scaled = as_scaled(DEPLOYMENT, {"metadata": {"resourceVersion": "9"}, "spec": {}})
    assert scaled == {"metadata": {"name": "d", "resourceVersion": "9"}, "spec": {"replicas": 0, "paused": False}}


def test_progress_is_asked_of_a_pod_with_an_address() -> None:
    going = {"metadata": {"deletionTimestamp": "x"}, "status": {"podIP": "192.0.2.1"}}
    assert loading_endpoint([{"metadata": {}}, going]) is None
    assert loading_endpoint([going, {"metadata": {}, "status": {"podIP": "192.0.2.2"}}]) == Endpoint("192.0.2.2", 8000)


def _unplaced(reason: str, message: str = "") -> dict[str, Any]:
    scheduled = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"metadata": {"name": "new"}, "spec": {"containers": []}, "status": {"conditions": [scheduled]}}


def test_a_gated_pod_waits_for_another_model_to_make_room() -> None:
    view = model_view(PLAIN, DEPLOYMENT, [], [_unplaced("SchedulingGated")], None)
    assert (view.state, view.waits_for) == (ModelState.RELOADING, "waiting for another model to make room")


def test_a_model_without_a_device_that_another_may_give_up_waits() -> None:
    limits = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}], "nodeName": "node"}
    neighbour = {"metadata": {"name": "old"}, "spec": limits, "status": {}}
    starved = _unplaced("Unschedulable", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    assert model_view(PLAIN, DEPLOYMENT, [], [starved], None, [starved, neighbour]).state is ModelState.RELOADING
    assert model_view(PLAIN, DEPLOYMENT, [], [starved], None, [starved]).state is ModelState.INTERNAL_ERROR
