"""A small HTTP/1.1 client for model servers: keep-alive connections whose answers are passed on as they come."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import httptools

from multimodel_router.fleet import Endpoint

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 4.0
"""Idle connections are not used longer: uvicorn closes them after 5 s, and a race costs a retry."""

HIGH_WATER = 256 * 1024
"""Unread bytes of an answer at which reading stops until the client has caught up."""

Headers = list[tuple[bytes, bytes]]
Dial = Callable[[Endpoint, Callable[[], asyncio.Protocol]], Awaitable[object]]


class UpstreamError(Exception):
    """A model server did not answer as it should."""


class ConnectError(UpstreamError):
    """No connection: refused, no route, or not in time; the request was not sent."""


class ConnectionBrokenError(UpstreamError):
    """The connection ended, or its bytes were no HTTP, before the answer was whole."""


class Response:
    """An answer whose head has come; iterate over its body, and close it in any case."""

    def __init__(self, connection: "_Connection", release: Callable[["_Connection"], None]) -> None:
        self._connection = connection
        self._release = release
        self.status = connection.status
        self.headers = connection.headers

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body's bytes as they come.

        Raises:
            ConnectionBrokenError: the model server broke off.
        """
        while chunk := await self._connection.next_chunk():
            yield chunk

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.body()])

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
        self._idle: dict[Endpoint, list[_Connection]] = {}

    async def send(self, endpoint: Endpoint, method: str, target: str, headers: Headers, body: bytes = b"") -> Response:
        """Send a request and return its answer as soon as the head has come.

        Raises:
            ConnectError: the request was not sent.
            ConnectionBrokenError: it may have been.
        """
        request = _serialised(endpoint, method, target, headers, body)
        kept = self._take_idle(endpoint)
        if kept:
            try:
                return await self._exchange(endpoint, kept, request)
            except ConnectionBrokenError:
                if kept.received:
                    raise  # an answer had begun: not merely a connection that the server gave up while it was idle
        return await self._exchange(endpoint, await self._connect(endpoint), request)

    def close(self) -> None:
        """Close the idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    async def _exchange(self, endpoint: Endpoint, connection: "_Connection", request: bytes) -> Response:
        try:
            await connection.exchange(request)
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
            raise ConnectError(f"{endpoint.host}:{endpoint.port}: {cause or 'no answer'}") from cause
        return connection

    def _take_idle(self, endpoint: Endpoint) -> "_Connection | None":
        now = asyncio.get_running_loop().time()
        connections = self._idle.pop(endpoint, [])
        fresh = [c for c in connections if c.reusable and now - c.idle_since < IDLE_SECONDS]
        for connection in connections:
            if connection not in fresh:
                connection.abort()
        taken = fresh.pop() if fresh else None
        if fresh:
            self._idle[endpoint] = fresh
        return taken

    def _release(self, endpoint: Endpoint, connection: "_Connection") -> None:
        if connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.setdefault(endpoint, []).append(connection)
        else:
            connection.abort()

    def _forget(self, endpoint: Endpoint, lost: "_Connection") -> None:
        """Drop a connection that ended while it was idle, so that endpoints that went are not remembered."""
        others = [connection for connection in self._idle.pop(endpoint, []) if connection is not lost]
        if others:
            self._idle[endpoint] = others


def _serialised(endpoint: Endpoint, method: str, target: str, headers: Headers, body: bytes) -> bytes:
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {endpoint.host}:{endpoint.port}\r\n".encode("ascii")]
    lines += [b"%b: %b\r\n" % header for header in headers]
    if body or method != "GET":
        lines.append(b"content-length: %d\r\n" % len(body))
    return b"".join([*lines, b"\r\n", body])


class _Connection(asyncio.Protocol):
    """One connection: an exchange at a time; httptools calls the `on_…` methods."""

    def __init__(self, lost: Callable[["_Connection"], None]) -> None:
        self.status = 0
        self.headers: Headers = []
        self.received = False
        self.idle_since = 0.0
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._progress = asyncio.Event()
        self._head_complete = False
        self._complete = True
        self._keep_alive = True
        self._broken: str | None = None

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow: the last one is complete and the server keeps the connection."""
        return self._complete and self._keep_alive and self._broken is None and not self._chunks

    async def exchange(self, request: bytes) -> None:
        """Write a request and wait for the head of its answer; raises ConnectionBrokenError."""
        if self._transport is None or self._broken:
            raise ConnectionBrokenError(self._broken or "not connected")
        self.status, self.headers, self.received = 0, [], False
        self._head_complete = self._complete = False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        while not self._head_complete:
            self._raise_if_broken()
            await self._next_progress()

    async def next_chunk(self) -> bytes:
        """Return what has come of the body, waiting for it; empty at its end. Raises ConnectionBrokenError."""
        while not self._chunks:
            if self._complete:
                return b""
            self._raise_if_broken()
            await self._next_progress()
        chunk = b"".join(self._chunks)
        self._chunks.clear()
        self._unread = 0
        if self._transport and not self._transport.is_closing():
            self._transport.resume_reading()
        return chunk

    def abort(self) -> None:
        """Break the connection off at once."""
        self._fail("given up")
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._complete:
            self.abort()  # bytes that nobody asked for: this connection cannot be trusted
            return
        self.received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP: {error}")
        self._progress.set()

    def connection_lost(self, error: Exception | None) -> None:
        """End an answer that lasts until the connection closes, else the exchange is broken."""
        if self._head_complete and not self._complete and error is None and self._ends_with_connection():
            self._complete = True
        self._keep_alive = False
        self._fail(str(error) if error else "closed by the server")
        self._lost(self)

    def on_status(self, status: bytes) -> None:  # noqa: ARG002  (httptools passes the phrase)
        """Take the status from the parser."""
        self.status = self._parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is there."""
        self.status = self._parser.get_status_code()
        self._keep_alive = self._parser.should_keep_alive()
        self._head_complete = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; stop reading when the client is slower."""
        self._chunks.append(body)
        self._unread += len(body)
        if self._unread > HIGH_WATER and self._transport:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._complete = True

    def _ends_with_connection(self) -> bool:
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    def _fail(self, why: str) -> None:
        self._broken = self._broken or why
        self._progress.set()

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise ConnectionBrokenError(self._broken)

    async def _next_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()
