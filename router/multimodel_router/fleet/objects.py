"""What the objects of a cluster say about a model; pure functions over objects as the API server sends them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from multimodel_api import names
from multimodel_api.devices import may_get_room
from multimodel_api.manifest import Model
from multimodel_api.pod_failures import pod_failure
from multimodel_api.progress import LoadProgress
from multimodel_api.status import LastCommand, MultiModelStatus
from multimodel_router.fleet import Endpoint, ModelView, unsupported_source

Object = Mapping[str, Any]

SERVICE_LABEL = "kubernetes.io/service-name"


def model_view(
    model: Model,
    deployment: Object | None,
    slices: Iterable[Object],
    pods: Sequence[Object],
    progress: LoadProgress | None,
    neighbours: Sequence[Object] = (),
) -> ModelView:
    """Return what a model's own Deployment, EndpointSlices and Pods show of it, beside those of the other models."""
    if not model.loadable:
        return ModelView(desired=None, failure=unsupported_source(model))
    if deployment is None:
        return ModelView(desired=None)
    ready = tuple(dict.fromkeys(endpoint for found in slices for endpoint in ready_endpoints(found)))
    return ModelView(
        desired=wanted_replicas(deployment),
        ready=ready,
        failure=None if may_get_room(pods, neighbours) else pod_failure(pods, neighbours),
        progress=None if ready else progress,
        waits_for=None if ready else waits_for(pods),
    )


def waits_for(pods: Sequence[Object]) -> str:
    """Return what the newest pod of a load waits for until its server can tell how far it is."""
    if not pods:
        return "waiting for its pod"
    status = max(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", "")).get("status") or {}
    scheduled: Object = next((c for c in status.get("conditions") or [] if c["type"] == "PodScheduled"), {})
    if scheduled.get("reason") == "SchedulingGated":
        return "waiting for another model to make room"
    if scheduled.get("status") != "True":
        return "scheduling"
    started = any("running" in (c.get("state") or {}) for c in status.get("containerStatuses") or [])
    return "starting the model server" if started else "pulling the image"


def status_of(multimodel: Object) -> MultiModelStatus:
    """Return what the operator says; nothing where another version of it wrote something else."""
    try:
        return MultiModelStatus.model_validate(multimodel.get("status") or {})
    except ValidationError:
        return MultiModelStatus()


def last_commands(multimodel: Object) -> dict[str, LastCommand]:
    """Return the last command of each model, as the status has it; what another version wrote is left out."""
    commands = {}
    for model in (multimodel.get("status") or {}).get("models") or []:
        try:
            commands[model["name"]] = LastCommand.model_validate(model["lastCommand"])
        except (KeyError, ValidationError):
            continue
    return commands


def failing_calls(multimodel: Object) -> set[str]:
    """Return the models of which the status says that every call fails."""
    models = (multimodel.get("status") or {}).get("models") or []
    return {model["name"] for model in models if model.get("callsFailingSince")}


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
    ports = [port["port"] for port in endpoint_slice.get("ports") or [] if port.get("port")]
    if not ports or endpoint_slice.get("addressType") == "FQDN":
        return
    for endpoint in endpoint_slice.get("endpoints") or []:
        conditions = endpoint.get("conditions") or {}
        usable = conditions.get("ready", True) and not conditions.get("terminating", False)
        if usable and endpoint.get("addresses"):
            yield Endpoint(endpoint["addresses"][0], ports[0])


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
