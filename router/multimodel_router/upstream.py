"""A small HTTP/1.1 client for model servers: keep-alive connections whose answers are spliced on as they come."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import httptools

from multimodel_router.fleet import Endpoint
from multimodel_router.http1.request import Headers, first_header

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 4.0
"""Idle connections are not used longer: uvicorn closes them after 5 s, and a race costs a retry."""

HIGH_WATER = 256 * 1024
"""Bytes of an answer that nobody has asked for yet at which reading stops."""

_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A host that has gone without a word breaks its connections after 25 s, however quiet they were."""

Write = Callable[[bytes], None]
Dial = Callable[[Endpoint, Callable[[], asyncio.Protocol]], Awaitable[object]]


class UpstreamError(Exception):
    """A model server did not answer as it should."""


class ConnectError(UpstreamError):
    """No connection: refused, no route, or not in time; the request was not sent."""


class ConnectionBrokenError(UpstreamError):
    """The connection ended, or its bytes were no HTTP, before the answer was whole."""


class Response:
    """An answer whose head has come; splice or read its body, and close it in any case."""

    __slots__ = ("_connection", "_release", "headers", "status")

    def __init__(self, connection: "_Connection", release: Callable[["_Connection"], None]) -> None:
        self._connection = connection
        self._release = release
        self.status = connection.status
        self.headers = connection.headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first header with this lower-case name."""
        return first_header(self.headers, name)

    async def splice(self, write: Write) -> None:
        """Hand the body to `write` as it comes; return at its end.

        Raises:
            ConnectionBrokenError: the model server broke off.
        """
        await self._connection.splice(write)

    async def read(self) -> bytes:
        """Return the whole body; raises ConnectionBrokenError."""
        chunks: list[bytes] = []
        await self.splice(chunks.append)
        return b"".join(chunks)

    def throttle(self, pause: bool) -> None:
        """Stop reading from the model server, or go on."""
        self._connection.throttle(pause)

    def close(self) -> None:
        """Keep the connection for another request if the body was read to its end, else break it off at once."""
        self._release(self._connection)


async def dial_tcp(endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol]) -> object:
    """Connect to an endpoint."""
    return await asyncio.get_running_loop().create_connection(protocol, endpoint.host, endpoint.port)


class Upstream:
    """Connections to model servers, kept open between requests."""

    def __init__(self, dial: Dial = dial_tcp) -> None:
        self._dial = dial
        self._idle: dict[Endpoint, dict[_Connection, None]] = {}

    async def send(self, endpoint: Endpoint, method: str, target: str, headers: Headers, body: bytes = b"") -> Response:
        """Send a request and return its answer as soon as the head has come.

        Raises:
            ConnectError: the request was not sent.
            ConnectionBrokenError: it may have been.
        """
        head = _head(endpoint, method, target, headers, len(body))
        kept = self._take_idle(endpoint)
        if kept:
            try:
                return await self._exchange(endpoint, kept, head, body)
            except ConnectionBrokenError:
                if kept.received:
                    raise  # an answer had begun: not merely a connection that the server gave up while it was idle
        return await self._exchange(endpoint, await self._connect(endpoint), head, body)

    def close(self) -> None:
        """Close the idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    async def _exchange(self, endpoint: Endpoint, connection: "_Connection", head: bytes, body: bytes) -> Response:
        try:
            await connection.exchange(head, body)
        except BaseException:
            connection.abort()
            raise
        return Response(connection, lambda done: self._release(endpoint, done))

    async def _connect(self, endpoint: Endpoint) -> "_Connection":
        connection = _Connection(lambda lost: self._forget(endpoint, lost))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._dial(endpoint, lambda: connection)
        except OSError as cause:  # TimeoutError is one
            connection.abort()
            raise ConnectError(f"{endpoint.host}:{endpoint.port}: {cause or 'no answer'}") from cause
        except BaseException:
            connection.abort()  # it may have been made just before
            raise
        return connection

    def _take_idle(self, endpoint: Endpoint) -> "_Connection | None":
        """Return the connection that was used last, if it is still good."""
        idle = self._idle.get(endpoint)
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        while idle:
            connection, _ = idle.popitem()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    def _release(self, endpoint: Endpoint, connection: "_Connection") -> None:
        if connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.setdefault(endpoint, {})[connection] = None
        else:
            connection.abort()

    def _forget(self, endpoint: Endpoint, lost: "_Connection") -> None:
        """Drop a connection that ended while it was idle, so that endpoints that went are not remembered."""
        idle = self._idle.get(endpoint)
        if idle is None:
            return
        idle.pop(lost, None)
        if not idle:
            del self._idle[endpoint]


