"""Reads pods as the API server shows them (camelCase): the same few facts for everyone who judges them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Pod = Mapping[str, Any]
ContainerStatus = Mapping[str, Any]

_POD_TEMPLATE_HASH = "pod-template-hash"


def status_of(pod: Pod) -> Mapping[str, Any]:
    """Return a pod's status, empty for one that was just made."""
    status: Mapping[str, Any] = pod.get("status") or {}
    return status


def condition(pod: Pod, kind: str) -> Mapping[str, Any]:
    """Return a pod's condition of a type, empty where there is none."""
    conditions: Sequence[Mapping[str, Any]] = status_of(pod).get("conditions") or []
    return next((found for found in conditions if found["type"] == kind), {})


def containers(pod: Pod) -> Iterator[ContainerStatus]:
    """Yield the statuses of a pod's containers, those that run first before the others."""
    for field in ("initContainerStatuses", "containerStatuses"):
        yield from status_of(pod).get(field) or []


def last_end(container: ContainerStatus) -> Mapping[str, Any] | None:
    """Return how a container ended last, None when it has not."""
    states = (container.get("state") or {}, container.get("lastState") or {})
    return next((state["terminated"] for state in states if state.get("terminated")), None)


def running_since(container: ContainerStatus) -> str | None:
    """Return when a container started that runs now."""
    running: Mapping[str, str] = (container.get("state") or {}).get("running") or {}
    return running.get("startedAt")


def is_ready(pod: Pod) -> bool:
    """Whether a pod takes requests."""
    return condition(pod, "Ready").get("status") == "True" and not is_leaving(pod)


def is_unschedulable(pod: Pod) -> bool:
    """Whether the scheduler has found no node for a pod; one that it may not look at yet is none."""
    scheduled = condition(pod, "PodScheduled")
    return scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"


def is_leaving(pod: Pod) -> bool:
    """Whether a pod is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def is_finished(pod: Pod) -> bool:
    """Whether a pod will never run again."""
    return status_of(pod).get("phase") in ("Failed", "Succeeded")


def is_living(pod: Pod) -> bool:
    """Whether a pod serves or may come to."""
    return not is_leaving(pod) and not is_finished(pod)


def revision(pod: Pod) -> str | None:
    """Return what tells the pods of a Deployment's revisions apart."""
    found: str | None = pod["metadata"].get("labels", {}).get(_POD_TEMPLATE_HASH)
    return found


def newest_first(pods: Sequence[Pod]) -> list[Pod]:
    """Return pods by their creation; of those made in the same second, one that is ready came first."""
    return sorted(
        pods, key=lambda pod: (str(pod["metadata"].get("creationTimestamp", "")), not is_ready(pod)), reverse=True
    )


def of_newest_revision(pods: Sequence[Pod]) -> list[Pod]:
    """Return the living pods of the revision that the newest of them has, the newest first."""
    living = newest_first([pod for pod in pods if is_living(pod)])
    return [pod for pod in living if revision(pod) == revision(living[0])]
