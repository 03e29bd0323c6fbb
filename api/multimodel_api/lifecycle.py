"""The lifecycle routes' wire types: unload, reload, status, and the model cards of `/v1/models`."""

from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from multimodel_api.failures import LoadFailure
from multimodel_api.progress import LoadProgress
from multimodel_api.state import ModelState

HTTP_STATUS: dict[ModelState, HTTPStatus] = {
    ModelState.LOADED: HTTPStatus.OK,
    ModelState.UNLOADED: HTTPStatus.OK,
    ModelState.RELOADING: HTTPStatus.OK,
    ModelState.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ModelState.NO_LOADER_CONFIG: HTTPStatus.CONFLICT,
    ModelState.INTERNAL_ERROR: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The HTTP status that goes with each state in a lifecycle reply."""


MAX_REASON = 256
"""Characters of the reason that a caller gives."""


class LifecycleRequest(BaseModel):
    """Body of `POST /v1/models/unload|reload|status`.

    `drain_seconds` is how long an unload lets running requests take; `reason` is kept with the command.
    """

    model_config = ConfigDict(strict=True)

    model_id: str = Field(min_length=1)
    drain_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    reason: str | None = Field(None, max_length=MAX_REASON)


class LifecycleReply(BaseModel):
    """Answer of the lifecycle routes; `error` only beside `no_loader_config` and `internal_error`."""

    model_id: str
    status: ModelState
    error: str | None = None


class ModelCard(BaseModel):
    """One entry of `/v1/models`; `default` carries no status, a single model's page carries the rest as well."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["local"] = "local"
    status: ModelState | None = None
    canonical_id: str | None = None
    progress: LoadProgress | None = None
    failure: LoadFailure | None = None


class ModelList(BaseModel):
    """Answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
