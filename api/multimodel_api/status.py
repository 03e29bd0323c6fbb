"""The status of a MultiModel: what the operator writes and everybody reads."""

from typing import Annotated, Literal

from pydantic import Field

from multimodel_api import names
from multimodel_api.failures import FailureReason
from multimodel_api.manifest import Document
from multimodel_api.state import ModelState


class Condition(Document):
    """A Kubernetes condition."""

    type: names.ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(max_length=1024)
    message: str = Field(max_length=32768)
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})
    observed_generation: int


class ModelStatus(Document):
    """What is known of one model."""

    name: str
    id: str
    canonical_id: str
    state: ModelState
    reason: FailureReason | None = None
    message: str | None = Field(None, max_length=1024)
    replicas: int = 0
    ready_replicas: int = 0


class MultiModelStatus(Document):
    """What runs."""

    observed_generation: int | None = None
    conditions: Annotated[
        list[Condition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []
    default_model: str | None = None
    url: str | None = None
    loaded: str | None = Field(None, description="Loaded models of all, for example 1/2.")
    models: Annotated[
        list[ModelStatus],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = []
