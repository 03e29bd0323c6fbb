"""Builds the Kubernetes objects that a MultiModel needs; pure.

A model's Deployment carries no `replicas`: they count once, at its creation; afterwards others scale it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multimodel_api import names
from multimodel_api.launch import MODULE as SERVER_MODULE
from multimodel_api.launch import server_arguments
from multimodel_api.manifest import Model, MultiModelSpec
from multimodel_operator import objects, pods
from multimodel_operator.objects import Key, Kind, Object
from multimodel_operator.settings import Images

ROUTER_MODULE = "multimodel_router"
PORT_NAME = "http"

DRAIN_SECONDS = 30
"""How long running streams may take to finish in a pod that is going away."""
ROUTER_PRE_STOP_SECONDS = 5
"""How long a router keeps accepting after its endpoint is removed: kube-proxies learn of it late."""
MARGIN_SECONDS = 15


@dataclass(frozen=True)
class Child:
    """An object to keep as `document` says; `initial_replicas` counts only for its creation."""

    document: Object
    initial_replicas: int | None = None


@dataclass(frozen=True)
class Owner:
    """The MultiModel that children belong to."""

    key: Key
    uid: str

    def reference(self) -> dict[str, Any]:
        """Return the owner reference by which the garbage collector finds the children."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": self.key.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


def children(owner: Owner, spec: MultiModelSpec, images: Images) -> list[Child]:
    """Return every object that should exist, in the order of creation."""
    loadable = [model for model in spec.models if model.loadable]
    wanted = [*_router_rights(owner, loadable), _router_service(owner)]
    wanted += [model_service(owner, model) for model in loadable]
    wanted += [model_deployment(owner, spec, model, images) for model in loadable]
    return [*wanted, _router_deployment(owner, spec, images)]


def router_url(key: Key) -> str:
    """Return the base URL for OpenAI clients inside the cluster."""
    return f"http://{names.router_name(key.name)}.{key.namespace}.svc:{names.ROUTER_PORT}/v1"


def labels(owner: Owner, component: names.Component, model: str | None = None) -> dict[str, str]:
    """Return the labels of an object and of its pods."""
    return {
        "app.kubernetes.io/name": "multimodel",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        **_selector(owner, component, model),
    }


def _selector(owner: Owner, component: names.Component, model: str | None = None) -> dict[str, str]:
    selector = {names.LABEL_INSTANCE: owner.key.name, names.LABEL_COMPONENT: component.value}
    return selector if model is None else selector | {names.LABEL_MODEL: model}


def _object(owner: Owner, kind: Kind, name: str, own_labels: dict[str, str], **fields: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": owner.key.namespace,
        "labels": own_labels,
        "ownerReferences": [owner.reference()],
    }
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **fields}


def model_service(owner: Owner, model: Model) -> Child:
    """Return the headless Service whose EndpointSlices tell the router where a model is ready."""
    own_labels = labels(owner, names.Component.MODEL_SERVER, model.name)
    spec = {
        "clusterIP": "None",
        "selector": _selector(owner, names.Component.MODEL_SERVER, model.name),
        "ports": [_service_port(names.MODEL_SERVER_PORT)],
    }
    name = names.model_object_name(owner.key.name, model.name)
    return Child(_object(owner, objects.SERVICE, name, own_labels, spec=spec))


def model_deployment(owner: Owner, spec: MultiModelSpec, model: Model, images: Images) -> Child:
    """Return the Deployment of a loadable model, created with `scaling.minReplicas`."""
    own_labels = labels(owner, names.Component.MODEL_SERVER, model.name)
    arguments = server_arguments(
        model,
        spec.engine_of(model),
        host="0.0.0.0",  # noqa: S104  (a pod answers its kubelet and the routers)
        port=names.MODEL_SERVER_PORT,
        failure_file=pods.TERMINATION_MESSAGE_PATH,
    )
    container = {
        "name": names.Component.MODEL_SERVER.value,
        "image": images.modelserver,
        "imagePullPolicy": images.pull_policy,
        "command": ["python", "-m", SERVER_MODULE],
        "args": pods.literal_arguments([*arguments, f"--drain-seconds={DRAIN_SECONDS}"]),
        "ports": [_container_port(names.MODEL_SERVER_PORT)],
        "resources": model.resources.model_dump(exclude_defaults=True),
        "env": pods.environment({"HOME": pods.TEMPORARY_FOLDER, "HF_HOME": pods.HUB_CACHE_FOLDER}, model.env),
        "volumeMounts": pods.mounts(pods.SERVER_FOLDERS, model.volume_mounts),
        **pods.probes(PORT_NAME),
    }
    pod_spec = pods.restricted(container, grace_seconds=DRAIN_SECONDS + MARGIN_SECONDS) | {
        "automountServiceAccountToken": False,
        "volumes": pods.volumes(pods.SERVER_FOLDERS, model.volumes),
    }
    name = names.model_object_name(owner.key.name, model.name)
    selector = _selector(owner, names.Component.MODEL_SERVER, model.name)
    deployment = _deployment_spec(selector, own_labels, pod_spec)
    return Child(
        _object(owner, objects.DEPLOYMENT, name, own_labels, spec=deployment),
        initial_replicas=model.scaling.min_replicas,
    )


