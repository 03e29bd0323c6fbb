"""How many replicas a model may have, and how many models may be loaded at once."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from multimodel_api.document import Document, rules

MAX_REPLICAS = 64
RULE_REPLICAS = "scaling.maxReplicas must be at least scaling.minReplicas: raise maxReplicas, or leave it out"
RULE_EXTERNAL = (
    "with scaling.autoscaler external, whoever scales the model's Deployment bounds it: leave maxReplicas and "
    "idleSeconds out"
)
_CEL_EXTERNAL = "self.autoscaler != 'external' || (!has(self.maxReplicas) && !has(self.idleSeconds))"
_CEL_REPLICAS = "!has(self.maxReplicas) || self.maxReplicas >= self.minReplicas"


class Scaling(Document):
    """How many replicas a model has; a request for an unloaded model loads one, whatever is said here."""

    model_config = ConfigDict(json_schema_extra=rules((_CEL_REPLICAS, RULE_REPLICAS), (_CEL_EXTERNAL, RULE_EXTERNAL)))

    min_replicas: int = Field(
        1, ge=0, le=MAX_REPLICAS, description="Fewest replicas of a loaded model; 0 creates the model unloaded."
    )
    max_replicas: int | None = Field(
        None, ge=1, le=MAX_REPLICAS, description="Most replicas under load; minReplicas, and at least 1, when unset."
    )
    idle_seconds: int | None = Field(
        None,
        ge=1,
        le=31_536_000,
        description="Unload the model when it has had no request for so long, whatever minReplicas is; never when "
        "unset. The next request loads it.",
    )
    wait_seconds: int | None = Field(
        None,
        ge=1,
        le=86400,
        description="Longest time that a request is held while the model loads; the router's waiting.maxSeconds when "
        "unset.",
    )
    target_requests: int = Field(
        16, ge=1, le=65536, description="Requests, running and waiting, for each replica that the autoscaler aims at."
    )
    autoscaler: Literal["builtin", "external"] = Field(
        "builtin",
        description="Who chooses the replicas of a loaded model: the operator, or with `external` whoever scales the "
        "model's Deployment (a HorizontalPodAutoscaler, KEDA).",
    )

    @model_validator(mode="after")
    def _most_not_below_fewest(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(RULE_REPLICAS)
        return self

    @model_validator(mode="after")
    def _one_autoscaler(self) -> Self:
        if self.autoscaler == "external" and (self.max_replicas is not None or self.idle_seconds is not None):
            raise ValueError(RULE_EXTERNAL)
        return self

    @property
    def most_replicas(self) -> int:
        """Most replicas that the operator gives the model."""
        return self.max_replicas or max(self.min_replicas, 1)


class Residency(Document):
    """How many models may be loaded at once."""

    max_loaded: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Most models loaded at once: waking one more unloads the idle one that was used longest ago. "
        "As many as there are when unset.",
    )
