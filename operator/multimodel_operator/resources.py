"""Builds the Kubernetes objects that a MultiModel needs; pure."""

from collections.abc import Sequence

from multimodel_api.manifest import Model, MultiModelSpec
from multimodel_operator.model_resources import model_deployment, model_service
from multimodel_operator.owned import Child, Owner
from multimodel_operator.policies import disruption_budgets, network_policies
from multimodel_operator.router_resources import router_deployment, router_rights, router_service
from multimodel_operator.settings import Images


def children(
    owner: Owner,
    spec: MultiModelSpec,
    images: Images,
    *,
    with_router: bool = True,
    metrics_namespaces: Sequence[str] = (),
) -> list[Child]:
    """Return every object that should exist, in the order of creation.

    `with_router` is whether routers may run; pods of `metrics_namespaces` may reach the model servers.
    """
    loadable = [model for model in spec.models if model.loadable]
    wanted = [*router_rights(owner, loadable), *network_policies(owner, metrics_namespaces), router_service(owner)]
    wanted += [model_service(owner, model) for model in loadable]
    wanted += disruption_budgets(owner, spec.router, loadable)
    first = _loaded_first(spec, loadable)
    wanted += [
        model_deployment(owner, spec, model, images, replicas=model.scaling.min_replicas if model.name in first else 0)
        for model in loadable
    ]
    return [*wanted, router_deployment(owner, spec, images)] if with_router else wanted


def _loaded_first(spec: MultiModelSpec, loadable: Sequence[Model]) -> set[str]:
    """Return the models that are created loaded: as many as may be, the default one before the others."""
    wanted = [model.name for model in loadable if model.scaling.min_replicas]
    wanted.sort(key=lambda name: name != spec.default.name)
    return set(wanted[: spec.residency.max_loaded])
