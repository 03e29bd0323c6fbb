"""Why pods do not serve, from pods as a real API server shows them."""

from typing import Any

import pytest

from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.pod_failures import pod_failure

BAD_WEIGHTS = LoadFailure(reason=FailureReason.BAD_WEIGHTS, message="model.safetensors: truncated")
PULL = 'failed to pull "registry.example/modelserver:1": not found'
STARTED, LATER = "2026-01-02T10:00:00Z", "2026-01-02T10:00:30Z"


def container(state: dict[str, Any] | None = None, last: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": "modelserver",
        "image": "registry.example/modelserver:1",
        "ready": False,
        "restartCount": 0,
        "state": state or {},
        "lastState": last or {},
    } | more


def pod(*containers: dict[str, Any], conditions: list[dict[str, Any]] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "creationTimestamp": STARTED, "labels": {"pod-template-hash": "a"}} | metadata,
        "status": {"phase": "Pending", "conditions": conditions or [], "containerStatuses": list(containers)},
    }


def terminated(message: str = "", reason: str = "Error", finished: str = LATER, **more: Any) -> dict[str, Any]:
    end = {"exitCode": 1, "reason": reason, "startedAt": STARTED, "finishedAt": finished} | more
    return {"terminated": end | ({"message": message} if message else {})}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


RUNNING = {"running": {"startedAt": STARTED}}
LOOP = waiting("CrashLoopBackOff", "back-off 10s restarting failed container")


@pytest.mark.parametrize(
    "pods",
    [
        [],
        [{"metadata": {"name": "just-made"}}],
        [pod(container(waiting("ContainerCreating")))],
        [pod(container(RUNNING))],
        [pod(container(RUNNING, ready=True), conditions=[{"type": "Ready", "status": "True"}])],
        [pod(conditions=[{"type": "PodScheduled", "status": "True"}])],
    ],
    ids=["none", "no status", "creating", "loading", "ready", "scheduled"],
)
def test_pods_that_get_on_show_no_failure(pods: list[dict[str, Any]]) -> None:
    assert pod_failure(pods) is None


@pytest.mark.parametrize(
    "status",
    [
        container(terminated(BAD_WEIGHTS.to_document())),
        container(LOOP, terminated(BAD_WEIGHTS.to_document()), restartCount=1),
        container(RUNNING, terminated(BAD_WEIGHTS.to_document()), restartCount=1),
    ],
    ids=["just ended", "backing off", "trying again"],
)
def test_a_typed_failure_is_read_from_the_termination_message(status: dict[str, Any]) -> None:
    assert pod_failure([pod(status)]) == BAD_WEIGHTS


def test_an_old_failure_no_longer_counts_once_the_pod_has_been_ready() -> None:
    recovered = container(RUNNING, terminated(BAD_WEIGHTS.to_document()), restartCount=1)
    not_ready_again = {"type": "Ready", "status": "False", "lastTransitionTime": LATER}
    assert pod_failure([pod(recovered, conditions=[not_ready_again])]) is None


def test_a_pod_that_was_never_ready_in_this_run_keeps_its_failure() -> None:
    status = container({"running": {"startedAt": LATER}}, terminated(BAD_WEIGHTS.to_document()), restartCount=1)
    never_ready = {"type": "Ready", "status": "False", "lastTransitionTime": STARTED}
    assert pod_failure([pod(status, conditions=[never_ready])]) == BAD_WEIGHTS


def test_no_node_fits() -> None:
    words = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    assert pod_failure([pod(conditions=[condition])]) == LoadFailure(reason=FailureReason.UNSCHEDULABLE, message=words)


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_is_named(reason: str) -> None:
    failure = pod_failure([pod(container(waiting(reason, PULL)))])
    assert failure == LoadFailure(reason=FailureReason.IMAGE_PULL, message=PULL)
    unnamed = pod_failure([pod(container(waiting(reason, "not found")))])
    assert unnamed is not None
    assert unnamed.message == "registry.example/modelserver:1: not found"


def test_a_missing_secret_is_bad_configuration() -> None:
    failure = pod_failure([pod(container(waiting("CreateContainerConfigError", 'secret "hub" not found')))])
    assert failure == LoadFailure(reason=FailureReason.BAD_CONFIGURATION, message='secret "hub" not found')


def test_oom_killed_says_what_to_raise() -> None:
    end = terminated(reason="OOMKilled", exitCode=137)
    failure = pod_failure([pod(container(LOOP, end, restartCount=1))])
    assert failure is not None
    assert failure.reason is FailureReason.OOM_KILLED
    assert "resources.limits.memory" in failure.message


@pytest.mark.parametrize("reason", ["Error", "OOMKilled"])
def test_one_crash_is_left_to_the_kubelet(reason: str) -> None:
    end = terminated(reason=reason, exitCode=137)
    assert pod_failure([pod(container(RUNNING, end, restartCount=1))]) is None


@pytest.mark.parametrize("state", [LOOP, RUNNING], ids=["backing off", "trying again"])
def test_repeated_crashes_are_a_failure(state: dict[str, Any]) -> None:
    failure = pod_failure([pod(container(state, terminated("Illegal instruction\n", exitCode=132), restartCount=3))])
    assert failure is not None
    assert failure.reason is FailureReason.SERVER_CRASHED
    assert "exited with code 132" in failure.message
    assert "restarted 3 times: Illegal instruction;" in failure.message


def test_a_server_that_ran_for_hours_did_not_fail_to_load() -> None:
    end = terminated(exitCode=137, finished="2026-01-02T15:00:00Z")
    assert pod_failure([pod(container(RUNNING, end, restartCount=7))]) is None


def test_pods_that_go_away_or_are_finished_do_not_count() -> None:
    failed = container(LOOP, terminated(BAD_WEIGHTS.to_document()), restartCount=1)
    evicted = pod(failed)
    evicted["status"]["phase"] = "Failed"
    assert pod_failure([pod(failed, deletionTimestamp=LATER), evicted]) is None


def test_only_the_newest_revision_counts() -> None:
    failed = container(LOOP, terminated(BAD_WEIGHTS.to_document()), restartCount=1)
    old = pod(failed)
    new = pod(container(RUNNING), creationTimestamp=LATER, labels={"pod-template-hash": "b"})
    assert pod_failure([old, new]) is None
    assert pod_failure([new, old]) is None


def test_one_failing_replica_of_several_is_found() -> None:
    failed = pod(container(terminated(BAD_WEIGHTS.to_document())))
    assert pod_failure([pod(container(RUNNING)), failed]) == BAD_WEIGHTS
