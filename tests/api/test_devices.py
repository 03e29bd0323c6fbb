"""Which devices pods have and lack, as the API server shows them."""

from typing import Any

from multimodel_api.devices import devices_of, may_get_room, short_of

GPU = "nvidia.com/gpu"


def pending(message: str, reason: str = "Unschedulable") -> dict[str, Any]:
    scheduled = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"metadata": {"name": "new"}, "spec": {"containers": []}, "status": {"conditions": [scheduled]}}


def holding(*names: str, node: str | None = "node") -> dict[str, Any]:
    spec = {"containers": [{"resources": {"limits": dict.fromkeys(names, "1")}}], "nodeName": node}
    return {"metadata": {"name": "old"}, "spec": spec, "status": {}}


def test_the_scheduler_names_the_devices_that_are_short() -> None:
    words = "0/2 nodes are available: 1 Insufficient amd.com/gpu, 1 Insufficient nvidia.com/gpu. no new claims."
    assert short_of(pending(words)) == {"amd.com/gpu", GPU}
    assert short_of(pending("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.")) == frozenset()
    assert short_of(pending(words, reason="SchedulingGated")) == frozenset()


def test_a_pod_that_no_node_could_take_is_short_of_nothing_that_others_could_give() -> None:
    lacking = f"0/2 nodes are available: 2 Insufficient {GPU}. no new claims to deallocate, preemption: 0/2 nodes are"
    nowhere = pending(f"{lacking} available: 2 Preemption is not helpful for scheduling.")
    assert short_of(nowhere) == frozenset()
    assert not may_get_room([nowhere], [holding(GPU)])
    one_is_small = f"{lacking} available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful."
    assert short_of(pending(one_is_small)) == {GPU}


def test_a_pod_has_devices_once_it_has_a_node() -> None:
    assert devices_of(holding(GPU, "cpu")) == {GPU}
    assert devices_of(holding(GPU, node=None)) == frozenset()
    assert devices_of({"metadata": {}}) == frozenset()


def test_only_who_has_the_device_can_make_room() -> None:
    starved = pending(f"0/1 nodes are available: 1 Insufficient {GPU}.")
    assert may_get_room([starved], [holding("cpu"), holding(GPU)])
    assert not may_get_room([starved], [holding("cpu"), holding("amd.com/gpu")])
    assert not may_get_room([pending("1 node had an untolerated taint")], [holding(GPU)])
