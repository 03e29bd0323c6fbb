"""Why a model could not be loaded: one vocabulary for the condition, the Event and the API error.

A model server that cannot load writes a `LoadFailure` to its failure file (in a pod, the container's termination
message); whoever watches the server reads it back with `LoadFailure.parse`.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, ValidationError

MAX_MESSAGE = 1024
"""Characters of a failure's message that are kept; Kubernetes stores at most 4096 bytes of termination message."""


class FailureReason(StrEnum):
    """Typed causes; each reads the same wherever a user meets it."""

    BAD_CONFIGURATION = "BadConfiguration"
    BAD_QUANTIZATION = "BadQuantization"
    BAD_WEIGHTS = "BadWeights"
    DISK_FULL = "DiskFull"
    ENGINE_CRASHED = "EngineCrashed"
    EVICTED = "Evicted"
    HUB_NOT_FOUND = "HubNotFound"
    HUB_UNAUTHORIZED = "HubUnauthorized"
    HUB_UNREACHABLE = "HubUnreachable"
    IMAGE_PULL = "ImagePull"
    LOAD_TIMEOUT = "LoadTimeout"
    MISSING_CONFIG_MAP = "MissingConfigMap"
    MISSING_SECRET = "MissingSecret"  # noqa: S105  (a cause, no secret)
    MODEL_NOT_FOUND = "ModelNotFound"
    NODE_LOST = "NodeLost"
    NODE_REFUSED = "NodeRefused"
    OOM_KILLED = "OOMKilled"
    OUT_OF_MEMORY = "OutOfMemory"
    POD_NOT_STARTING = "PodNotStarting"
    QUOTA_EXCEEDED = "QuotaExceeded"
    SERVER_CRASHED = "ServerCrashed"
    UNSCHEDULABLE = "Unschedulable"
    UNSUPPORTED_ARCHITECTURE = "UnsupportedArchitecture"
    UNSUPPORTED_SOURCE = "UnsupportedSource"


MAY_PASS = {
    *(FailureReason.UNSCHEDULABLE, FailureReason.QUOTA_EXCEEDED, FailureReason.POD_NOT_STARTING),
    *(FailureReason.EVICTED, FailureReason.NODE_LOST, FailureReason.NODE_REFUSED),
}
"""Causes that a cluster may cure by itself: a node comes, or another model leaves. Requests wait for that."""


class LoadFailure(BaseModel):
    """A typed cause with a sentence that names the file or field, the value and the fix."""

    model_config = ConfigDict(frozen=True)

    reason: FailureReason
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def to_document(self) -> str:
        """Return the JSON written to the failure file, cut to what Kubernetes keeps."""
        return self.model_copy(update={"message": self.message[:MAX_MESSAGE]}).model_dump_json()

    @classmethod
    def parse(cls, document: str) -> "LoadFailure | None":
        """Return the failure in `document`, or None when it holds none (empty, or written by something else)."""
        try:
            return cls.model_validate_json(document)
        except ValidationError:
            return None
