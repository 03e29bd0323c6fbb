"""How a Deployment changes: beside the old pod where there is room, after it where there is none."""

from typing import Any

import pytest

from multimodel_operator import rollout
from multimodel_operator.objects import Observed
from multimodel_operator.owned import Child
from multimodel_operator.rollout import Stage

BEFORE, NOW = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
LABELS = {"multimodel.dev/model": "a"}
SURGE = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
DRAIN = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
NO_GPU = "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint {a: b}. preemption: x"


def deployment(*, strategy: Any = SURGE, replicas: int = 1, done: bool = False) -> dict[str, Any]:
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), replicas) if done else {"replicas": 1}
    return {
        "kind": "Deployment",
        "metadata": {"name": "mm-model-a", "labels": LABELS, "generation": 4},
        "spec": {"replicas": replicas, "strategy": strategy},
        "status": counts | {"observedGeneration": 4},
    }


def pod(
    name: str, revision: str, *, created: str = BEFORE, lacks: str = "", since: str = BEFORE, gpus: int = 1, **spec: Any
) -> dict[str, Any]:
    scheduled: dict[str, Any] = {"type": "PodScheduled", "status": "True"}
    if lacks:
        scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        scheduled |= {"message": lacks, "lastTransitionTime": since}
    resources = {"limits": {"nvidia.com/gpu": str(gpus), "cpu": "1500m"}, "requests": {"cpu": "1"}}
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": created,
            "labels": LABELS | {"pod-template-hash": revision},
        },
        "spec": {"containers": [{"name": "modelserver", "resources": resources}]} | spec,
        "status": {"phase": "Pending" if lacks else "Running", "conditions": [scheduled]},
    }


OLD = pod("old", "1")


def strategy(live: dict[str, Any] | None, *pods: dict[str, Any]) -> Any:
    wanted = Child(deployment())
    observed = Observed({"metadata": {"name": "mm"}}, (live,) if live else (), pods)
    (child,) = rollout.adapted([wanted], observed, NOW)
    assert wanted.document["spec"]["strategy"] == SURGE, "the wanted document itself stays as it is"
    return child.document["spec"]["strategy"]


def newcomer(lacks: str = NO_GPU, **more: Any) -> dict[str, Any]:
    return pod("new", "2", created=NOW, lacks=lacks, **more)


def test_a_new_pod_starts_beside_the_old_one() -> None:
    assert strategy(deployment(), OLD, pod("new", "2", created=NOW)) == SURGE
    assert strategy(None) == SURGE


def test_an_old_pod_leaves_first_where_it_has_the_gpu_that_the_new_one_lacks() -> None:
    assert strategy(deployment(), OLD, newcomer()) == DRAIN


@pytest.mark.parametrize("lacks", ["0/1 nodes are available: 1 Insufficient cpu.", "1 cannot allocate all claims."])
def test_other_things_may_be_scarce_too(lacks: str) -> None:
    assert strategy(deployment(), OLD, newcomer(lacks)) == DRAIN


CASES = {
    "room may still come": newcomer(since="2026-01-01T00:00:55Z"),
    "it wants more than the old one has": newcomer(gpus=2),
    "it wants other nodes": newcomer(nodeSelector={"gpu": "h200"}),
    "it lacks no resource": newcomer("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
}


@pytest.mark.parametrize("case", CASES)
def test_the_old_pod_stays_where_its_leaving_would_not_help(case: str) -> None:
    assert strategy(deployment(), OLD, CASES[case]) == SURGE


def test_a_replica_more_is_no_rollout() -> None:
    assert strategy(deployment(), OLD, pod("more", "1", created=NOW, lacks=NO_GPU)) == SURGE


def test_draining_goes_on_until_all_is_new_and_ends_then() -> None:
    draining = deployment(strategy=DRAIN)
    leaving = OLD | {"metadata": OLD["metadata"] | {"deletionTimestamp": NOW}}
    assert strategy(draining, leaving, newcomer()) == DRAIN
    assert strategy(draining, newcomer()) == DRAIN
    assert strategy(draining, pod("new", "2", created=NOW)) == DRAIN
    assert strategy(deployment(strategy=DRAIN, done=True), pod("new", "2", created=NOW)) == SURGE


def test_an_unloaded_model_needs_nothing() -> None:
    assert strategy(deployment(strategy=DRAIN, replicas=0), newcomer()) == SURGE


def test_stages() -> None:
    fresh = pod("new", "2", created=NOW)
    assert rollout.stage(deployment(), [OLD], NOW) is Stage.DONE
    assert rollout.stage(deployment(), [OLD, fresh], NOW) is Stage.SURGING
    assert rollout.stage(deployment(), [OLD, newcomer()], NOW) is Stage.BLOCKED
    assert rollout.stage(deployment(strategy=DRAIN), [fresh], NOW) is Stage.DRAINING
    assert rollout.stage(deployment(strategy=DRAIN, done=True), [fresh], NOW) is Stage.DONE


def test_a_pod_without_a_place_is_looked_at_again_when_it_has_waited_for_long_enough() -> None:
    since = {age: f"2026-01-01T00:00:{60 - age:02}Z" for age in (3, 7, 30)}
    waiting = [newcomer(since=since[age]) for age in (3, 7, 30)]
    assert rollout.seconds_to_next_look([OLD, *waiting], NOW) == rollout.BLOCKED_SECONDS - 7
    assert rollout.seconds_to_next_look([OLD, waiting[2]], NOW) is None
    assert rollout.seconds_to_next_look([OLD], NOW) is None
