"""Decides how a Deployment changes to a new revision; pure.

A new pod starts beside the old one wherever it finds a place. Where it finds none, as the old one has what it needs,
the old one leaves first: it drains, and routers hold requests until the new one is loaded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from enum import StrEnum
from typing import Any

from multimodel_api import names, pod_status
from multimodel_api.timestamps import seconds_between
from multimodel_operator import objects
from multimodel_operator.drift import quantity
from multimodel_operator.objects import Object, Observed, kind_of, label_of, name_of
from multimodel_operator.owned import Child

BLOCKED_SECONDS = 10
"""A new pod that has no place for longer than this will not get one by itself."""

DRAIN_FIRST = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}

_WANTING = re.compile(r"Insufficient (\S+?)[.,]?(?=\s|$)")
_WANTING_CLAIM = "cannot allocate all claims"
_PLACEMENT = ("nodeSelector", "affinity", "tolerations", "runtimeClassName", "resourceClaims")


class Stage(StrEnum):
    """How far the change to a new revision is."""

    DONE = "done"
    SURGING = "surging"
    DRAINING = "draining"
    BLOCKED = "blocked"


def adapted(wanted: Sequence[Child], observed: Observed, now: str) -> list[Child]:
    """Return the children with the strategy that each model's rollout needs."""
    return [_adapted(child, observed, now) for child in wanted]


def stage(deployment: Object, pods: Sequence[Object], now: str) -> Stage:
    """Return how far a Deployment's rollout is, from the pods of its model."""
    if _drains_first(deployment):
        return Stage.DONE if _is_complete(deployment) else Stage.DRAINING
    new, old = _revisions(pods)
    if not old:
        return Stage.DONE
    stuck = any(_has_no_place(pod, now) for pod in new)
    return Stage.BLOCKED if stuck else Stage.SURGING


def seconds_to_next_look(pods: Sequence[Object], now: str) -> float | None:
    """Return when the next pod without a place will have had none for too long, which nothing tells by itself."""
    left = (BLOCKED_SECONDS - _seconds_without_place(pod, now) for pod in pods if pod_status.is_unschedulable(pod))
    return min((seconds for seconds in left if seconds > 0), default=None)


def _adapted(child: Child, observed: Observed, now: str) -> Child:
    document = child.document
    model = label_of(document, names.LABEL_MODEL)
    if kind_of(document) is not objects.DEPLOYMENT or model is None:
        return child
    live = observed.child(objects.DEPLOYMENT, name_of(document))
    pods = [pod for pod in observed.pods if label_of(pod, names.LABEL_MODEL) == model]
    if live is None or not _must_drain(live, pods, now):
        return child
    return replace(child, document={**document, "spec": {**document["spec"], "strategy": DRAIN_FIRST}})


def _must_drain(live: Object, pods: Sequence[Object], now: str) -> bool:
    """Whether an old pod has to leave before a new one can come, until all are new."""
    if live["spec"].get("replicas", 1) == 0:
        return False
    match stage(live, pods, now):
        case Stage.DRAINING:
            return True
        case Stage.BLOCKED:
            new, old = _revisions(pods)
            return any(_makes_room(leaving, pod) for pod in new if _has_no_place(pod, now) for leaving in old)
        case _:
            return False


def _revisions(pods: Sequence[Object]) -> tuple[list[Object], list[Object]]:
    """Return the living pods of the newest revision, and those of earlier ones."""
    new = pod_status.of_newest_revision(pods)
    return new, [pod for pod in pods if pod_status.is_living(pod) and pod not in new]


def _drains_first(deployment: Object) -> bool:
    strategy: Mapping[str, Any] = deployment["spec"].get("strategy", {}).get("rollingUpdate") or {}
    return strategy.get("maxSurge") == 0


def _is_complete(deployment: Object) -> bool:
    """Whether the Deployment's controller has seen the spec, and every replica is new and can answer."""
    status, replicas = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    counts = {status.get(count, 0) for count in ("replicas", "updatedReplicas", "availableReplicas")}
    return counts == {replicas} and status.get("observedGeneration") == deployment["metadata"].get("generation")


def _has_no_place(pod: Object, now: str) -> bool:
    return pod_status.is_unschedulable(pod) and _seconds_without_place(pod, now) >= BLOCKED_SECONDS


def _seconds_without_place(pod: Object, now: str) -> float:
    return seconds_between(pod_status.condition(pod, "PodScheduled").get("lastTransitionTime") or now, now)


def _makes_room(old: Object, new: Object) -> bool:
    """Whether what an old pod gives back is all that a new one lacks, on a node that takes both."""
    words = pod_status.condition(new, "PodScheduled").get("message", "")
    lacking = _WANTING.findall(words)
    if not lacking and _WANTING_CLAIM not in words:
        return False
    same_nodes = all(old["spec"].get(field) == new["spec"].get(field) for field in _PLACEMENT)
    return same_nodes and all(_requested(new, resource) <= _requested(old, resource) for resource in lacking)


def _requested(pod: Object, resource: str) -> Decimal:
    given = (container.get("resources", {}) for container in pod["spec"]["containers"])
    amounts = ({**of.get("limits", {}), **of.get("requests", {})}.get(resource, 0) for of in given)
    return sum((quantity(amount) or Decimal(0) for amount in amounts), Decimal(0))
