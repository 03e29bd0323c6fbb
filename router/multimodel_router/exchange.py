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
from multimodel_router.short_way import short_way
from multimodel_router.upstream import ConnectError, Upstream
from multimodel_router.upstream_connection import (
    AtHead,
    ConnectionBrokenError,
    Outgoing,
    Response,
    Splice,
    UpstreamConnection,
)
from multimodel_router.usage import Tail
from multimodel_router.waiting import Step, WaitingRoom, next_step, untried

MAX_BROKEN = 3
"""Times a request is sent in vain before it is given up: one that kills its server must not kill them all."""

WHOLE_BYTES = 2**20
"""Answers of a known length up to this are read whole before they are passed on: until then they can be repeated."""

_NEVER = float("inf")
_UNAVAILABLE = int(HTTPStatus.SERVICE_UNAVAILABLE)
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
        "_begun",
        "_call",
        "_deadline",
        "_desk",
        "_failures",
        "_headers",
        "_last",
        "_loop",
        "_markers",
        "_patience",
        "_reply",
        "_state",
        "_stream",
        "_tail",
        "model",
    )

    def __init__(self, desk: Desk, call: Call, model: Model, reply: Reply, *, stream: bool) -> None:
        self._desk = desk
        self._call = call
        self.model = model
        self._reply = reply
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._patience = desk.waiting.patience(model)
        self._deadline = self._loop.time() + self._patience
        self._headers = _passed_on(call.request.headers, _NOT_IN_REQUESTS)
        if stream and desk.resume:
            self._headers.append((_RESUMABLE, b"1"))
        self._begun: tuple[Lease, Outgoing, UpstreamConnection] | None = None
        self._failures = 0
        self._last: Endpoint | None = None
        self._state: str | None = None
        """What another server has to know to go on with a stream that can be gone on with."""
        self._markers = MarkerReader()
        self._tail = Tail()

    def begin(self) -> None:
        """Send the request at once if nothing has to be waited for; `run` has to follow."""
        view = self._desk.fleet.view(self.model.name)
        if next_step(view) is not Step.SERVE:
            return
        lease = self._acquire(view.ready)
        request = self._outgoing(lease)
        if sent := self._desk.upstream.begin(request):
            self._begun = lease, request, sent
        else:
            lease.release()

    async def run(self) -> None:
        """Answer the client.

        Raises:
            ApiError: the model cannot be loaded, not in time, or its servers break again and again.
        """
        while True:
            lease, request, sent = self._begun or (await self._place(), None, None)
            self._begun = None
            try:
                failure = await self._attempt(lease, request or self._outgoing(lease), sent)
            finally:
                lease.release()
            if failure is None:
                self._finish()
                return
            self._take_note(lease, failure)

    async def _place(self) -> Lease:
        """Return a place at an endpoint, at once or as soon as the model is loaded."""
        view = self._desk.fleet.view(self.model.name)
        return self._acquire(view.ready if next_step(view) is Step.SERVE else await self._wait())

    def _acquire(self, ready: tuple[Endpoint, ...]) -> Lease:
        candidates = untried(ready, self._last)
        policy = policy_of(self.model.balance, self._desk.balance)
        prefix = opening(self._call.request.body) if policy is Balance.PREFIX_HASH and len(candidates) > 1 else b""
        return self._desk.endpoints.acquire(self.model, candidates, policy, prefix)

    async def _wait(self) -> tuple[Endpoint, ...]:
        desk, request = self._desk, self._call.request
        again = self._last is not None
        try:
            async with asyncio.timeout_at(self._deadline):
                with desk.waiting.place(self.model, len(request.body), again=again):
                    if request.header(OPT_OUT) == b"off":
                        return await desk.waiting.until_ready(self.model, self._call.caller)
                    async with comforting(desk.fleet, self.model, self._reply, stream=self._stream):
                        return await desk.waiting.until_ready(self.model, self._call.caller)
        except TimeoutError as cause:
            raise desk.waiting.waited_too_long(self.model) from cause

    def _outgoing(self, lease: Lease) -> Outgoing:
        request = self._call.request
        body = request.body if not self._delivered else self._resuming()
        return Outgoing(lease.endpoint, request.method, request.target, self._headers, body, self._at_head(lease))

    async def _attempt(self, lease: Lease, request: Outgoing, sent: UpstreamConnection | None) -> Failure | None:
        """Pass the answer on; return why that has to be tried again, None when the answer is whole."""
        lease.hold()
        try:
            response = await self._desk.upstream.send(request, sent)
            try:
                return await self._pass_on(response, lease)
            finally:
                response.close()
        except ConnectError:
            return Failure.CONNECT
        except ConnectionBrokenError:
            return None if self._markers.ended else Failure.BROKEN
        except asyncio.CancelledError:
            if not lease.gave_up():
                raise
            if lease.unloaded:
                raise _unloaded(self.model) from None
            return Failure.DEAF
        finally:
            self._reply.throttle(None)

    def _at_head(self, lease: Lease) -> AtHead:
        def begin(response: Response) -> Splice | None:
            """Begin the reply if nothing can speak against it."""
            if self._reply.started or self._refusal(response) or _is_short(response):
                return None
            self._reply.start(response.status, _passed_on(response.headers, _NOT_IN_ANSWERS))
            return self._splice(response, lease)

        return begin

    def _refusal(self, response: Response) -> Failure | None:
        """Return why an answer is none for the client."""
        if response.status == _UNAVAILABLE:
            return Failure.UNAVAILABLE  # it drains, or is not ready any more
        if response.header(_MODEL) not in (None, model_header(self.model.api_id).encode()):
            return Failure.STRANGER
        return None

    async def _pass_on(self, response: Response, lease: Lease) -> Failure | None:
        if response.spliced:
            return self._check_end()
        if refusal := self._refusal(response):
            return refusal
        if self._delivered:
            self._note_resumption(response)
        if _is_short(response) or (self._reply.started and response.status != HTTPStatus.OK):
            return await self._pass_on_whole(response)
        await response.splice(self._splice(response, lease))  # behind what was written before; others began at the head
        return self._check_end()

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

    def _splice(self, response: Response, lease: Lease) -> Splice:
        """Return what hands the client what comes, but for what no marker of a resumable stream has confirmed."""
        self._deadline = _NEVER
        state = response.header(_STATE)
        self._state = state.decode("latin-1") if state else None
        self._markers = MarkerReader(self._markers.token_ids if self._delivered else ())
        self._reply.throttle(response.throttle)
        if state:
            return Splice(self._confirmed(lease), short_way(self._markers, self._reply, lease))
        return Splice(self._direct(lease))

    def _check_end(self) -> Failure | None:
        """Return what is wrong with an answer that looks whole."""
        return Failure.BROKEN if self._state and not self._markers.ended else None

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
        name = self.model.name
        if self._deadline == _NEVER:
            self._deadline = self._loop.time() + self._patience  # an answer that breaks has as long to go on
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
            raise self._desk.waiting.waited_too_long(self.model)

    def _note_resumption(self, response: Response) -> None:
        """Count a broken stream that goes on; raises ApiError when this server cannot go on with it."""
        if response.status != HTTPStatus.OK or response.header(_STATE) is None:
            raise self._broke_off()
        self._call.resumed += 1
        self._desk.metrics.resumed_streams.labels(self.model.name).inc()

    def _broke_off(self) -> errors.ApiError:
        self._desk.metrics.broken_streams.labels(self.model.name).inc()
        return errors.server_error(
            f"The model server of '{self.model.api_id}' broke off the answer.", code="model_server_broke"
        )

    def _broke_again_and_again(self) -> errors.ApiError:
        return errors.server_error(
            f"The model server of '{self.model.api_id}' broke the connection {MAX_BROKEN} times without an answer.",
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
    if b"connection" in dict(headers):
        connection = b",".join([value for name, value in headers if name == b"connection"])
        dropped = dropped | {name.strip().lower() for name in connection.split(b",")}
    return [header for header in headers if header[0] not in dropped]
