"""Kubernetes objects as the API server gives them (JSON documents), and the kinds the operator deals with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from multimodel_api import names

Object = Mapping[str, Any]


class Key(NamedTuple):
    """Which MultiModel."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Kind:
    """A kind of object, and where the API server keeps it."""

    api_version: str
    name: str
    plural: str


MULTIMODEL = Kind(names.API_VERSION, names.KIND, names.PLURAL)
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
ROLE = Kind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDING = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
SERVICE = Kind("v1", "Service", "services")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
POD_DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
POD = Kind("v1", "Pod", "pods")
NODE = Kind("v1", "Node", "nodes")
EVENT = Kind("events.k8s.io/v1", "Event", "events")

CHILD_KINDS = (
    SERVICE_ACCOUNT,
    ROLE,
    ROLE_BINDING,
    NETWORK_POLICY,
    SERVICE,
    POD_DISRUPTION_BUDGET,
    DEPLOYMENT,
)
"""Kinds of a MultiModel's children, in the order they are created."""

_BY_NAME = {kind.name: kind for kind in CHILD_KINDS}


def kind_of(child: Object) -> Kind:
    """Return the kind of one of a MultiModel's children."""
    return _BY_NAME[child["kind"]]


def name_of(target: Object) -> str:
    """Return an object's name."""
    name: str = target["metadata"]["name"]
    return name


def label_of(target: Object, label: str) -> str | None:
    """Return the value of one of an object's labels."""
    value: str | None = target["metadata"].get("labels", {}).get(label)
    return value


def described(target: Object) -> str:
    """Return an object's kind and name for people."""
    return f"{target['kind']} {name_of(target)}"


@dataclass(frozen=True)
class Observed:
    """A MultiModel and all that belongs to it, as just listed."""

    multimodel: Object
    children: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()

    def child(self, kind: Kind, name: str) -> Object | None:
        """Return the child of that kind and name, if it exists."""
        return next((c for c in self.children if c["kind"] == kind.name and name_of(c) == name), None)

    def replacing(self, kind: Kind, name: str, live: Object | None) -> "Observed":
        """Return this with one child as it is now, None for gone."""
        others = [c for c in self.children if (c["kind"], name_of(c)) != (kind.name, name)]
        return replace(self, children=tuple([*others, live] if live is not None else others))
