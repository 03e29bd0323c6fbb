"""Why a model's pods do not serve: read from pods as the API server shows them, the same for operator and router."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from multimodel_api import devices, pod_status
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.pod_status import ContainerStatus, Pod, condition
from multimodel_api.timestamps import moment, seconds_between

LOOP_RESTARTS = 2
"""Restarts after which crashes without a typed cause count as a failure; before, the restart may well cure it."""

LOOP_RUN = timedelta(minutes=10)
"""A run longer than this was no failed load; the kubelet forgets its back-off after the same time."""

PROBE_MARGIN = timedelta(seconds=10)
"""By how much the kubelet may end a start early: its clock and the container's do not begin together."""

PREPARATION_SECONDS = 60
"""A pod whose volumes and network take longer than this on their node waits for something that is not there."""

REFUSED_SECONDS = 300
"""A pod older than this that a node refused tells nothing about the next one."""

_IMAGE_REASONS = {
    *("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"),
    *("RegistryUnavailable", "SignatureValidationFailed"),
}
_CONFIGURATION_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_MISSING = (
    (re.compile(r'^secret ".*" not found|in Secret '), FailureReason.MISSING_SECRET),
    (re.compile(r'^configmap ".*" not found|in ConfigMap '), FailureReason.MISSING_CONFIG_MAP),
)
_CRASH_LOOP = "CrashLoopBackOff"
_NODE_LOST = {"NodeLost", "NodeShutdown", "Shutdown", "Terminated"}


def pod_failure(pods: Sequence[Pod], neighbours: Sequence[Pod] = (), now: str | None = None) -> LoadFailure | None:
    """Return why these pods of one model do not serve, or None while nothing speaks against waiting.

    Pods that are going away or belong to an older revision of the Deployment do not count: they say nothing about what
    will run. While one of `pods` or `neighbours` goes away, want of room is no failure: that one makes some. What is a
    failure only when it has lasted is told where `now`, an RFC 3339 time, is given.
    """
    current = pod_status.of_newest_revision(pods)
    if not current:
        return _refused(pods, now)
    room_comes = any(pod_status.is_leaving(pod) for pod in (*pods, *neighbours))
    failures = (_failure_of(pod, now, room_comes=room_comes) for pod in current)
    return next((failure for failure in failures if failure), None)


def last_end(pods: Sequence[Pod]) -> tuple[LoadFailure, str] | None:
    """Return why a server of these pods last ended by itself, and when; None where none has."""
    ends = [found for pod in pods if not pod_status.is_leaving(pod) for found in _ends(pod)]
    return max(ends, key=lambda found: moment(found[1]), default=None)


def _ends(pod: Pod) -> Iterator[tuple[LoadFailure, str]]:
    whole = _pod_end(pod)
    if whole:
        disrupted = condition(pod, "DisruptionTarget").get("lastTransitionTime")
        yield whole, disrupted or pod["metadata"]["creationTimestamp"]
    for container in pod_status.containers(pod):
        end = pod_status.last_end(container)
        if end and end.get("finishedAt") and (end.get("exitCode") or end.get("signal")):
            yield _timed_out(pod, container) or _container_end(container, end), end["finishedAt"]


def _pod_end(pod: Pod) -> LoadFailure | None:
    """Return why a pod that has failed as a whole will not run again."""
    status = pod_status.status_of(pod)
    if status.get("phase") != "Failed" or not status.get("reason"):
        return None
    words = status.get("message") or "the node said no more"
    if status["reason"] == "Evicted":
        return LoadFailure(reason=FailureReason.EVICTED, message=words)
    if status["reason"] in _NODE_LOST:
        return LoadFailure(reason=FailureReason.NODE_LOST, message=words)
    return LoadFailure(reason=FailureReason.NODE_REFUSED, message=f"{status['reason']}: {words}")


def _container_end(container: ContainerStatus, end: Mapping[str, Any]) -> LoadFailure:
    """Return why a container ended: its own words, or how it looks from outside.

    Where memory runs out the kernel may kill a server's engine alone: of that, the server does not know why.
    """
    typed = LoadFailure.parse(end.get("message") or "")
    is_out_of_memory = end.get("reason") == "OOMKilled"
    if typed and not (is_out_of_memory and typed.reason is FailureReason.ENGINE_CRASHED):
        return typed
    if is_out_of_memory:
        return LoadFailure(
            reason=FailureReason.OOM_KILLED,
            message=f"the container {container['name']} was killed for using more memory than its limit; "
            "raise resources.limits.memory of the model",
        )
    signal, code = end.get("signal"), end.get("exitCode")
    how = f"was ended by signal {signal}" if signal else f"exited with code {code}"
    words = f": {end['message'].strip()}" if end.get("message") else ""
    return LoadFailure(reason=FailureReason.SERVER_CRASHED, message=f"the container {container['name']} {how}{words}")


def _refused(pods: Sequence[Pod], now: str | None) -> LoadFailure | None:
    """Return why there is no pod now: the last one was just refused or thrown out by its node."""
    newest = next(iter(pod_status.newest_first(pods)), None)
    if newest is None or now is None or pod_status.is_leaving(newest):
        return None
    is_old = seconds_between(newest["metadata"]["creationTimestamp"], now) > REFUSED_SECONDS
    return None if is_old else _pod_end(newest)


def _failure_of(pod: Pod, now: str | None, *, room_comes: bool) -> LoadFailure | None:
    if pod_status.is_unschedulable(pod):
        words = condition(pod, "PodScheduled").get("message") or "no node fits"
        may_fit = room_comes and not devices.fits_nowhere(pod)
        return None if may_fit else LoadFailure(reason=FailureReason.UNSCHEDULABLE, message=words)
    if _is_on_a_lost_node(pod):
        node = pod.get("spec", {}).get("nodeName")
        words = f"the node {node} has gone silent; the pod is replaced when the cluster gives the node up"
        return LoadFailure(reason=FailureReason.NODE_LOST, message=words)
    failures = (_container_failure(pod, container) for container in pod_status.containers(pod))
    return next((failure for failure in failures if failure), _not_prepared(pod, now))


def _is_on_a_lost_node(pod: Pod) -> bool:
    """Whether the control plane has taken a pod's readiness away while its kubelet, when last heard, had not."""
    ready, inside = condition(pod, "Ready").get("status"), condition(pod, "ContainersReady").get("status")
    return ready == "False" and inside == "True" and not pod.get("spec", {}).get("readinessGates")


def _not_prepared(pod: Pod, now: str | None) -> LoadFailure | None:
    """Tell a pod whose containers cannot be made; why is said in Events alone, which may be gone."""
    prepared = condition(pod, "PodReadyToStartContainers")
    if now is None or prepared.get("status") != "False" or condition(pod, "PodScheduled").get("status") != "True":
        return None
    if seconds_between(prepared["lastTransitionTime"], now) < PREPARATION_SECONDS:
        return None
    volumes = pod.get("spec", {}).get("volumes", [])
    secrets = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
    maps = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
    needed = "".join(
        f"; it needs the {kind} {name}" for kind, of in (("Secret", secrets), ("ConfigMap", maps)) for name in of
    )
    return LoadFailure(
        reason=FailureReason.POD_NOT_STARTING,
        message=f"volumes or network of the pod are not there{needed}; `kubectl describe pod {pod['metadata']['name']}`"
        " says what is missing",
    )


def _container_failure(pod: Pod, container: ContainerStatus) -> LoadFailure | None:
    if container.get("ready") or _was_ready_in_this_run(pod, container):
        return None
    waiting = (container.get("state") or {}).get("waiting") or {}
    return _not_started(container, waiting) or _timed_out(pod, container) or _crashed(container, waiting)


def _was_ready_in_this_run(pod: Pod, container: ContainerStatus) -> bool:
    """Whether the pod has been ready since the container started: then an earlier run's end explains nothing."""
    started = pod_status.running_since(container)
    changed = condition(pod, "Ready").get("lastTransitionTime")
    return bool(started and changed and moment(changed) > moment(started))


def _not_started(container: ContainerStatus, waiting: Mapping[str, Any]) -> LoadFailure | None:
    reason = waiting.get("reason")
    message = waiting.get("message") or f"the container has the state {reason}"
    if reason in _IMAGE_REASONS:
        image = container.get("image", "")
        named = message if image in message else f"{image}: {message}"
        return LoadFailure(reason=FailureReason.IMAGE_PULL, message=named)
    if reason in _CONFIGURATION_REASONS:
        missing = (kind for words, kind in _MISSING if words.search(message))
        return LoadFailure(reason=next(missing, FailureReason.BAD_CONFIGURATION), message=message)
    return None


def _timed_out(pod: Pod, container: ContainerStatus) -> LoadFailure | None:
    """Tell a load that the kubelet ended: it lasted as long as the startup probe allows, and the pod was never ready.

    A server that gives up by itself leaves a typed failure, which says more.
    """
    end = pod_status.last_end(container)
    limit = _start_limit(pod, container["name"])
    if end is None or limit is None or end.get("reason") == "OOMKilled" or LoadFailure.parse(end.get("message") or ""):
        return None
    if _ran_for(end) < limit - PROBE_MARGIN or _was_ready_until(pod, end):
        return None
    return LoadFailure(
        reason=FailureReason.LOAD_TIMEOUT,
        message=f"the model was not loaded within {limit.total_seconds():.0f} s and is loaded again; "
        "raise loading.timeoutSeconds of the model if it needs longer",
    )


def _start_limit(pod: Pod, container: str) -> timedelta | None:
    """Return how long a container with a startup probe may take to start."""
    specs = [found for found in pod.get("spec", {}).get("containers", []) if found["name"] == container]
    probe = specs[0].get("startupProbe") if specs else None
    return probe and timedelta(seconds=probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3))


def _was_ready_until(pod: Pod, end: Mapping[str, Any]) -> bool:
    """Whether the pod was ready during the run that ended: readiness then ended with it."""
    changed = condition(pod, "Ready").get("lastTransitionTime")
    return bool(changed and end.get("startedAt") and moment(changed) > moment(end["startedAt"]))


def _crashed(container: ContainerStatus, waiting: Mapping[str, Any]) -> LoadFailure | None:
    """Return a typed failure at once, any other when restarts do not cure it."""
    end = pod_status.last_end(container)
    if end is None:
        return None
    why = _container_end(container, end)
    if LoadFailure.parse(end.get("message") or ""):
        return why
    backing_off = waiting.get("reason") == _CRASH_LOOP
    looping = container.get("restartCount", 0) >= LOOP_RESTARTS and _ran_for(end) <= LOOP_RUN
    if why.reason is FailureReason.OOM_KILLED:
        return why if backing_off or looping else None
    return _crash_loop(container, why) if looping else None


def _ran_for(end: Mapping[str, Any]) -> timedelta:
    started, finished = end.get("startedAt"), end.get("finishedAt")
    return moment(finished) - moment(started) if started and finished else timedelta(0)


def _crash_loop(container: ContainerStatus, why: LoadFailure) -> LoadFailure:
    return LoadFailure(
        reason=why.reason,
        message=f"{why.message}; restarted {container['restartCount']} times, each after a longer wait; "
        "see `kubectl logs --previous`",
    )
