"""Reads from Deployments and pods what scaling and residency decide upon."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from multimodel_api import devices, names, pod_status
from multimodel_api.manifest import MultiModelSpec
from multimodel_api.names import Component
from multimodel_api.pod_failures import pod_failure
from multimodel_api.timestamps import moment
from multimodel_operator import objects
from multimodel_operator.load_samples import RouterPod, Sample
from multimodel_operator.objects import Object, Observed, label_of, name_of
from multimodel_operator.residency import Tenant

LATE_SECONDS = 30.0
"""A pod that should have ended so long ago is on a node that is lost, and holds no place."""


def router_pods(observed: Observed, spec: MultiModelSpec, now: float) -> list[RouterPod]:
    """Return the routers that may have requests: also those that go away, and still have answers to finish."""
    scheme = "https" if spec.router.tls else "http"
    return [
        RouterPod(
            name=name_of(pod),
            url=f"{scheme}://{_in_url(pod['status']['podIP'])}:{names.ROUTER_PORT}/metrics",
            began=_began(pod),
            must_answer=_ready_since(pod) is not None or _is_ending(pod),
        )
        for pod in observed.pods
        if label_of(pod, names.LABEL_COMPONENT) == Component.ROUTER and _runs(pod, now) and pod["status"].get("podIP")
    ]


def tenants(observed: Observed, now: float) -> list[Tenant]:
    """Return the models that have a Deployment or pods, listed in the spec or not, without what only routers know."""
    deployments = {
        model: child
        for child in observed.children
        if child["kind"] == objects.DEPLOYMENT.name and (model := label_of(child, names.LABEL_MODEL))
    }
    running: dict[str, list[Object]] = {model: [] for model in deployments}
    for pod in observed.pods:
        if (model := label_of(pod, names.LABEL_MODEL)) and _runs(pod, now):
            running.setdefault(model, []).append(pod)
    return [_tenant(model, deployments.get(model), pods) for model, pods in running.items()]


def with_loads(found: Iterable[Tenant], sample: Sample) -> list[Tenant]:
    """Return the models with what the routers know of them."""
    return [
        replace(tenant, in_flight=counted.in_flight, last_used=sample.at if counted.in_flight else counted.last_request)
        for tenant in found
        for counted in [sample.of(tenant.name)]
    ]


def idle_since(tenant: Tenant) -> float | None:
    """Return when a model was last used or got ready, None for one that is not ready."""
    return None if tenant.ready_since is None else max(tenant.ready_since, tenant.last_used)


def _tenant(name: str, deployment: Object | None, own: Sequence[Object]) -> Tenant:
    replicas = 0 if deployment is None or _is_ending(deployment) else deployment["spec"].get("replicas", 1)
    staying = [pod for pod in own if replicas and not _is_ending(pod)]
    gated = [pod for pod in staying if _is_gated(pod)]
    ready = [since for pod in staying if (since := _ready_since(pod)) is not None]
    waiting = [pod for pod in staying if not _has_node(pod)]
    return Tenant(
        name=name,
        replicas=replicas,
        leaving=any(not _is_gated(pod) for pod in own if pod not in staying),
        gated=tuple(name_of(pod) for pod in gated),
        free=tuple(name_of(pod) for pod in staying if pod not in gated),
        asked_at=min((_seconds(pod["metadata"]["creationTimestamp"]) for pod in waiting), default=0.0),
        ready_since=min(ready, default=None),
        starved_of=frozenset() if ready else frozenset(name for pod in waiting for name in devices.short_of(pod)),
        devices=frozenset(name for pod in own for name in devices.devices_of(pod)),
        failing=pod_failure(staying) is not None,
    )


def _runs(pod: Object, now: float) -> bool:
    """Return whether a pod runs or will; one that ended, or should have long ago, does not."""
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return False
    return not _is_ending(pod) or now < _seconds(pod["metadata"]["deletionTimestamp"]) + LATE_SECONDS


def _is_ending(found: Object) -> bool:
    return "deletionTimestamp" in found["metadata"]


def _is_gated(pod: Object) -> bool:
    return any(gate["name"] == names.RESIDENCY_GATE for gate in pod.get("spec", {}).get("schedulingGates") or [])


def _has_node(pod: Object) -> bool:
    return bool(pod.get("spec", {}).get("nodeName"))


def _ready_since(pod: Object) -> float | None:
    ready = pod_status.condition(pod, "Ready")
    return _seconds(ready["lastTransitionTime"]) if ready.get("status") == "True" else None


def _began(pod: Object) -> float:
    """Return when the pod's container began, or without one the pod."""
    states = [container.get("state") or {} for container in pod["status"].get("containerStatuses") or []]
    began = [state["running"]["startedAt"] for state in states if "running" in state]
    return _seconds(max(began, default=pod["status"].get("startTime") or pod["metadata"]["creationTimestamp"]))


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _seconds(time: str) -> float:
    """Return a Kubernetes time in seconds since the epoch."""
    return moment(time).timestamp()
