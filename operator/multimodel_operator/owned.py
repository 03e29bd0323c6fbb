"""What the objects of a MultiModel have in common: their owner, labels, Deployments and ports; pure."""

from dataclasses import dataclass
from typing import Any

from multimodel_api import names
from multimodel_operator.objects import Key, Kind, Object

PORT_NAME = "http"

DRAIN_SECONDS = 600
"""How long running streams may take to finish in a pod that is going away; one without any goes at once."""
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


def labels(owner: Owner, component: names.Component, model: str | None = None) -> dict[str, str]:
    """Return the labels of an object and of its pods."""
    return {
        "app.kubernetes.io/name": "multimodel",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        **selector_of(owner, component, model),
    }


def selector_of(owner: Owner, component: names.Component, model: str | None = None) -> dict[str, str]:
    """Return the labels that select a component's pods, or one model's."""
    selector = {names.LABEL_INSTANCE: owner.key.name, names.LABEL_COMPONENT: component.value}
    return selector if model is None else selector | {names.LABEL_MODEL: model}


def owned_object(owner: Owner, kind: Kind, name: str, own_labels: dict[str, str], **fields: Any) -> dict[str, Any]:
    """Return an object in the MultiModel's namespace that belongs to it."""
    metadata = {
        "name": name,
        "namespace": owner.key.namespace,
        "labels": own_labels,
        "ownerReferences": [owner.reference()],
    }
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **fields}


def deployment_spec(selector: dict[str, str], pod_labels: dict[str, str], pod_spec: Object) -> dict[str, Any]:
    """Return the spec of a Deployment that starts a new pod before it ends an old one; without `replicas`."""
    return {
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": selector},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {"metadata": {"labels": pod_labels}, "spec": pod_spec},
    }


def container_port(number: int) -> dict[str, Any]:
    """Return the port of a pod's container."""
    return {"name": PORT_NAME, "containerPort": number, "protocol": "TCP"}


def service_port(number: int) -> dict[str, Any]:
    """Return the port of a Service, by which its pods' port is reached."""
    return {"name": PORT_NAME, "port": number, "targetPort": PORT_NAME, "protocol": "TCP"}