def _router_rights(owner: Owner, loadable: Sequence[Model]) -> list[Child]:
    """Return the router's ServiceAccount and its rights: to see this MultiModel and its pods, to scale its models."""
    own_labels = labels(owner, names.Component.ROUTER)
    name = names.router_name(owner.key.name)
    look = ["list", "watch"]
    rules = [
        {
            "apiGroups": [names.GROUP],
            "resources": [names.PLURAL],
            "resourceNames": [owner.key.name],
            "verbs": look,
        },
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": look},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": look},
        {"apiGroups": [""], "resources": ["pods"], "verbs": look},
    ]
    if loadable:  # a rule without resourceNames would allow every Deployment of the namespace
        rules.append(
            {
                "apiGroups": ["apps"],
                "resources": ["deployments/scale"],
                "resourceNames": [names.model_object_name(owner.key.name, model.name) for model in loadable],
                "verbs": ["patch"],
            }
        )
    role_ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": objects.ROLE.name, "name": name}
    subject = {"kind": objects.SERVICE_ACCOUNT.name, "name": name, "namespace": owner.key.namespace}
    return [
        Child(_object(owner, objects.SERVICE_ACCOUNT, name, own_labels)),
        Child(_object(owner, objects.ROLE, name, own_labels, rules=rules)),
        Child(_object(owner, objects.ROLE_BINDING, name, own_labels, roleRef=role_ref, subjects=[subject])),
    ]


def _router_service(owner: Owner) -> Child:
    spec = {
        "selector": _selector(owner, names.Component.ROUTER),
        "ports": [_service_port(names.ROUTER_PORT)],
    }
    own_labels = labels(owner, names.Component.ROUTER)
    return Child(_object(owner, objects.SERVICE, names.router_name(owner.key.name), own_labels, spec=spec))


def _router_deployment(owner: Owner, spec: MultiModelSpec, images: Images) -> Child:
    own_labels = labels(owner, names.Component.ROUTER)
    name = names.router_name(owner.key.name)
    container = {
        "name": names.Component.ROUTER.value,
        "image": images.router,
        "imagePullPolicy": images.pull_policy,
        "command": ["python", "-m", ROUTER_MODULE],
        "args": [
            "--fleet=kubernetes",
            f"--multimodel={owner.key.name}",
            f"--namespace={owner.key.namespace}",
            "--host=0.0.0.0",
            f"--port={names.ROUTER_PORT}",
            f"--drain-seconds={DRAIN_SECONDS}",
        ],
        "ports": [_container_port(names.ROUTER_PORT)],
        "lifecycle": {"preStop": {"sleep": {"seconds": ROUTER_PRE_STOP_SECONDS}}},
        "env": pods.environment({"HOME": pods.TEMPORARY_FOLDER}, ()),
        "volumeMounts": pods.mounts(pods.ROUTER_FOLDERS, ()),
        **pods.probes(PORT_NAME),
    }
    pod_spec = pods.restricted(container, grace_seconds=ROUTER_PRE_STOP_SECONDS + DRAIN_SECONDS + MARGIN_SECONDS) | {
        "serviceAccountName": name,
        "volumes": pods.volumes(pods.ROUTER_FOLDERS, ()),
    }
    deployment = _deployment_spec(_selector(owner, names.Component.ROUTER), own_labels, pod_spec)
    deployment["replicas"] = spec.router.replicas
    return Child(_object(owner, objects.DEPLOYMENT, name, own_labels, spec=deployment))


def _deployment_spec(selector: dict[str, str], pod_labels: dict[str, str], pod_spec: Object) -> dict[str, Any]:
    return {
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": selector},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {"metadata": {"labels": pod_labels}, "spec": pod_spec},
    }


def _container_port(number: int) -> dict[str, Any]:
    return {"name": PORT_NAME, "containerPort": number, "protocol": "TCP"}


def _service_port(number: int) -> dict[str, Any]:
    return {"name": PORT_NAME, "port": number, "targetPort": PORT_NAME, "protocol": "TCP"}
