"""Builds one model's objects: its Service and its Deployment; pure.

A model's Deployment carries no `replicas`: they count once, at its creation; afterwards others scale it.
"""

from typing import Any

from multimodel_api import names
from multimodel_api.launch import MODULE, server_arguments
from multimodel_api.manifest import Model, MultiModelSpec
from multimodel_api.names import Component
from multimodel_api.pod_settings import Cache, HubToken
from multimodel_operator import objects, pod_template, pods
from multimodel_operator.objects import Object
from multimodel_operator.owned import (
    DRAIN_SECONDS,
    MARGIN_SECONDS,
    PORT_NAME,
    Child,
    Owner,
    container_port,
    deployment_spec,
    labels,
    owned_object,
    selector_of,
    service_port,
)
from multimodel_operator.settings import Images

GPU_RESOURCES = "nvidia.com/"
GPU_TAINT = "nvidia.com/gpu"
GPU_TOLERATION = {"key": GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"}


def model_service(owner: Owner, model: Model) -> Child:
    """Return the headless Service whose EndpointSlices tell the router where a model is ready."""
    own_labels = labels(owner, Component.MODEL_SERVER, model.name)
    spec = {
        "clusterIP": "None",
        "selector": selector_of(owner, Component.MODEL_SERVER, model.name),
        "ports": [service_port(names.MODEL_SERVER_PORT)],
    }
    name = names.model_object_name(owner.key.name, model.name)
    return Child(owned_object(owner, objects.SERVICE, name, own_labels, spec=spec))


def model_deployment(owner: Owner, spec: MultiModelSpec, model: Model, images: Images, *, replicas: int) -> Child:
    """Return the Deployment of a loadable model, created with `replicas`."""
    own_labels = labels(owner, Component.MODEL_SERVER, model.name)
    deployment = deployment_spec(
        selector_of(owner, Component.MODEL_SERVER, model.name), own_labels, _pod_spec(spec, model, images)
    )
    deployment["template"] = pod_template.patched(deployment["template"], model.pod_template)
    # A load is progress that a Deployment cannot see.
    deployment["progressDeadlineSeconds"] = model.loading.timeout_seconds + pods.START_SECONDS
    name = names.model_object_name(owner.key.name, model.name)
    return Child(owned_object(owner, objects.DEPLOYMENT, name, own_labels, spec=deployment), initial_replicas=replicas)


def _pod_spec(spec: MultiModelSpec, model: Model, images: Images) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "volumes": pods.volumes(pods.SERVER_FOLDERS, model.volumes, {pods.HUB_CACHE: _cache_source(model.cache)}),
        "imagePullSecrets": pods.image_pull_secrets(spec),
        "resourceClaims": [
            claim.model_dump(by_alias=True, exclude_none=True, exclude={"request"}) for claim in model.resource_claims
        ],
        **pods.placement(model),
        "tolerations": _tolerations(model),
        "schedulingGates": [{"name": names.RESIDENCY_GATE}] if spec.residency.max_loaded else [],
    }
    given = {name: value for name, value in fields.items() if value not in ([], None)}
    return pods.restricted(_container(spec, model, images), grace_seconds=DRAIN_SECONDS + MARGIN_SECONDS) | given


def _container(spec: MultiModelSpec, model: Model, images: Images) -> dict[str, Any]:
    arguments = server_arguments(
        model,
        spec.engine_of(model),
        host="0.0.0.0",  # noqa: S104  (a pod answers its kubelet and the routers)
        port=names.MODEL_SERVER_PORT,
        failure_file=pods.TERMINATION_MESSAGE_PATH,
    )
    container = {
        "name": Component.MODEL_SERVER.value,
        "image": images.modelserver,
        "imagePullPolicy": images.pull_policy,
        "command": ["python", "-m", MODULE],
        "args": pods.literal_arguments([*arguments, f"--drain-seconds={DRAIN_SECONDS}"]),
        "ports": [container_port(names.MODEL_SERVER_PORT)],
        "resources": _resources(model),
        "env": pods.environment(_variables(spec.hub_token_of(model)), model.env),
        "volumeMounts": pods.mounts(pods.SERVER_FOLDERS, model.volume_mounts),
        **pods.probes(PORT_NAME, start_path=names.READY_PATH, start_seconds=model.loading.timeout_seconds),
    }
    return container | ({"envFrom": model.env_from} if model.env_from else {})


def _variables(token: HubToken | None) -> dict[str, Object]:
    variables: dict[str, Object] = {
        "HOME": {"value": pods.TEMPORARY_FOLDER},
        "HF_HOME": {"value": pods.HUB_CACHE_FOLDER},
        "TRITON_CACHE_DIR": {"value": pods.KERNEL_CACHE_FOLDER},
        "XDG_CACHE_HOME": {"value": pods.HUB_CACHE_FOLDER},
    }
    if token:
        variables["HF_TOKEN"] = {"valueFrom": {"secretKeyRef": {"name": token.secret_name, "key": token.key}}}
    return variables


def _resources(model: Model) -> dict[str, Any]:
    """Return the container's resources; it gets every device that its pod claims."""
    claims = [claim.model_dump(include={"name", "request"}, exclude_none=True) for claim in model.resource_claims]
    return model.resources.model_dump(exclude_defaults=True) | ({"claims": claims} if claims else {})


def _tolerations(model: Model) -> list[Object]:
    """Return the tolerations given, and that of the GPU's taint for a model that limits GPUs and names no own."""
    wants_gpu = any(resource.startswith(GPU_RESOURCES) for resource in model.resources.limits)
    says_so = any(toleration.get("key") == GPU_TAINT for toleration in model.tolerations)
    return [*model.tolerations, GPU_TOLERATION] if wants_gpu and not says_so else list(model.tolerations)


def _cache_source(cache: Cache) -> Object:
    """Return the source of the volume for files from the Hub."""
    if cache.persistent_volume_claim:
        return {"persistentVolumeClaim": {"claimName": cache.persistent_volume_claim}}
    if cache.host_path:
        return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}
    return {"emptyDir": {} if cache.size_limit is None else {"sizeLimit": cache.size_limit}}
