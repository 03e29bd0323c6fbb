"""How far a load has come: the document that a model server serves at `names.PROGRESS_PATH`."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from multimodel_api.failures import LoadFailure


class LoadPhase(StrEnum):
    """The phases of a load, in order; `failed` ends a load from any of them."""

    STARTING = "starting"
    DOWNLOADING = "downloading"
    READING_WEIGHTS = "reading_weights"
    WARMING_UP = "warming_up"
    READY = "ready"
    FAILED = "failed"


class LoadProgress(BaseModel):
    """The phase a load is in, bytes done of bytes known in that phase, and seconds spent in each phase so far."""

    model_config = ConfigDict(frozen=True)

    phase: LoadPhase = LoadPhase.STARTING
    bytes_done: int = 0
    bytes_total: int = 0
    seconds: dict[LoadPhase, float] = {}
    failure: LoadFailure | None = None
