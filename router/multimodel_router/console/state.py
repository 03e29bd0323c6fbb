"""The document of `/console/state`; pure."""

from pydantic import BaseModel

from multimodel_api.failures import LoadFailure
from multimodel_api.manifest import Model
from multimodel_api.progress import LoadProgress
from multimodel_api.state import ModelState
from multimodel_router.console.traffic import Traffic
from multimodel_router.fleet import ModelView

TEXT_KINDS = frozenset({"plain", "vision", "gguf"})
"""The source kinds whose models hold a conversation."""


class ConsoleModel(BaseModel):
    """One model as the page shows it; `wanted` is None when nothing exists that could be scaled."""

    name: str
    id: str
    canonical_id: str
    default: bool
    chats: bool
    state: ModelState
    ready: int
    wanted: int | None
    progress: LoadProgress | None
    last_load: LoadProgress | None
    failure: LoadFailure | None
    traffic: Traffic


class ConsoleState(BaseModel):
    """The models that the caller may see, in the order of the manifest."""

    models: list[ConsoleModel]


def console_model(
    model: Model, view: ModelView, *, default: bool, last_load: LoadProgress | None, traffic: Traffic
) -> ConsoleModel:
    """Return what the page shows of one model."""
    runs = view.state is not ModelState.UNLOADED  # the servers of an unloaded model may still be about to end
    return ConsoleModel(
        name=model.name,
        id=model.api_id,
        canonical_id=model.canonical_id,
        default=default,
        chats=model.kind in TEXT_KINDS,
        state=view.state,
        ready=len(view.ready),
        wanted=view.desired,
        progress=view.progress if runs else None,
        last_load=last_load,
        failure=view.failure if runs else None,
        traffic=traffic,
    )
