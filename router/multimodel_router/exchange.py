"""One request's way to a model server and back: a place, an attempt, another where one fails, until all is answered.

As long as nothing of an answer has reached the client, a failed attempt is repeated elsewhere. After that, a stream
whose server tells what it has sent goes on at another server; any other answer ends with an error.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

from multimodel_api import errors
from multimodel_api.anthropic import is_messages_path
from multimodel_api.manifest import Model
from multimodel_api.readiness import MODEL_HEADER, model_header
from multimodel_api.resume import RESUMABLE_HEADER, STATE_HEADER, MarkerReader, Resume, resuming
from multimodel_router.addressed import opening
from multimodel_router.balance import Balance, policy_of
from multimodel_router.call import Call
from multimodel_router.comfort import OPT_OUT, comforting
from multimodel_router.endpoints import Endpoints, Lease
from multimodel_router.fleet import Endpoint
from multimodel_router.fleet.vetted import VettedFleet
from multimodel_router.http1.reply import Reply
from multimodel_router.http1.request import Headers
from multimodel_router.metrics import Metrics
from multimodel_router.upstream import ConnectError, ConnectionBrokenError, Response, Upstream
from multimodel_router.usage import Tail
from multimodel_router.waiting import Step, WaitingRoom, next_step, untried

MAX_BROKEN = 3
"""Times a request is sent in vain before it is given up: one that kills its server must not kill them all."""

WHOLE_BYTES = 2**20
"""Answers of a known length up to this are read whole before they are passed on: until then they can be repeated."""

_RESUMABLE = RESUMABLE_HEADER.encode()
_STATE = STATE_HEADER.encode()
_MODEL = MODEL_HEADER.encode()
_ENGINE_CRASHED = b'"engine_crashed"'
"""In an error of a model server whose engine died under a request: another server, or the next engine, may do it."""
_HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
    *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}
_NOT_IN_REQUESTS = _HOP_BY_HOP | {
    *(b"host", b"content-length", b"expect", b"authorization", b"x-api-key", OPT_OUT, _RESUMABLE)
}
_NOT_IN_ANSWERS = _HOP_BY_HOP | {b"server", b"x-request-id", _STATE}


class Failure(StrEnum):
    """Why an attempt has to be repeated."""

    CONNECT = "connect"
    BROKEN = "broken"
    DEAF = "deaf"
    UNAVAILABLE = "unavailable"
    STRANGER = "stranger"
    """Another model's server has come to the address."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What every exchange works with."""

    fleet: VettedFleet
    waiting: WaitingRoom
    endpoints: Endpoints
    upstream: Upstream
    metrics: Metrics
    resume: bool
    balance: Balance


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_call",
        "_deadline",
        "_desk",
        "_failures",
        "_headers",
        "_last",
        "_loop",
        "_markers",
        "_model",
        "_patience",
        "_reply",
        "_state",
        "_stream",
        "_tail",
    )

    def __init__(self, desk: Desk, call: Call, model: Model, reply: Reply, *, stream: bool) -> None:
        self._desk = desk
        self._call = call
        self._model = model
        self._reply = reply
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._patience = desk.waiting.patience(model)
        self._deadline = self._loop.time() + self._patience
        self._headers = _passed_on(call.request.headers, _NOT_IN_REQUESTS)
        if stream and desk.resume:
            self._headers.append((_RESUMABLE, b"1"))
        self._failures = 0
        self._last: Endpoint | None = None
        self._state: str | None = None
        """What another server has to know to go on with a stream that can be gone on with."""
        self._markers = MarkerReader()
        self._tail = Tail()

    async def run(self) -> None:
        """Answer the client.

        Raises:
            ApiError: the model cannot be loaded, not in time, or its servers break again and again.
        """
        while True:
            lease = await self._place()
            try:
                failure = await self._attempt(lease)
            finally:
                lease.release()
            if failure is None:
                self._finish()
                return
            self._take_note(lease, failure)

    async def _place(self) -> Lease:
        """Return a place at an endpoint, at once or as soon as the model is loaded."""
        view = self._desk.fleet.view(self._model.name)
        ready = view.ready if next_step(view) is Step.SERVE else await self._wait()
        candidates = untried(ready, self._last)
        policy = policy_of(self._model.balance, self._desk.balance)
        prefix = opening(self._call.request.body) if policy is Balance.PREFIX_HASH and len(candidates) > 1 else b""
        return self._desk.endpoints.acquire(self._model, candidates, policy, prefix)

    async def _wait(self) -> tuple[Endpoint, ...]:
        desk, request = self._desk, self._call.request
        again = self._last is not None
        try:
            async with asyncio.timeout_at(self._deadline):
                with desk.waiting.place(self._model, len(request.body), again=again):
                    if request.header(OPT_OUT) == b"off":
                        return await desk.waiting.until_ready(self._model, self._call.caller)
                    async with comforting(desk.fleet, self._model, self._reply, stream=self._stream):
                        return await desk.waiting.until_ready(self._model, self._call.caller)
        except TimeoutError as cause:
            raise desk.waiting.waited_too_long(self._model) from cause

    async def _attempt(self, lease: Lease) -> Failure | None:
        """Pass the answer on; return why that has to be tried again, None when the answer is whole."""
        request = self._call.request
        body = request.body if not self._delivered else self._resuming()
        try:
            async with lease.patience:
                response = await self._desk.upstream.send(
                    lease.endpoint, request.method, request.target, self._headers, body
                )
                try:
                    return await self._pass_on(response, lease)
                finally:
                    self._reply.throttle(None)
                    response.close()
        except ConnectError:
            return Failure.CONNECT
        except ConnectionBrokenError:
            return None if self._markers.ended else Failure.BROKEN
        except TimeoutError as cause:
            if lease.unloaded:
                raise _unloaded(self._model) from cause
            return Failure.DEAF

    async def _pass_on(self, response: Response, lease: Lease) -> Failure | None:
        if response.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return Failure.UNAVAILABLE  # it drains, or is not ready any more
        if response.header(_MODEL) not in (None, model_header(self._model.api_id).encode()):
            return Failure.STRANGER
        if self._delivered:
            self._note_resumption(response)
        if _is_short(response) or (self._reply.started and response.status != HTTPStatus.OK):
            return await self._pass_on_whole(response)
        if not self._reply.started:
            self._reply.start(response.status, _passed_on(response.headers, _NOT_IN_ANSWERS))
        await self._splice(response, lease)
        return None

    async def _pass_on_whole(self, response: Response) -> Failure | None:
        """Read the answer before the client sees any of it; in a stream that has begun an error becomes an event."""
        content = await response.read()
        if response.status == HTTPStatus.INTERNAL_SERVER_ERROR and _ENGINE_CRASHED in content:
            return Failure.BROKEN
        if not self._reply.started:
            headers = _passed_on(response.headers, _NOT_IN_ANSWERS)
            self._reply.start(response.status, headers)
        elif self._reply.is_event_stream:
            content = error_event(self._call.request.target, content)
        self._tail.feed(content)
        self._reply.write(content)
        return None

    def _resuming(self) -> bytes:
        resume = Resume(state=self._state or "", token_ids=self._markers.token_ids)
        return resuming(self._call.request.body, resume)

    async def _splice(self, response: Response, lease: Lease) -> None:
        """Hand the client what comes, but for what no marker of a resumable stream has confirmed."""
        state = response.header(_STATE)
        self._state = state.decode("latin-1") if state else None
        self._markers = MarkerReader(self._markers.token_ids if self._delivered else ())
        self._reply.throttle(response.throttle)
        try:
            await response.splice(self._confirmed(lease) if state else self._direct(lease))
        finally:
            self._deadline = self._loop.time() + self._patience  # a stream that breaks has as long to go on
        if state and not self._markers.ended:
            raise ConnectionBrokenError("the stream ended without its last marker, by a fault of its server")

    def _direct(self, lease: Lease) -> Callable[[bytes], None]:
        keep, pass_on = self._tail.feed, self._reply.write

        def write(data: bytes) -> None:
            lease.heard = True
            keep(data)
            pass_on(data)

        return write

    def _confirmed(self, lease: Lease) -> Callable[[bytes], None]:
        confirm, keep, pass_on = self._markers.feed, self._tail.feed, self._reply.write

        def write(data: bytes) -> None:
            lease.heard = True
            if confirmed := confirm(data):
                keep(confirmed)
                pass_on(confirmed)

        return write

    @property
    def _delivered(self) -> bool:
        """Whether anything of an answer has reached the client."""
        return self._reply.first_byte is not None

    def _finish(self) -> None:
        self._reply.end()
        prompt, completion = self._tail.tokens()
        self._call.prompt_tokens, self._call.completion_tokens = prompt, completion or self._markers.token_count

    def _take_note(self, lease: Lease, failure: Failure) -> None:
        """Eject the endpoint, and decide whether to go on.

        Raises:
            ApiError: the answer has begun and cannot be gone on with, or enough servers have broken.
        """
        name = self._model.name
        self._last = lease.endpoint
        self._desk.fleet.eject(name, lease.endpoint, failure)
        if failure in (Failure.BROKEN, Failure.DEAF):
            self._failures += 1
        if self._delivered:
            if self._state is None or self._failures == MAX_BROKEN:
                raise self._broke_off()
        else:
            self._call.retries += 1
            self._desk.metrics.retries.labels(name, failure).inc()
            if self._failures == MAX_BROKEN:
                raise self._broke_again_and_again()
        if self._loop.time() > self._deadline:
            raise self._desk.waiting.waited_too_long(self._model)

    def _note_resumption(self, response: Response) -> None:
        """Count a broken stream that goes on; raises ApiError when this server cannot go on with it."""
        if response.status != HTTPStatus.OK or response.header(_STATE) is None:
            raise self._broke_off()
        self._call.resumed += 1
        self._desk.metrics.resumed_streams.labels(self._model.name).inc()

    def _broke_off(self) -> errors.ApiError:
        self._desk.metrics.broken_streams.labels(self._model.name).inc()
        return errors.server_error(
            f"The model server of '{self._model.api_id}' broke off the answer.", code="model_server_broke"
        )

    def _broke_again_and_again(self) -> errors.ApiError:
        return errors.server_error(
            f"The model server of '{self._model.api_id}' broke the connection {MAX_BROKEN} times without an answer.",
            status=HTTPStatus.BAD_GATEWAY,
            code="model_server_broke",
        )


def _unloaded(model: Model) -> errors.ApiError:
    return errors.server_error(
        f"The model '{model.api_id}' was unloaded, and the time that running answers were given is over.",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        code="model_unloaded",
    )


def error_event(target: str, document: bytes) -> bytes:
    """Return the event that ends a stream with an error, as the clients of a route expect it."""
    return b"%bdata: %b\n\n" % (b"event: error\n" if is_messages_path(target) else b"", document)


def _is_short(response: Response) -> bool:
    length = response.header(b"content-length")
    return length is not None and int(length) <= WHOLE_BYTES


def _passed_on(headers: Headers, dropped: set[bytes]) -> Headers:
    """Return the headers that concern the other side: none that are `dropped`, or that this connection names."""
    connection = [value for name, value in headers if name == b"connection"]
    if connection:
        dropped = dropped | {name.strip().lower() for value in connection for name in value.split(b",")}
    return [header for header in headers if header[0] not in dropped]
