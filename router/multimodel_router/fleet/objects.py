"""What the objects of a cluster say about a model; pure functions over objects as the API server sends them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from multimodel_api import names
from multimodel_api.manifest import Model
from multimodel_api.pod_failures import pod_failure
from multimodel_api.progress import LoadProgress
from multimodel_router.fleet import Endpoint, ModelView, unsupported_source

Object = Mapping[str, Any]

SERVICE_LABEL = "kubernetes.io/service-name"


def model_view(
    model: Model,
    deployment: Object | None,
    slices: Iterable[Object],
    pods: Iterable[Object],
    progress: LoadProgress | None,
) -> ModelView:
    """Return what a model's own Deployment, EndpointSlices and Pods show of it."""
    if not model.loadable:
        return ModelView(desired=None, failure=unsupported_source(model))
    if deployment is None:
        return ModelView(desired=None)
    ready = tuple(dict.fromkeys(endpoint for found in slices for endpoint in ready_endpoints(found)))
    return ModelView(
        desired=wanted_replicas(deployment),
        ready=ready,
        failure=pod_failure(list(pods)),
        progress=None if ready else progress,
    )


def wanted_replicas(deployment: Object) -> int:
    """Return a Deployment's `spec.replicas`; the API server fills in 1 when it is unset."""
    replicas: int = deployment["spec"].get("replicas", 1)
    return replicas


def as_scaled(deployment: Object, scale: Object) -> dict[str, Any]:
    """Return a Deployment as it is since its `scale` has been written, so that the writer reads its own write."""
    version = {"resourceVersion": scale["metadata"]["resourceVersion"]}
    replicas = {"replicas": scale["spec"].get("replicas", 0)}
    return {
        **deployment,
        "metadata": deployment["metadata"] | version,
        "spec": deployment["spec"] | replicas,
    }


def ready_endpoints(endpoint_slice: Object) -> Iterator[Endpoint]:
    """Yield the endpoints of a slice that are ready and not going away."""
    ports = endpoint_slice.get("ports") or []
    if not ports or endpoint_slice.get("addressType") == "FQDN":
        return
    for endpoint in endpoint_slice.get("endpoints") or []:
        conditions = endpoint.get("conditions") or {}
        if conditions.get("ready", True) and not conditions.get("terminating", False):
            yield Endpoint(endpoint["addresses"][0], ports[0]["port"])


def loading_endpoint(pods: Iterable[Object]) -> Endpoint | None:
    """Return where the first pod that has an address can be asked how far it has loaded."""
    for pod in pods:
        address = (pod.get("status") or {}).get("podIP")
        if address and "deletionTimestamp" not in pod["metadata"]:
            return Endpoint(address, names.MODEL_SERVER_PORT)
    return None


def label(found: Object, key: str) -> str | None:
    """Return a label of an object."""
    value: str | None = found["metadata"].get("labels", {}).get(key)
    return value
