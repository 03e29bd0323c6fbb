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


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("MissingSecret", 'secret "hub" not found'),
        ("MissingSecret", "couldn't find key token in Secret team/hub"),
        ("MissingConfigMap", 'configmap "settings" not found'),
        ("MissingConfigMap", "couldn't find key level in ConfigMap team/settings"),
        ("BadConfiguration", "container has runAsNonRoot and image will run as root"),
    ],
)
def test_a_container_that_cannot_be_made_says_what_it_lacks(reason: str, words: str) -> None:
    failure = pod_failure([pod(container(waiting("CreateContainerConfigError", words)))])
    assert failure == LoadFailure(reason=FailureReason(reason), message=words)


@pytest.mark.parametrize("reason", ["CreateContainerError", "RunContainerError"])
def test_a_container_that_the_runtime_refuses_is_bad_configuration(reason: str) -> None:
    words = 'failed to create shim task: exec: "python": executable file not found in $PATH'
    failure = pod_failure([pod(container(waiting(reason, words)))])
    assert failure == LoadFailure(reason=FailureReason.BAD_CONFIGURATION, message=words)


def test_oom_killed_says_what_to_raise() -> None:
    end = terminated(reason="OOMKilled", exitCode=137)
    failure = pod_failure([pod(container(LOOP, end, restartCount=1))])
    assert failure is not None
    assert failure.reason is FailureReason.OOM_KILLED
    assert "resources.limits.memory" in failure.message


def test_of_an_engine_that_was_killed_the_kubelet_knows_why() -> None:
    said = LoadFailure(reason=FailureReason.ENGINE_CRASHED, message="The engine was killed by SIGKILL while it loaded.")
    end = terminated(said.to_document(), reason="OOMKilled")
    failure = pod_failure([pod(container(RUNNING, end, restartCount=1))])
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
    assert "exited with code 132: Illegal instruction; restarted 3 times," in failure.message


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


def test_of_two_revisions_made_in_the_same_second_the_ready_one_is_the_old_one() -> None:
    failed = container(LOOP, terminated(BAD_WEIGHTS.to_document()), restartCount=1)
    serves = pod(container(RUNNING, ready=True), conditions=[{"type": "Ready", "status": "True"}])
    fails = pod(failed, labels={"pod-template-hash": "b"})
    assert pod_failure([serves, fails]) == pod_failure([fails, serves]) == BAD_WEIGHTS


def test_one_failing_replica_of_several_is_found() -> None:
    failed = pod(container(terminated(BAD_WEIGHTS.to_document())))
    assert pod_failure([pod(container(RUNNING)), failed]) == BAD_WEIGHTS


def loading(status: dict[str, Any], *, seconds: int, ready_changed: str = "2026-01-02T09:59:00Z") -> dict[str, Any]:
    """A pod whose model server may take `seconds` to load its model."""
    probe = {"periodSeconds": 2, "failureThreshold": seconds // 2}
    conditions = [{"type": "Ready", "status": "False", "lastTransitionTime": ready_changed}]
    return pod(status, conditions=conditions) | {
        "spec": {"containers": [{"name": "modelserver", "startupProbe": probe}]}
    }


KILLED = {"exitCode": 137, "reason": "Error", "startedAt": STARTED, "finishedAt": "2026-01-02T10:10:01Z"}


def test_a_load_that_the_kubelet_ended_is_told_with_its_limit() -> None:
    for state in (LOOP, RUNNING, {"terminated": KILLED}):
        status = container(state, {"terminated": KILLED}, restartCount=1)
        failure = pod_failure([loading(status, seconds=600)])
        assert failure is not None
        assert failure.reason is FailureReason.LOAD_TIMEOUT
        assert "within 600 s" in failure.message
        assert "loading.timeoutSeconds" in failure.message


@pytest.mark.parametrize(
    ("ended", "limit", "ready_changed"),
    [
        (KILLED, 900, "2026-01-02T09:59:00Z"),
        (KILLED, 600, "2026-01-02T10:10:02Z"),
        (KILLED | {"reason": "OOMKilled"}, 600, "2026-01-02T09:59:00Z"),
        (KILLED | {"message": BAD_WEIGHTS.to_document()}, 600, "2026-01-02T09:59:00Z"),
    ],
    ids=["before its limit", "after it had served", "out of memory", "with a reason of its own"],
)
def test_other_ends_are_no_timeout(ended: dict[str, Any], limit: int, ready_changed: str) -> None:
    status = container(LOOP, {"terminated": ended}, restartCount=1)
    failure = pod_failure([loading(status, seconds=limit, ready_changed=ready_changed)])
    assert failure is None or failure.reason is not FailureReason.LOAD_TIMEOUT


NO_ROOM = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
}


def test_want_of_room_is_no_failure_while_somebody_leaves() -> None:
    waits = pod(conditions=[NO_ROOM], creationTimestamp=LATER)
    leaves = pod(container(RUNNING, ready=True), deletionTimestamp=LATER)
    assert pod_failure([waits, leaves]) is None
    assert pod_failure([waits], neighbours=[leaves]) is None
    failure = pod_failure([waits], neighbours=[pod(container(RUNNING, ready=True))])
    assert failure is not None
    assert failure.reason is FailureReason.UNSCHEDULABLE


def test_what_fits_nowhere_fails_whoever_leaves() -> None:
    words = f"{NO_ROOM['message']} preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    leaves = pod(container(RUNNING, ready=True), deletionTimestamp=LATER)
    failure = pod_failure([pod(conditions=[NO_ROOM | {"message": words}])], neighbours=[leaves])
    assert failure == LoadFailure(reason=FailureReason.UNSCHEDULABLE, message=words)


def test_a_pod_that_the_scheduler_may_not_look_at_yet_fails_in_nothing() -> None:
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    assert pod_failure([pod(conditions=[gated])]) is None


def test_a_node_that_has_gone_silent_is_named() -> None:
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    stale = pod(container(RUNNING, ready=True), conditions=conditions) | {"spec": {"nodeName": "node-7"}}
    failure = pod_failure([stale])
    assert failure is not None
    assert failure.reason is FailureReason.NODE_LOST
    assert "node-7" in failure.message
    gated = stale | {"spec": {"nodeName": "node-7", "readinessGates": [{"conditionType": "example.org/lb"}]}}
    assert pod_failure([gated]) is None, "readiness may be withheld by somebody else"


def unprepared() -> dict[str, Any]:
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": STARTED},
        {"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": STARTED},
    ]
    volumes = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "certificates", "secret": {"secretName": "ca"}},
        {"name": "settings", "configMap": {"name": "conf"}},
    ]
    return pod(container(waiting("ContainerCreating")), conditions=conditions) | {"spec": {"volumes": volumes}}


def test_a_pod_whose_volumes_do_not_come_says_what_it_needs() -> None:
    assert pod_failure([unprepared()], now=LATER) is None, "half a minute is nothing"
    failure = pod_failure([unprepared()], now="2026-01-02T10:02:00Z")
    assert failure is not None
    assert failure.reason is FailureReason.POD_NOT_STARTING
    for words in ("the Secret ca", "the ConfigMap conf", "`kubectl describe pod p`"):
        assert words in failure.message
    assert pod_failure([unprepared()]) is None, "nobody can tell without a clock"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Evicted", ("Evicted", "The node was low on memory.")),
        ("NodeShutdown", ("NodeLost", "The node was low on memory.")),
        (
            "UnexpectedAdmissionError",
            ("NodeRefused", "UnexpectedAdmissionError: The node was low on memory."),
        ),
        ("OutOfmemory", ("NodeRefused", "OutOfmemory: The node was low on memory.")),
    ],
)
def test_a_model_without_a_pod_says_how_the_last_one_ended(said: str, expected: tuple[str, str]) -> None:
    ended = pod()
    ended["status"] = {"phase": "Failed", "reason": said, "message": "The node was low on memory."}
    failure = pod_failure([ended], now=LATER)
    assert failure is not None
    assert (failure.reason, failure.message) == expected
    assert pod_failure([ended], now="2026-01-02T12:00:00Z") is None, "that was long ago"
    assert pod_failure([ended, pod(container(RUNNING), creationTimestamp=LATER)], now=LATER) is None
