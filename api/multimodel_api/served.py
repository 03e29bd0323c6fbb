"""Under which ids models are served while the spec is ahead of what is loaded.

An id follows the spec only when its new model can answer: the operator decides when, and says so in the status; routers
serve what it says. Without a status the spec alone counts.
"""

from collections.abc import Mapping
from typing import NamedTuple

from multimodel_api.manifest import GgufSource, HubSource, Model, MultiModelSpec
from multimodel_api.status import ModelStatus, MultiModelStatus


class Identity(NamedTuple):
    """What a model server says of itself: the id in its replies, and which model it runs."""

    id: str
    canonical_id: str


def identity_of(model: Model) -> Identity:
    """Return the identity that the spec gives a model."""
    return Identity(model.api_id, model.canonical_id)


def published(status: MultiModelStatus) -> dict[str, Identity]:
    """Return the identities that a status tells, by the names of their models."""
    return {model.name: Identity(model.id, model.canonical_id) for model in status.models}


def as_served(spec: MultiModelSpec, status: MultiModelStatus) -> MultiModelSpec:
    """Return the spec as its models are served now.

    A model that has left the spec stays in it for as long as the status shows it: another takes its id over.
    """
    listed = {model.name for model in spec.models}
    leaving = [_leaving(model) for model in status.models if model.name not in listed]
    served = with_identities(spec, published(status))
    models = [*served.models, *leaving]
    told = next((model.api_id for model in models if model.api_id == status.default_model), None)
    of_spec = next(model.api_id for model in served.models if model.name == spec.default.name)
    return spec.model_copy(update={"models": models, "default_model": told or of_spec})


def with_identities(spec: MultiModelSpec, identities: Mapping[str, Identity]) -> MultiModelSpec:
    """Return the spec with other identities for the models that are named."""
    models = [_with_identity(model, identities.get(model.name, identity_of(model))) for model in spec.models]
    return spec.model_copy(update={"models": models})


def _with_identity(model: Model, identity: Identity) -> Model:
    if identity == identity_of(model):
        return model
    source: HubSource | GgufSource = getattr(model, model.kind)
    field = "quantized_model_id" if isinstance(source, GgufSource) else "model_id"
    alias = None if identity.id == identity.canonical_id else identity.id
    served = source.model_copy(update={field: identity.canonical_id})
    return model.model_copy(update={"alias": alias, model.kind: served})


def _leaving(model: ModelStatus) -> Model:
    alias = None if model.id == model.canonical_id else model.id
    return Model(name=model.name, alias=alias, plain=HubSource(model_id=model.canonical_id))
