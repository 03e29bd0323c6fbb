"""Which devices pods have, and which they are short of: the resources of vendors, as `nvidia.com/gpu`."""

import re
from collections.abc import Iterable

from multimodel_api import pod_status
from multimodel_api.pod_status import Pod

_SHORT_OF = re.compile(r"Insufficient ([a-z0-9.-]+/[A-Za-z0-9._-]*[A-Za-z0-9])")
"""How the scheduler names a device that no node has enough of."""
_NO_NODE_IS_LARGE_ENOUGH = "Preemption is not helpful"
_OTHERS_HAVE_IT = "No preemption victims found"
"""What it says of nodes, as to whether ending other pods there would help."""


def devices_of(pod: Pod) -> frozenset[str]:
    """Return the devices that a pod has; none before it has a node."""
    spec = pod.get("spec") or {}
    if not spec.get("nodeName"):
        return frozenset()
    limits = (
        name
        for container in spec.get("containers", ())
        for name in (container.get("resources") or {}).get("limits", ())
    )
    return frozenset(name for name in limits if "/" in name)


def short_of(pod: Pod) -> frozenset[str]:
    """Return the devices that keep the scheduler from finding a node for a pod, and that it would find if others left.

    A pod that asks for more than any node has in all is short of nothing that anybody could give.
    """
    if fits_nowhere(pod) or not pod_status.is_unschedulable(pod):
        return frozenset()
    return frozenset(_SHORT_OF.findall(_words(pod)))


def fits_nowhere(pod: Pod) -> bool:
    """Whether the scheduler says of a pod that no node could take it, whoever left."""
    return _NO_NODE_IS_LARGE_ENOUGH in _words(pod) and _OTHERS_HAVE_IT not in _words(pod)


def may_get_room(pods: Iterable[Pod], neighbours: Iterable[Pod]) -> bool:
    """Whether pods lack nothing but a device that others of the same MultiModel have, who make room when idle."""
    lacking = frozenset(name for pod in pods for name in short_of(pod))
    return any(lacking & devices_of(neighbour) for neighbour in neighbours)


def _words(pod: Pod) -> str:
    return pod_status.condition(pod, "PodScheduled").get("message") or ""
