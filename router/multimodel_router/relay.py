"""A request's way to a model server and back: find the model, wait for it, send, retry while nothing was answered."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, ValidationError

from multimodel_api import errors
from multimodel_api.anthropic import is_messages_path, messages_error
from multimodel_api.manifest import Model
from multimodel_router.endpoints import Endpoints, Lease
from multimodel_router.fleet import Endpoint, Fleet
from multimodel_router.metrics import Metrics
from multimodel_router.upstream import ConnectError, ConnectionBrokenError, Headers, Response, Upstream
from multimodel_router.waiting import WaitingRoom, untried, waited_too_long

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.25
"""Pause before endpoints that have all failed a request are tried again, unless the fleet changes earlier."""

MAX_BROKEN = 3
"""Times a request is sent in vain before it is given up: one that kills its server must not kill them all."""

_HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
    *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}
_OURS_IN_REQUESTS = {b"host", b"content-length", b"expect"}
_OURS_IN_ANSWERS = {b"date", b"server", b"x-request-id"}


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A client's request, read whole."""

    method: str
    target: str
    headers: Headers
    body: bytes


class _Addressed(BaseModel):
    """The one field of a request that the router reads."""

    model_config = ConfigDict(strict=True)

    model: str | None = None


def addressed_model(body: bytes) -> str | None:
    """Return the `model` that a request's body names, None when it names none.

    Raises:
        ApiError: the 400 for a body that is no JSON object or whose `model` is no string.
    """
    try:
        return _Addressed.model_validate_json(body).model
    except ValidationError as error:
        raise errors.from_validation(error) from error


class Answer:
    """A model server's answer on its way to the client; close it in any case."""

    def __init__(self, model: Model, target: str, response: Response, lease: Lease, metrics: Metrics) -> None:
        self.status = response.status
        self.headers = _passed_on(response.headers, _OURS_IN_ANSWERS)
        self._model = model
        self._target = target
        self._response = response
        self._lease = lease
        self._metrics = metrics

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes; an event stream that breaks ends with an error event.

        Raises:
            ConnectionBrokenError: an answer that is no event stream broke.
        """
        last = b""
        try:
            async for chunk in self._response.body():
                yield chunk
                last = chunk
        except ConnectionBrokenError as broken:
            self._metrics.broken_streams.labels(self._model.name).inc()
            logger.warning("model %s: %s broke off an answer: %s", self._model.name, self._lease.endpoint, broken)
            if not self._is_event_stream:
                raise
            yield (b"" if last.endswith(b"\n\n") else b"\n\n") + _error_event(self._model, self._target)

    def close(self) -> None:
        """Free the place at the endpoint; an answer that was not read to its end is cancelled there."""
        self._response.close()
        self._lease.release()

    @property
    def _is_event_stream(self) -> bool:
        return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in self.headers)


class Relay:
    """Sends requests to the model servers of a fleet."""

    def __init__(self, fleet: Fleet, waiting: WaitingRoom, upstream: Upstream, metrics: Metrics, wait: float) -> None:
        self._fleet = fleet
        self._waiting = waiting
        self._upstream = upstream
        self._metrics = metrics
        self._wait = wait
        self._endpoints = Endpoints()

    def model_of(self, body: bytes) -> Model:
        """Return the model that a request's body asks for; raises ApiError (400, 404)."""
        return self._fleet.catalog.resolve(addressed_model(body))

    async def open(self, model: Model, request: InferenceRequest) -> Answer:
        """Return a model server's answer as soon as it begins.

        Raises:
            ApiError: the model cannot be loaded, not in time, or its servers break again and again.
        """
        deadline = asyncio.get_running_loop().time() + self._wait
        headers = _passed_on(request.headers, _OURS_IN_REQUESTS)
        tried: set[Endpoint] = set()
        broken = 0
        while True:
            lease = await self._lease(model, tried, deadline)
            outcome = await self._attempt(lease, request, headers)
            if isinstance(outcome, Response):
                return Answer(model, request.target, outcome, lease, self._metrics)
            lease.release()
            tried.add(lease.endpoint)
            self._metrics.retries.labels(model.name, outcome).inc()
            broken += outcome == "broken"
            if broken == MAX_BROKEN:
                raise _broke_again_and_again(model)

    async def _lease(self, model: Model, tried: set[Endpoint], deadline: float) -> Lease:
        """Return a place at an endpoint that has not failed this request, or at any after a pause."""
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    candidates = untried(await self._waiting.until_ready(model), tried)
                    if candidates:
                        return self._endpoints.acquire(candidates)
                    await self._waiting.change(RETRY_SECONDS)
                    tried.clear()
        except TimeoutError as cause:
            raise waited_too_long(model, self._fleet.view(model.name), self._wait) from cause

    async def _attempt(self, lease: Lease, request: InferenceRequest, headers: Headers) -> Response | str:
        """Return the answer, or why there is none worth passing on."""
        try:
            response = await self._upstream.send(lease.endpoint, request.method, request.target, headers, request.body)
        except ConnectError:
            return "connect"
        except ConnectionBrokenError:
            return "broken"
        except BaseException:
            lease.release()
            raise
        if response.status != HTTPStatus.SERVICE_UNAVAILABLE:
            return response
        response.close()  # it drains, or is not ready any more
        return "unavailable"


def _passed_on(headers: Headers, ours: set[bytes]) -> Headers:
    """Return the headers that concern the other side: neither this connection's nor those that the router sets."""
    named = {
        name.strip().lower() for key, value in headers if key.lower() == b"connection" for name in value.split(b",")
    }
    dropped = _HOP_BY_HOP | ours | named
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _error_event(model: Model, target: str) -> bytes:
    broke = errors.server_error(
        f"The model server of '{model.api_id}' broke off the answer.", code="model_server_broke"
    )
    if is_messages_path(target):
        return f"event: error\ndata: {messages_error(broke).model_dump_json()}\n\n".encode()
    return f"data: {broke.body.model_dump_json()}\n\n".encode()


def _broke_again_and_again(model: Model) -> errors.ApiError:
    return errors.server_error(
        f"The model server of '{model.api_id}' broke the connection {MAX_BROKEN} times without an answer.",
        status=HTTPStatus.BAD_GATEWAY,
        code="model_server_broke",
    )
