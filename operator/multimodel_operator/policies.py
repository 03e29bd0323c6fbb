"""Builds what protects a MultiModel's pods: who may reach them, and how many may be evicted at once; pure."""

from collections.abc import Sequence
from typing import Any

from multimodel_api import names
from multimodel_api.manifest import Model
from multimodel_api.names import Component
from multimodel_api.router_spec import RouterSpec
from multimodel_operator import objects
from multimodel_operator.owned import PORT_NAME, Child, Owner, labels, owned_object, selector_of

_NAMESPACE_NAME = "kubernetes.io/metadata.name"


def network_policies(owner: Owner, metrics_namespaces: Sequence[str]) -> list[Child]:
    """Return who may reach the pods: everybody the routers; the models their routers and `metrics_namespaces` alone.

    The kubelet of its node reaches a pod whatever a policy says.
    """
    callers = [
        {"podSelector": {"matchLabels": selector_of(owner, Component.ROUTER)}},
        *({"namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: name}}} for name in metrics_namespaces),
    ]
    return [
        _network_policy(owner, Component.ROUTER, names.router_name(owner.key.name), {}),
        _network_policy(owner, Component.MODEL_SERVER, names.models_name(owner.key.name), {"from": callers}),
    ]


def _network_policy(owner: Owner, component: Component, name: str, callers: dict[str, Any]) -> Child:
    spec = {
        "podSelector": {"matchLabels": selector_of(owner, component)},
        "policyTypes": ["Ingress"],
        "ingress": [{**callers, "ports": [{"port": PORT_NAME, "protocol": "TCP"}]}],
    }
    return Child(owned_object(owner, objects.NETWORK_POLICY, name, labels(owner, component), spec=spec))


def disruption_budgets(owner: Owner, router: RouterSpec, loadable: Sequence[Model]) -> list[Child]:
    """Return the budgets of what may have several pods: a budget for a single one would only block a node's drain."""
    budgets = [_model_budget(owner, model) for model in loadable if _may_have_several(model)]
    return [_router_budget(owner), *budgets] if router.replicas > 1 else budgets


def _may_have_several(model: Model) -> bool:
    return model.scaling.most_replicas > 1 or model.scaling.autoscaler == "external"


def _router_budget(owner: Owner) -> Child:
    selector = selector_of(owner, Component.ROUTER)
    name = names.router_name(owner.key.name)
    return _budget(owner, name, labels(owner, Component.ROUTER), selector, minAvailable=1)


def _model_budget(owner: Owner, model: Model) -> Child:
    """Return a model's budget; with one pod left it allows its eviction."""
    selector = selector_of(owner, Component.MODEL_SERVER, model.name)
    name = names.model_object_name(owner.key.name, model.name)
    return _budget(owner, name, labels(owner, Component.MODEL_SERVER, model.name), selector, maxUnavailable=1)


def _budget(owner: Owner, name: str, own_labels: dict[str, str], selector: dict[str, str], **bound: int) -> Child:
    spec = {"selector": {"matchLabels": selector}, "unhealthyPodEvictionPolicy": "AlwaysAllow", **bound}
    return Child(owned_object(owner, objects.POD_DISRUPTION_BUDGET, name, own_labels, spec=spec))
