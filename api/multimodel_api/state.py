"""The state of a model as a pure function of what the fleet shows; nobody remembers it."""

from enum import StrEnum

from multimodel_api.failures import LoadFailure


class ModelState(StrEnum):
    """The statuses of the lifecycle routes."""

    LOADED = "loaded"
    UNLOADED = "unloaded"
    RELOADING = "reloading"
    NOT_FOUND = "not_found"
    NO_LOADER_CONFIG = "no_loader_config"
    INTERNAL_ERROR = "internal_error"


def model_state(*, desired_replicas: int | None, ready_replicas: int, failure: LoadFailure | None) -> ModelState:
    """Return the state of a listed model.

    `desired_replicas` is None when nothing exists that could be scaled (no Deployment, no launch command).
    A failure counts only while replicas are wanted and none is ready: a model that serves is loaded.
    """
    if desired_replicas is None:
        return ModelState.NO_LOADER_CONFIG
    if desired_replicas == 0:
        return ModelState.UNLOADED
    if ready_replicas > 0:
        return ModelState.LOADED
    return ModelState.INTERNAL_ERROR if failure else ModelState.RELOADING
