"""The status of a MultiModel: the operator writes it all, but for each model's last command, which routers write.

Each model's command has a field manager of its own. Server-side apply then keeps what any router wrote for the other
models, and nobody has to read before writing. As the fields beside a command are required, the API server refuses a
command for a model that the operator does not list (yet, or any more).
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from multimodel_api import names
from multimodel_api.document import Document
from multimodel_api.failures import FailureReason
from multimodel_api.keys import MAX_KEY_NAME
from multimodel_api.lifecycle import MAX_REASON
from multimodel_api.state import ModelState


class ConditionReason(StrEnum):
    """Reasons of conditions, beside those of `FailureReason`."""

    ALIAS_MOVING = "AliasMoving"
    ALL_READY = "AllReady"
    API_KEYS_MISSING = "ApiKeysMissing"
    EVERY_CALL_FAILS = "EveryCallFails"
    FITS = "Fits"
    INVALID_SPEC = "InvalidSpec"
    MODELS_LOADING = "ModelsLoading"
    NOT_KNOWN = "NotKnown"
    NO_FAILURE = "NoFailure"
    ROLLING_OUT = "RollingOut"
    ROLLOUT_BLOCKED = "RolloutBlocked"
    ROUTER_READY = "RouterReady"
    ROUTER_STARTING = "RouterStarting"
    SETTLED = "Settled"
    TOO_LARGE = "TooLarge"


class WaitReason(StrEnum):
    """Why a model that is wanted does not load yet though nothing fails: others have what it needs."""

    WAITING_FOR_DEVICE = "WaitingForDevice"
    WAITING_FOR_PLACE = "WaitingForPlace"


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


class CommandAction(StrEnum):
    """What was asked of a model; a wake is a request's own."""

    UNLOAD = "unload"
    RELOAD = "reload"
    WAKE = "wake"


class LastCommand(Document):
    """Who asked what of a model, when and why."""

    action: CommandAction = Field(description="What was asked: an unload, a reload, or a wake by a request.")
    by: str = Field(max_length=MAX_KEY_NAME, description="Name of the caller's API key; anonymous without keys.")
    reason: str | None = Field(None, max_length=MAX_REASON, description="Why, in the caller's words.")
    drain_seconds: float | None = Field(None, ge=0, description="How long answers that ran at an unload may take.")
    at: str = Field(description="When.", json_schema_extra={"format": "date-time"})


MAX_LOADS = 5
"""Loads of a model that its status remembers."""


class LoadSeconds(Document):
    """How long each part of a load took, in seconds; what nobody could tell is left out."""

    scheduling: float | None = Field(None, description="From the pod's creation until it had a node.")
    image: float | None = Field(None, description="From then until its container ran: volumes, network, image.")
    start: float | None = Field(None, description="Starting the server and its engine.")
    download: float | None = Field(None, description="Fetching the model from the Hub.")
    weights: float | None = Field(None, description="Reading the weights into memory.")
    warm_up: float | None = Field(None, description="The first steps, with which the engine gets ready.")


class Load(Document):
    """One load of a model that succeeded."""

    pod: str = Field(description="The pod that loaded it.")
    started_at: str = Field(
        description="When its container started, which tells a restarted one from the first.",
        json_schema_extra={"format": "date-time"},
    )
    seconds: float = Field(
        description="From the pod's creation, after a restart from the container's, until it could answer."
    )
    phases: LoadSeconds = Field(LoadSeconds(), description="How long each part of it took.")


class End(Document):
    """How a model server ended that was not told to."""

    reason: FailureReason = Field(description="Why, in one word.")
    message: str = Field(max_length=1024, description="Why, in a sentence.")
    at: str = Field(description="When.", json_schema_extra={"format": "date-time"})


class Memory(Document):
    """What a replica of a model needs of its device's memory, computed from the model's files; MiB."""

    weights_mib: int = Field(description="Weights, as they are held.")
    kv_cache_mib: int = Field(description="KV cache for `tokens`.")
    tokens: int = Field(description="Tokens of context that were counted.")
    available_mib: int | None = Field(None, description="What there is: the device's, or the container's limit.")


