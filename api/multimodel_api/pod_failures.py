"""Why a model's pods do not serve: read from pods as the API server shows them, the same for operator and router."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from multimodel_api.failures import FailureReason, LoadFailure

Pod = Mapping[str, Any]
ContainerStatus = Mapping[str, Any]

LOOP_RESTARTS = 2
"""Restarts after which crashes without a typed cause count as a failure; before, the restart may well cure it."""

LOOP_RUN = timedelta(minutes=10)
"""A run longer than this was no failed load; the kubelet forgets its back-off after the same time."""

_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"}
_CONFIGURATION_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_CRASH_LOOP = "CrashLoopBackOff"
_POD_TEMPLATE_HASH = "pod-template-hash"


def pod_failure(pods: Sequence[Pod]) -> LoadFailure | None:
    """Return why these pods of one model do not serve, or None while nothing speaks against waiting.

    `pods` are API-shaped (camelCase). Pods that are going away or belong to an older revision of the Deployment do not
    count: they say nothing about what will run.
    """
    failures = (_failure_of(pod) for pod in _current(pods))
    return next((failure for failure in failures if failure), None)


def _current(pods: Sequence[Pod]) -> list[Pod]:
    """Return the living pods of the newest revision, the newest first."""
    living = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and not _finished(pod)]
    newest_first = sorted(living, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)
    return [pod for pod in newest_first if _revision(pod) == _revision(newest_first[0])]


def _finished(pod: Pod) -> bool:
    return _status(pod).get("phase") in ("Failed", "Succeeded")


def _revision(pod: Pod) -> str | None:
    revision: str | None = pod["metadata"].get("labels", {}).get(_POD_TEMPLATE_HASH)
    return revision


def _status(pod: Pod) -> Mapping[str, Any]:
    status: Mapping[str, Any] = pod.get("status") or {}
    return status


def _failure_of(pod: Pod) -> LoadFailure | None:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return LoadFailure(reason=FailureReason.UNSCHEDULABLE, message=scheduled.get("message") or "no node fits")
    failures = (_container_failure(pod, container) for container in _containers(pod))
    return next((failure for failure in failures if failure), None)


def _condition(pod: Pod, kind: str) -> Mapping[str, Any]:
    conditions: Sequence[Mapping[str, Any]] = _status(pod).get("conditions") or []
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _containers(pod: Pod) -> Iterator[ContainerStatus]:
    for field in ("initContainerStatuses", "containerStatuses"):
        yield from _status(pod).get(field) or []


def _container_failure(pod: Pod, container: ContainerStatus) -> LoadFailure | None:
    if container.get("ready") or _was_ready_in_this_run(pod, container):
        return None
    waiting = (container.get("state") or {}).get("waiting") or {}
    return _not_started(container, waiting) or _crashed(container, waiting.get("reason") == _CRASH_LOOP)


def _was_ready_in_this_run(pod: Pod, container: ContainerStatus) -> bool:
    """Whether the pod has been ready since the container started: then an earlier run's end explains nothing."""
    started = ((container.get("state") or {}).get("running") or {}).get("startedAt")
    changed = _condition(pod, "Ready").get("lastTransitionTime")
    return bool(started and changed and _time(changed) > _time(started))


def _not_started(container: ContainerStatus, waiting: Mapping[str, Any]) -> LoadFailure | None:
    reason = waiting.get("reason")
    message = waiting.get("message") or f"the container has the state {reason}"
    if reason in _IMAGE_REASONS:
        image = container.get("image", "")
        named = message if image in message else f"{image}: {message}"
        return LoadFailure(reason=FailureReason.IMAGE_PULL, message=named)
    if reason in _CONFIGURATION_REASONS:
        return LoadFailure(reason=FailureReason.BAD_CONFIGURATION, message=message)
    return None


def _crashed(container: ContainerStatus, backing_off: bool) -> LoadFailure | None:
    end = _last_end(container)
    if end is None:
        return None
    typed = LoadFailure.parse(end.get("message") or "")
    if typed:
        return typed
    looping = container.get("restartCount", 0) >= LOOP_RESTARTS and not _ran_long(end)
    if end.get("reason") == "OOMKilled" and (backing_off or looping):
        return LoadFailure(
            reason=FailureReason.OOM_KILLED,
            message=f"the container {container['name']} was killed for using more memory than its limit; "
            "raise resources.limits.memory of the model",
        )
    return _crash_loop(container, end) if looping else None


def _last_end(container: ContainerStatus) -> Mapping[str, Any] | None:
    """Return how the container ended last, None when it has not."""
    states = (container.get("state") or {}, container.get("lastState") or {})
    return next((state["terminated"] for state in states if state.get("terminated")), None)


def _ran_long(end: Mapping[str, Any]) -> bool:
    started, finished = end.get("startedAt"), end.get("finishedAt")
    return bool(started and finished and _time(finished) - _time(started) > LOOP_RUN)


def _crash_loop(container: ContainerStatus, end: Mapping[str, Any]) -> LoadFailure:
    signal, code = end.get("signal"), end.get("exitCode")
    how = f"was ended by signal {signal}" if signal else f"exited with code {code}"
    words = f": {end['message'].strip()}" if end.get("message") else ""
    return LoadFailure(
        reason=FailureReason.SERVER_CRASHED,
        message=f"the container {container['name']} {how} and was restarted {container['restartCount']} times{words}; "
        "see `kubectl logs --previous`",
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
