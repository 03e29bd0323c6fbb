"""Replicas follow the load and models take turns on a real node, and no request fails."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ABACUS = {"modelId": "examples/models/abacus"}
REACTION_SECONDS = 15
IDLE_SECONDS = 10
IDLE_TOLERANCE = 10
MOST = 3
DEVICE = "example.com/accelerator"
MORE = 5
"""Answers that show that a model serves."""


@dataclass
class Elastic:
    """A model that has grown under a rush, and is asked for one replica's worth since."""

    rush_failed: list[str]
    reacted_after: float
    calm: Any


def replicas(cluster: Any) -> int:
    return int(cluster.get("deployment", "elastic-model-elastic")["spec"]["replicas"])


@pytest.fixture(scope="module")
def elastic(cluster: Any, wait_for: Any) -> Iterator[Elastic]:
    """What falls only after a while begins early, beside the other tests."""
    scaling = {"minReplicas": 1, "maxReplicas": MOST, "targetRequests": 2, "idleSeconds": IDLE_SECONDS}
    model = {"name": "elastic", "plain": ABACUS, "scaling": scaling}
    with ExitStack() as stack:
        cluster.apply("elastic", [model], router={"replicas": 1})
        stack.callback(cluster.node.kubectl, "delete", "mm", "elastic", "--wait=false")
        wait_for("the model is loaded", lambda: cluster.is_settled("elastic"))
        with cluster.traffic("elastic", "default", callers=MOST, pause=0.0) as rush:
            began = time.monotonic()
            wait_for("all replicas are wanted", lambda: replicas(cluster) == MOST)
            reacted_after = time.monotonic() - began
            wait_for("all replicas serve", lambda: cluster.model("elastic", "elastic")["readyReplicas"] == MOST)
        calm = stack.enter_context(cluster.traffic("elastic", "default", pause=0.5))
        yield Elastic(rush.failed, reacted_after, calm)


def test_replicas_rise_with_the_load(elastic: Elastic) -> None:
    assert elastic.reacted_after <= REACTION_SECONDS
    assert elastic.rush_failed == []


def test_models_take_turns_where_one_may_be_loaded(cluster: Any, elastic: Elastic, wait_for: Any) -> None:
    del elastic  # its replicas fall meanwhile
    models = [{"name": name, "alias": name, "plain": ABACUS} for name in ("ebb", "flow")]
    models[1]["scaling"] = {"minReplicas": 0}

    def loaded() -> list[str]:
        pods = cluster.get("pods", "-l", "multimodel.dev/multimodel=tide,multimodel.dev/model")["items"]
        running = [pod for pod in pods if "nodeName" in pod["spec"] and pod["status"]["phase"] != "Succeeded"]
        held = {pod["metadata"]["labels"]["multimodel.dev/model"] for pod in running}
        assert len(held) < 2, "more models than residency.maxLoaded are on the node"
        return [name for name in held if cluster.ready_pod(name)]

    cluster.apply("tide", models, residency={"maxLoaded": 1}, router={"replicas": 1})
    try:
        wait_for("one is loaded", lambda: loaded() == ["ebb"] and cluster.is_settled("tide"))
        with cluster.traffic("tide", "ebb") as ebb:
            wait_for("it is asked", lambda: ebb.answered > MORE)
            with cluster.traffic("tide", "flow") as flow:
                wait_for("the other has its turn", lambda: loaded() == ["flow"])
                wait_for("it is asked too", lambda: flow.answered > MORE)
            answered = ebb.answered
            wait_for("the first is back", lambda: loaded() == ["ebb"])
            wait_for("it goes on", lambda: ebb.answered > answered + MORE)
        assert (ebb.failed, flow.failed) == ([], [])
    finally:
        cluster.node.kubectl("delete", "mm", "tide", "--wait=false")


def test_an_idle_model_makes_room_for_one_that_lacks_its_device(cluster: Any, wait_for: Any) -> None:
    cluster.node.set_devices(DEVICE, 1)
    models = [with_devices("first", 1), with_devices("second", 1, least=0), with_devices("huge", 4)]
    cluster.apply("scarce", models, router={"replicas": 1})
    try:
        wait_for("the first is loaded", lambda: cluster.model("scarce", "first").get("state") == "loaded")
        wait_for("the huge one has no place", lambda: cluster.model("scarce", "huge")["reason"] == "Unschedulable")
        wait_for("the router is ready", lambda: cluster.condition("scarce", "RouterReady")["status"] == "True")
        with cluster.traffic("scarce", "second") as second:
            wait_for("the second answers", lambda: second.answered > MORE)
        with cluster.traffic("scarce", "first") as first:
            wait_for("the first answers again", lambda: first.answered > MORE)
        assert (first.failed, second.failed) == ([], [])
        notes = [event["note"] for event in cluster.events("scarce") if event["reason"] == "MadeRoom"]
        assert len(notes) == 2
        assert not any("huge" in note for note in notes), "room is made for a model that no node can take"
    finally:
        cluster.node.kubectl("delete", "mm", "scarce", "--wait=false")


def with_devices(name: str, count: int, least: int = 1) -> dict[str, Any]:
    limits = {"resources": {"limits": {DEVICE: count}}}
    return {"name": name, "alias": name, "plain": ABACUS, "scaling": {"minReplicas": least}, **limits}


def test_replicas_fall_with_the_load_and_to_none_without(cluster: Any, elastic: Elastic, wait_for: Any) -> None:
    wait_for("one replica is enough", lambda: replicas(cluster) == 1)
    wait_for("one pod is left", lambda: cluster.ready_pod("elastic"))
    last = elastic.calm.leave()
    assert elastic.calm.failed == []
    wait_for("none is wanted", lambda: replicas(cluster) == 0)
    assert abs(time.time() - last - IDLE_SECONDS) < IDLE_TOLERANCE
