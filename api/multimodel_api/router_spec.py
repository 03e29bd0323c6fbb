"""The router's part of a MultiModel. What is unset is left to the router's own defaults."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from multimodel_api.document import Document, ObjectName, Resources, rules
from multimodel_api.placement import Placement

MAX_WORKERS = 64
RULE_WAITING_ROOM = "a waiting room's bounds for one model must not be above those for all"
_CEL_WAITING_ROOM = " && ".join(
    f"(!has(self.{bound}) || !has(self.{bound}PerModel) || self.{bound}PerModel <= self.{bound})"
    for bound in ("maxRequests", "maxBytes")
)

Balance = Literal["leastLoad", "prefixHash"]
Origin = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^(\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9.:\[\]_-]+)$")]


class ApiKeys(Document):
    """Where the API keys are."""

    secret_name: ObjectName = Field(
        description="Secret in this namespace with one entry for each key, as `multimodel keys new` prints it; read "
        "again whenever it changes."
    )


class Tls(Document):
    """Where the router's certificate is."""

    secret_name: ObjectName = Field(
        description="Secret in this namespace of the type kubernetes.io/tls: `tls.crt` and `tls.key`."
    )


class WaitingRoom(Document):
    """How many requests a router holds while models load; beyond that it answers 429."""

    model_config = ConfigDict(json_schema_extra=rules((_CEL_WAITING_ROOM, RULE_WAITING_ROOM)))

    max_requests: int | None = Field(None, ge=0, description="Most requests that one router process holds.")
    max_requests_per_model: int | None = Field(None, ge=0, description="Most requests that it holds for one model.")
    max_bytes: int | None = Field(None, ge=0, description="Most bytes of the requests that it holds, in all.")
    max_bytes_per_model: int | None = Field(None, ge=0, description="Most bytes that it holds for one model.")
    max_seconds: int | None = Field(None, ge=1, le=86400, description="Longest time that a request is held.")
    abandoned_loads: Literal["finish", "cancel"] | None = Field(
        None, description="What becomes of a load when nobody waits for it any more; finish when unset."
    )

    @model_validator(mode="after")
    def _per_model_within_all(self) -> Self:
        if _is_more(self.max_requests_per_model, self.max_requests) or _is_more(
            self.max_bytes_per_model, self.max_bytes
        ):
            raise ValueError(RULE_WAITING_ROOM)
        return self


def _is_more(of_one_model: int | None, of_all: int | None) -> bool:
    return of_one_model is not None and of_all is not None and of_one_model > of_all


class Cors(Document):
    """Which web pages may call the router from a browser."""

    allowed_origins: list[Origin] = Field(
        [], max_length=64, description="Origins such as https://chat.example.org; `*` is every one. None when empty."
    )


class RouterSpec(Placement):
    """The router: its pods, and how it treats requests."""

    replicas: int = Field(2, ge=1, le=64, description="Pods of the router.")
    workers: int | None = Field(None, ge=1, le=MAX_WORKERS, description="Processes in each pod; 1 when unset.")
    resources: Resources | None = Field(None, description="Resources of the router's container.")
    api_keys: ApiKeys | None = Field(
        None,
        description="Ask every caller for an API key; without it everybody who reaches the router may do everything.",
    )
    tls: Tls | None = Field(None, description="Serve HTTPS instead of HTTP.")
    waiting: WaitingRoom | None = Field(None, description="Bounds of what is held while models load.")
    resume_streams: bool | None = Field(
        None,
        description="Continue a stream on another replica when its model server dies, so that the client sees one; "
        "true when unset.",
    )
    balance: Balance | None = Field(
        None,
        description="How a replica of a model is chosen where the model does not say: the one with the fewest "
        "requests, or, within bounds, the one that has answered texts which begin alike; leastLoad when unset.",
    )
    cors: Cors | None = Field(None, description="Which web pages may call the router from a browser; none when unset.")
    access_log: Literal["off", "text", "json"] | None = Field(
        None, description="A line for each request. Quote it: YAML reads a bare off as a boolean."
    )