class ModelStatus(Document):
    """What is known of one model."""

    name: str = Field(description="The model's name in spec.models.")
    id: str = Field(
        description="The id that clients use: the alias, without one the model id. It follows the spec when the model "
        "that is to have it is loaded; routers serve what stands here."
    )
    canonical_id: str = Field(
        description="The model id, which follows the spec likewise; accepted beside the alias unless two models "
        "share it."
    )
    state: ModelState = Field(description="As the lifecycle routes say it.")
    since: str | None = Field(None, description="Since when it is.", json_schema_extra={"format": "date-time"})
    reason: FailureReason | WaitReason | None = Field(
        None, description="Why the model, or one of its replicas, fails, or what it waits for."
    )
    message: str | None = Field(
        None, max_length=1024, description="What failed, and what to do; or who has what is waited for."
    )
    replicas: int = Field(0, description="Replicas that are wanted; 0 for an unloaded model.")
    ready_replicas: int = Field(0, description="Replicas that can answer.")
    restarts: int = Field(0, description="Restarts of the containers that there are.")
    last_end: End | None = Field(None, description="How a server of the model last ended by itself.")
    loads: Annotated[
        list[Load],
        Field(
            description=f"The last {MAX_LOADS} loads, the newest first.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = []
    memory: Memory | None = Field(None, description="What a replica needs, where the model's files could be seen.")
    last_command: LastCommand | None = Field(None, description="The last unload, reload or wake; routers write it.")
    calls_failing_since: str | None = Field(
        None,
        description="Since when every call to a router has failed; routers write it.",
        json_schema_extra={"format": "date-time"},
    )

    @property
    def failure(self) -> FailureReason | None:
        """Why the model fails; None where it only waits."""
        return self.reason if isinstance(self.reason, FailureReason) else None


class MultiModelStatus(Document):
    """What runs."""

    observed_generation: int | None = Field(None, description="The metadata.generation that this status is about.")
    conditions: Annotated[
        list[Condition],
        Field(
            description="Ready, ModelsReady, RouterReady, Progressing, Degraded, CallsFailing and Fits.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    default_model: str | None = Field(
        None,
        description="The id of the model that `default` means. It follows the spec when that model is loaded; routers "
        "serve what stands here.",
    )
    url: str | None = Field(None, description="Base URL for OpenAI clients inside the cluster.")
    loaded: str | None = Field(None, description="Loaded models of all, for example 1/2.")
    summary: str | None = Field(
        None,
        description="What the models do in one line, those that fail first, for example "
        "`OOMKilled: gguf; loaded: llama, qwen`.",
    )
    models: Annotated[
        list[ModelStatus],
        Field(
            description="What is known of each model, in the order of spec.models.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []


def command_record(namespace: str, multimodel: str, model: str, command: LastCommand) -> dict[str, Any]:
    """Return what a router applies to the status of a MultiModel to record a command for one of its models.

    It belongs to `names.command_manager(model)`, to be applied by force.
    """
    written = command.model_dump(mode="json", by_alias=True, exclude_none=True)
    return withdrawal(namespace, multimodel) | {"status": {"models": [{"name": model, "lastCommand": written}]}}


def calls_record(namespace: str, multimodel: str, model: str, failing_since: str | None) -> dict[str, Any]:
    """Return what a router applies to tell since when every call of a model fails, or that one has not.

    It belongs to `names.calls_manager(model)`, to be applied by force.
    """
    if failing_since is None:
        return withdrawal(namespace, multimodel)
    told = {"models": [{"name": model, "callsFailingSince": failing_since}]}
    return withdrawal(namespace, multimodel) | {"status": told}


def withdrawal(namespace: str, multimodel: str) -> dict[str, Any]:
    """Return what takes a record back when it is applied for its field manager."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": multimodel, "namespace": namespace},
    }
