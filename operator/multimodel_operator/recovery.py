"""Decides when restarting a server where it is has been tried often enough; pure.

A dead engine is rebooted by its server, a dead server is restarted by the kubelet, each time after a longer wait. Where
that has not helped, and another device or node may, the pod makes way for a new one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from multimodel_api import names, pod_failures, pod_status
from multimodel_api.failures import FailureReason
from multimodel_api.names import Component
from multimodel_operator.objects import Object, label_of, name_of

MOST_RESTARTS = 5
"""Restarts of a pod that never gets ready; the kubelet takes more than five minutes for them."""

CURED_ELSEWHERE = {
    *(FailureReason.ENGINE_CRASHED, FailureReason.SERVER_CRASHED),
    *(FailureReason.OUT_OF_MEMORY, FailureReason.DISK_FULL),
}
"""Causes that may be those of a device or a node; a wrong file or setting is the same everywhere."""


@dataclass(frozen=True)
class Replacement:
    """A pod to end, and why."""

    pod: str
    reason: str


def replacements(pods: Sequence[Object]) -> Iterator[Replacement]:
    """Yield the pods of model servers that are to make way for new ones."""
    for pod in pods:
        if label_of(pod, names.LABEL_COMPONENT) == Component.MODEL_SERVER and _is_hopeless(pod):
            yield _replacement(pod)


def _is_hopeless(pod: Object) -> bool:
    if not pod_status.is_living(pod) or pod_status.is_ready(pod) or _restarts(pod) < MOST_RESTARTS:
        return False
    end = pod_failures.last_end([pod])
    return end is not None and end[0].reason in CURED_ELSEWHERE


def _replacement(pod: Object) -> Replacement:
    model = label_of(pod, names.LABEL_MODEL)
    node = pod.get("spec", {}).get("nodeName", "its node")
    words = (
        f"model {model}: {name_of(pod)} on {node} was restarted {_restarts(pod)} times in vain; a new pod takes over"
    )
    return Replacement(name_of(pod), words)


def _restarts(pod: Object) -> int:
    return sum(container.get("restartCount", 0) for container in pod_status.containers(pod))