def _head(endpoint: Endpoint, method: str, target: str, headers: Headers, length: int) -> bytes:
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {endpoint.host}:{endpoint.port}\r\n".encode("latin-1")]
    lines += [b"%b: %b\r\n" % header for header in headers]
    if length or method != "GET":
        lines.append(b"content-length: %d\r\n" % length)
    return b"".join([*lines, b"\r\n"])


class _Connection(asyncio.Protocol):
    """One connection: an exchange at a time; httptools calls the `on_…` methods."""

    __slots__ = (
        "_broken",
        "_chunks",
        "_complete",
        "_head_complete",
        "_keep_alive",
        "_lost",
        "_parser",
        "_throttled",
        "_transport",
        "_unread",
        "_waiter",
        "_write",
        "headers",
        "idle_since",
        "received",
        "status",
    )

    def __init__(self, lost: Callable[["_Connection"], None]) -> None:
        self.status = 0
        self.headers: Headers = []
        self.received = False
        self.idle_since = 0.0
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._unread = 0
        self._throttled = False
        self._write: Write | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._head_complete = False
        self._complete = True
        self._keep_alive = True
        self._broken: str | None = None

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow: the last one is complete and the server keeps the connection."""
        return self._complete and self._keep_alive and self._broken is None and not self._chunks

    async def exchange(self, head: bytes, body: bytes) -> None:
        """Write a request and wait for the head of its answer; raises ConnectionBrokenError."""
        if self._transport is None or self._broken:
            raise ConnectionBrokenError(self._broken or "not connected")
        self.status, self.headers, self.received, self._write = 0, [], False, None
        if self._throttled:
            self.throttle(False)
        self._head_complete = self._complete = False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.writelines((head, body))
        while not self._head_complete:
            await self._progress()

    async def splice(self, write: Write) -> None:
        """Hand the body to `write` until it is complete; raises ConnectionBrokenError."""
        self._write = write
        if self._unread:
            self._unread = 0
            chunks, self._chunks = self._chunks, []
            write(b"".join(chunks))
            self._pause_or_resume()
        while not self._complete:
            await self._progress()

    def throttle(self, pause: bool) -> None:
        """Stop reading, or go on."""
        self._throttled = pause
        self._pause_or_resume()

    def abort(self, why: str = "given up") -> None:
        """Break the connection off at once."""
        self._fail(why)
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to, and have the kernel notice a host that is gone."""
        self._transport = cast("asyncio.Transport", transport)
        connected = transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._complete:
            self.abort("bytes that nobody asked for")  # this connection cannot be trusted
            return
        self.received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP: {error}")
        if self._write is None or self._complete or self._broken:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """End an answer that lasts until the connection closes, else the exchange is broken."""
        if self._head_complete and not self._complete and error is None and self._ends_with_connection():
            self._complete = True
        self._keep_alive = False
        self._fail(str(error) if error else "closed by the server")
        self._lost(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is there, unless it only said to go on."""
        self.status = self._parser.get_status_code()
        self._keep_alive = self._parser.should_keep_alive()
        self._head_complete = True

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on, or keep it and stop reading when nobody has asked for it yet."""
        if self._write is not None:
            self._write(body)
            return
        self._chunks.append(body)
        self._unread += len(body)
        if self._unread > HIGH_WATER:
            self._pause_or_resume()

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._complete = True

    def _pause_or_resume(self) -> None:
        if self._transport and not self._transport.is_closing():
            pause = self._throttled or self._unread > HIGH_WATER
            (self._transport.pause_reading if pause else self._transport.resume_reading)()

    def _ends_with_connection(self) -> bool:
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    def _fail(self, why: str) -> None:
        self._broken = self._broken or why
        self._wake()

    async def _progress(self) -> None:
        """Return when something has come that the exchange waits for; raises ConnectionBrokenError."""
        if self._broken is not None:
            raise ConnectionBrokenError(self._broken)
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
