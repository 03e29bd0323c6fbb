"""What is measured of one inference request, and written to the access log."""

import json
import logging
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus

from multimodel_api.manifest import Model
from multimodel_router.http1.request import Request
from multimodel_router.metrics import Metrics

access_log = logging.getLogger("multimodel_router.access")

CLIENT_LEFT = 499
"""The status of a request whose client left before its answer, as other proxies count it."""


_CLIENT_ERRORS = int(HTTPStatus.BAD_REQUEST)
_SERVER_ERRORS = int(HTTPStatus.INTERNAL_SERVER_ERROR)


class AccessLog(StrEnum):
    """How requests are logged."""

    OFF = "off"
    TEXT = "text"
    JSON = "json"


@dataclass(slots=True)
class Call:
    """One request on its way; times in seconds of one clock."""

    request: Request
    began: float
    model: Model | None = None
    caller: str = ""
    status: int = CLIENT_LEFT
    first_byte: float | None = None
    bytes_sent: int = 0
    retries: int = 0
    resumed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failed: bool = field(default=False)
    """Whether it failed on our side."""

    @property
    def succeeded(self) -> bool | None:
        """Whether it was answered; None where that says nothing of our side."""
        if self.failed or self.status >= _SERVER_ERRORS:
            return False
        return True if self.status < _CLIENT_ERRORS else None

    def measure(self, metrics: Metrics, now: float) -> None:
        """Add the request to the metrics."""
        if self.model is None:
            return
        of_model = metrics.of(self.model.name)
        of_model.answered[int(self.status)].inc()
        of_model.request_seconds.observe(now - self.began)
        of_model.bytes.inc(self.bytes_sent)
        if self.first_byte is not None:
            of_model.first_byte_seconds.observe(self.first_byte - self.began)
        if self.prompt_tokens or self.completion_tokens:
            of_model.prompt_tokens.inc(self.prompt_tokens)
            of_model.completion_tokens.inc(self.completion_tokens)
        if self.succeeded:
            of_model.failures_in_a_row.set(0)
        elif self.succeeded is False:
            of_model.failures_in_a_row.inc()

    def log(self, style: AccessLog, now: float) -> None:
        """Write one line about the request."""
        if style is AccessLog.OFF:
            return
        fields = self._fields(now)
        if style is AccessLog.JSON:
            access_log.info(json.dumps(fields))
        else:
            access_log.info(" ".join(f"{name}={value}" for name, value in fields.items()))

    def _fields(self, now: float) -> dict[str, str | int | float | None]:
        first = None if self.first_byte is None else round((self.first_byte - self.began) * 1000, 1)
        return {
            "request_id": self.request.id.decode("latin-1"),
            "peer": self.request.peer,
            "caller": self.caller,
            "method": self.request.method,
            "path": self.request.path,
            "model": self.model.name if self.model else None,
            "status": int(self.status),
            "first_byte_ms": first,
            "duration_ms": round((now - self.began) * 1000, 1),
            "bytes": self.bytes_sent,
            "retries": self.retries,
            "resumed": self.resumed,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
