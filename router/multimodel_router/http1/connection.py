"""One client's connection: requests read one after the other within limits, each answered by a task of its own."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

from multimodel_api import errors
from multimodel_router.http1.limits import Limits
from multimodel_router.http1.reader import Phase, Reader
from multimodel_router.http1.reply import Reply
from multimodel_router.http1.request import Request

logger = logging.getLogger(__name__)

NEVER = float("inf")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Handler = Callable[[Request, Reply], Coroutine[None, None, None]]
"""What returns is run to its end or cancelled, so it may have begun."""
ExtraHeaders = Callable[[Request], Iterable[tuple[bytes, bytes]]]


@dataclass
class Site:
    """What all connections of a server share; once it is `closing`, none takes another request after the next."""

    handler: Handler
    limits: Limits = field(default_factory=Limits)
    extra_headers: ExtraHeaders = lambda _: ()
    refused: Callable[[Request, Reply], None] = lambda _request, _reply: None
    """Told of what was no request: one without method and target, and what it was answered."""
    closing: bool = False
    connections: set["Connection"] = field(default_factory=set)


class Connection(asyncio.Protocol):
    """Answers what its reader reads; `expire` is due at `deadline`. A client that closes its side has left."""

    __slots__ = (
        "_behind",
        "_limits",
        "_loop",
        "_paused",
        "_peer",
        "_queue",
        "_reader",
        "_refused",
        "_reply",
        "_site",
        "_stage",
        "_stage_began",
        "_task",
        "_transport",
        "deadline",
    )

    def __init__(self, site: Site) -> None:
        self.deadline = NEVER
        self._site = site
        self._limits = site.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._reader = Reader(self._limits, self._peer)
        self._stage = (0, Phase.BETWEEN)
        self._stage_began = 0.0
        self._queue: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._reply: Reply | None = None
        self._paused = False
        """Whether reading waits until fewer requests do."""
        self._behind = False
        """Whether the client reads slower than is written."""
        self._refused = False
        """Whether the client has been told why nothing more is read."""

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come, and none is being answered."""
        return self._task is None and not self._queue and self._reader.phase is Phase.BETWEEN

    def idle_for(self, now: float) -> float:
        """Return the seconds since it has been idle, 0 while it is not."""
        return now - self._stage_began if self.idle else 0.0

    @property
    def fresh(self) -> bool:
        """Whether its client has connected, and sent nothing yet."""
        return self.idle and not self._reader.begun

    def close(self) -> None:
        """Close the connection once what has been written is sent."""
        if self._transport:
            self.deadline = self._loop.time() + self._limits.stall_seconds
            self._transport.close()

    def abort(self) -> None:
        """Break the connection off at once."""
        if self._transport:
            self._transport.abort()

    def expire(self) -> None:
        """Act on a deadline that has passed: a client in mid-request is told, any other is cut off."""
        self.deadline = NEVER
        if self._behind or self._is_closing():
            logger.info("%s: cut off, it has not read its answer for %g s", self._peer, self._limits.stall_seconds)
            self.abort()
        elif self._refused or self.idle:
            self.close()
        else:
            self._refuse(_timed_out())

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        self._transport = cast("asyncio.Transport", transport)
        if transport.get_extra_info("sslcontext") is None:  # TLS needs room for its records
            self._transport.set_write_buffer_limits(0)  # what is written is sent at once, not after all that has come
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._reader = Reader(self._limits, self._peer)
        self._site.connections.add(self)
        self._stage_began = self._loop.time()
        self.deadline = self._stage_began + self._limits.head_seconds

    def data_received(self, data: bytes) -> None:
        """Read what came; a request that is whole gets its answer."""
        if self._reader.refusal or self._refused:
            return
        self._queue += self._reader.feed(data)
        self._answer_next()
        if self._queue and self._enough_waits() and self._transport:
            self._transport.pause_reading()
            self._paused = True

    def connection_lost(self, _error: Exception | None) -> None:
        """Give up what is being answered: nobody reads it."""
        self._site.connections.discard(self)
        self._queue.clear()
        if self._reply:
            self._reply.flows = False
        if self._task:
            self._loop.call_soon(self._task.cancel)  # what has begun is ended by the task, which may not run yet

    def pause_writing(self) -> None:
        """The client reads slower than is written."""
        self._behind = True
        self.deadline = self._loop.time() + self._limits.stall_seconds
        if self._reply:
            self._reply.pressure(True)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._behind = False
        if self._reply:
            self.deadline = NEVER
            self._reply.pressure(False)
        self._answer_next()

    # Answers.

    def _answer_next(self) -> None:
        """Answer what waits, unless the client has yet to read an answer; else wait for more of the client."""
        if self._task or self._behind or self._refused or self._is_closing():
            return
        if self._queue:
            self.deadline = NEVER
            self._task = self._begin_answer(self._queue.popleft())
            if self._paused and self._transport and not self._enough_waits():
                self._transport.resume_reading()
                self._paused = False
        elif self._reader.refusal:
            self._refuse(self._reader.refusal)
        else:
            self._await_more()

    def _begin_answer(self, request: Request) -> asyncio.Task[None]:
        transport = cast("asyncio.Transport", self._transport)
        request.keep_alive = request.keep_alive and not self._site.closing
        reply = self._reply = Reply(request, transport, self._site.extra_headers(request))
        try:
            answering = self._site.handler(request, reply)
        except Exception as error:  # noqa: BLE001  (it is logged below)
            answering = _failed(error)
        return self._loop.create_task(self._answer(request, reply, answering))

    async def _answer(self, request: Request, reply: Reply, answering: Coroutine[None, None, None]) -> None:
        try:
            await answering
        except Exception:
            logger.exception("%s %s: the router failed", request.method, request.path)
            if not reply.started:
                failed = errors.server_error("The router failed unexpectedly; its log says why.")
                reply.document(failed.status, failed.body)
        finally:
            self._task = self._reply = None
        self._after(reply)

    def _after(self, reply: Reply) -> None:
        """Go on, or end the connection; an answer that is not whole must not look whole.

        Who was told that the connection stays may be sending the next request, however soon the site closes.
        """
        if self._is_closing():
            return
        if not reply.ended:
            self.abort()
        elif reply.keep_alive:
            self._stage_began = self._loop.time()
            self._answer_next()
        else:
            self.close()

    def _await_more(self) -> None:
        """Set the time by which the rest of a request has to come, or the next one."""
        now = self._loop.time()
        stage = (self._reader.begun, self._reader.phase)
        if stage != self._stage:
            self._stage, self._stage_began = stage, now
        limits = self._limits
        match self._reader.phase:
            case Phase.BETWEEN:
                self.deadline = self._stage_began + limits.idle_seconds
            case Phase.HEAD:
                self.deadline = self._stage_began + limits.head_seconds
            case Phase.BODY:
                self.deadline = min(self._stage_began + limits.body_seconds, now + limits.body_idle_seconds)
        if self._reader.awaits_continue and self._transport:
            self._reader.awaits_continue = False
            self._transport.write(_CONTINUE)

    def _refuse(self, refusal: errors.ApiError) -> None:
        """Say why, and let the client read it: closing with unread bytes would take the reply away from it."""
        transport = cast("asyncio.Transport", self._transport)
        self._refused = True
        nothing = Request("", "", [], self._peer, keep_alive=False, can_chunk=False)
        reply = Reply(nothing, transport, ())
        reply.document(refusal.status, refusal.body, refusal.headers.items())
        self._site.refused(nothing, reply)
        self.deadline = self._loop.time() + self._limits.linger_seconds
        if transport.can_write_eof():
            transport.write_eof()

    def _enough_waits(self) -> bool:
        limits = self._limits
        return len(self._queue) > limits.pipelined or sum(len(x.body) for x in self._queue) > limits.pipelined_bytes

    def _is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()


async def _failed(error: Exception) -> None:
    raise error


def _timed_out() -> errors.ApiError:
    return errors.ApiError(HTTPStatus.REQUEST_TIMEOUT, "The request did not come in time; send it faster.")
