"""Builds the router's objects: its rights, its Service and its Deployment; pure."""

from collections.abc import Sequence
from typing import Any

from multimodel_api import names
from multimodel_api.launch import router_arguments
from multimodel_api.manifest import Model, MultiModelSpec
from multimodel_api.names import Component
from multimodel_api.router_spec import RouterSpec
from multimodel_operator import objects, pods
from multimodel_operator.objects import Key
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

MODULE = "multimodel_router"
API_KEYS_FOLDER = "/etc/multimodel/api-keys"
TLS_FOLDER = "/etc/multimodel/tls"

SCHEME_ANNOTATION = "prometheus.io/scheme"
"""How those who read metrics learn that a router speaks HTTPS."""

LAME_DUCK_SECONDS = 5
"""How long a router keeps accepting after its endpoint is removed: kube-proxies learn of it late."""

_RBAC = "rbac.authorization.k8s.io"


def router_url(key: Key, router: RouterSpec) -> str:
    """Return the base URL for OpenAI clients inside the cluster."""
    scheme = "https" if router.tls else "http"
    return f"{scheme}://{names.router_name(key.name)}.{key.namespace}.svc:{names.ROUTER_PORT}/v1"


def mounted_secrets(router: RouterSpec) -> dict[str, str]:
    """Return the Secrets that the router's pods mount, by the folder they are mounted on."""
    found = {API_KEYS_FOLDER: router.api_keys, TLS_FOLDER: router.tls}
    return {folder: part.secret_name for folder, part in found.items() if part}


def router_rights(owner: Owner, loadable: Sequence[Model]) -> list[Child]:
    """Return the router's ServiceAccount and its rights.

    It may see this MultiModel and the namespace's pods, scale its models, and write its status.
    """
    own_labels = labels(owner, Component.ROUTER)
    name = names.router_name(owner.key.name)
    role_ref = {"apiGroup": _RBAC, "kind": objects.ROLE.name, "name": name}
    subject = {"kind": objects.SERVICE_ACCOUNT.name, "name": name, "namespace": owner.key.namespace}
    return [
        Child(owned_object(owner, objects.SERVICE_ACCOUNT, name, own_labels)),
        Child(owned_object(owner, objects.ROLE, name, own_labels, rules=_rules(owner, loadable))),
        Child(owned_object(owner, objects.ROLE_BINDING, name, own_labels, roleRef=role_ref, subjects=[subject])),
    ]


def _rules(owner: Owner, loadable: Sequence[Model]) -> list[dict[str, Any]]:
    look = ["list", "watch"]
    rules = [
        _rule(names.GROUP, names.PLURAL, look, [owner.key.name]),
        _rule(names.GROUP, f"{names.PLURAL}/status", ["patch"], [owner.key.name]),
        _rule("apps", "deployments", look),
        _rule("discovery.k8s.io", "endpointslices", look),
        _rule("", "pods", look),
    ]
    if loadable:  # a rule without resourceNames would allow every Deployment of the namespace
        scaled = [names.model_object_name(owner.key.name, model.name) for model in loadable]
        rules.append(_rule("apps", "deployments/scale", ["patch"], scaled))
    return rules


def _rule(group: str, resource: str, verbs: Sequence[str], only: Sequence[str] = ()) -> dict[str, Any]:
    rule = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
    return rule | {"resourceNames": list(only)} if only else rule


def router_service(owner: Owner) -> Child:
    """Return the Service that clients call."""
    spec = {"selector": selector_of(owner, Component.ROUTER), "ports": [service_port(names.ROUTER_PORT)]}
    own_labels = labels(owner, Component.ROUTER)
    return Child(owned_object(owner, objects.SERVICE, names.router_name(owner.key.name), own_labels, spec=spec))


def router_deployment(owner: Owner, spec: MultiModelSpec, images: Images) -> Child:
    """Return the router's Deployment."""
    router = spec.router
    own_labels = labels(owner, Component.ROUTER)
    name = names.router_name(owner.key.name)
    secrets = mounted_secrets(router)
    pod_spec = pods.restricted(
        _container(owner, router, images), grace_seconds=LAME_DUCK_SECONDS + DRAIN_SECONDS + MARGIN_SECONDS
    ) | {
        "serviceAccountName": name,
        "volumes": pods.volumes(pods.ROUTER_FOLDERS, pods.secret_volumes(secrets)),
        "topologySpreadConstraints": [_spread(owner)],
        **pods.placement(router),
    }
    if spec.image_pull_secrets:
        pod_spec["imagePullSecrets"] = pods.image_pull_secrets(spec)
    deployment = deployment_spec(selector_of(owner, Component.ROUTER), own_labels, pod_spec)
    deployment["replicas"] = router.replicas
    if router.tls:
        deployment["template"]["metadata"]["annotations"] = {SCHEME_ANNOTATION: "https"}
    return Child(owned_object(owner, objects.DEPLOYMENT, name, own_labels, spec=deployment))


def _spread(owner: Owner) -> dict[str, Any]:
    """Return the wish that the routers of one revision run on different nodes."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector_of(owner, Component.ROUTER)},
        "matchLabelKeys": ["pod-template-hash"],
    }


def _container(owner: Owner, router: RouterSpec, images: Images) -> dict[str, Any]:
    container = {
        "name": Component.ROUTER.value,
        "image": images.router,
        "imagePullPolicy": images.pull_policy,
        "command": ["python", "-m", MODULE],
        "args": pods.literal_arguments(_arguments(owner, router)),
        "ports": [container_port(names.ROUTER_PORT)],
        "env": pods.environment({"HOME": {"value": pods.TEMPORARY_FOLDER}}, ()),
        "volumeMounts": pods.mounts(pods.ROUTER_FOLDERS, pods.secret_mounts(mounted_secrets(router))),
        **pods.probes(PORT_NAME, https=router.tls is not None),
    }
    if router.resources:
        container["resources"] = router.resources.model_dump(exclude_defaults=True)
    return container


def _arguments(owner: Owner, router: RouterSpec) -> list[str]:
    arguments = [
        "--fleet=kubernetes",
        f"--multimodel={owner.key.name}",
        f"--namespace={owner.key.namespace}",
        "--host=0.0.0.0",
        f"--port={names.ROUTER_PORT}",
        f"--lame-duck-seconds={LAME_DUCK_SECONDS}",
        f"--drain-seconds={DRAIN_SECONDS}",
        *router_arguments(router),
    ]
    if router.workers:
        arguments.append(f"--workers={router.workers}")
    if router.api_keys:
        arguments.append(f"--api-keys={API_KEYS_FOLDER}")
    if router.tls:
        arguments += [f"--tls-certificate={TLS_FOLDER}/tls.crt", f"--tls-key={TLS_FOLDER}/tls.key"]
    return arguments
