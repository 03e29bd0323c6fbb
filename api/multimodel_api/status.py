"""The status of a MultiModel: what the operator writes and everybody reads."""

from typing import Annotated, Literal

from pydantic import Field

from multimodel_api import names
from multimodel_api.failures import FailureReason
from multimodel_api.manifest import Document
from multimodel_api.state import ModelState


class Condition(Document):
    """A Kubernetes condition."""

    type: names.ConditionType = Field(description="Which statement this is.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the statement holds.")
    reason: str = Field(max_length=1024, description="Why, in one word of a fixed list.")
    message: str = Field(max_length=32768, description="Why, in a sentence.")
    last_transition_time: str = Field(
        description="When the status last changed.", json_schema_extra={"format": "date-time"}
    )
    observed_generation: int = Field(description="The metadata.generation that the statement is about.")


class ModelStatus(Document):
    """What is known of one model."""

    name: str = Field(description="The model's name in spec.models.")
    id: str = Field(description="The id that clients use: the alias, without one the model id.")
    canonical_id: str = Field(description="The model id; accepted beside the alias unless two models share it.")
    state: ModelState = Field(description="As the lifecycle routes say it.")
    reason: FailureReason | None = Field(None, description="Why the model, or one of its replicas, fails.")
    message: str | None = Field(None, max_length=1024, description="What failed, and what to do.")
    replicas: int = Field(0, description="Replicas that are wanted; 0 for an unloaded model.")
    ready_replicas: int = Field(0, description="Replicas that can answer.")


class MultiModelStatus(Document):
    """What runs."""

    observed_generation: int | None = Field(None, description="The metadata.generation that this status is about.")
    conditions: Annotated[
        list[Condition],
        Field(
            description="Ready, ModelsReady, RouterReady and Degraded.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    default_model: str | None = Field(None, description="The id of the model that `default` means.")
    url: str | None = Field(None, description="Base URL for OpenAI clients inside the cluster.")
    loaded: str | None = Field(None, description="Loaded models of all, for example 1/2.")
    models: Annotated[
        list[ModelStatus],
        Field(
            description="What is known of each model, in the order of spec.models.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []
