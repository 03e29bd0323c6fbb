"""One connection to a model server: an exchange at a time, whose answer is spliced on as it comes."""

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from multimodel_router.fleet import Endpoint
from multimodel_router.http1.request import Headers, lines_of

HIGH_WATER = 256 * 1024
"""Bytes of an answer that nobody has asked for yet at which reading stops."""

_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A host that has gone without a word breaks its connections after 25 s, however quiet they were."""

Write = Callable[[bytes], None]
ShortWay = Callable[[bytes], bool]
"""Takes a read that is exactly one chunk, or says that it does not."""


def long_way(_read: bytes) -> bool:
    """Take no read."""
    return False


class Splice(NamedTuple):
    """Where a body goes as it comes."""

    write: Write
    short_way: ShortWay = long_way
    """Is offered first each read that begins where a chunk may, framing included."""


def wait_for_caller(_response: "Response") -> None:
    """Leave it to the caller of `send` what becomes of an answer."""


class UpstreamError(Exception):
    """A model server did not answer as it should."""


class ConnectionBrokenError(UpstreamError):
    """The connection ended, or its bytes were no HTTP, before the answer was whole."""


class Response:
    """An answer whose head has come; splice or read its body, and close it in any case."""

    __slots__ = ("_by_name", "_connection", "_release", "headers", "spliced", "status")

    def __init__(self, connection: "UpstreamConnection", release: Callable[["UpstreamConnection"], None]) -> None:
        self._connection = connection
        self._release = release
        self.status = connection.status
        self.headers = connection.headers
        self.spliced = connection.spliced
        """Whether `at_head` of `send` said where the body goes: it has gone there."""
        self._by_name = dict(connection.headers)

    def header(self, name: bytes) -> bytes | None:
        """Return the header with this lower-case name, the last of several."""
        return self._by_name.get(name)

    async def splice(self, splice: Splice) -> None:
        """Hand the body on as it comes; return at its end.

        Raises:
            ConnectionBrokenError: the model server broke off.
        """
        await self._connection.splice(splice)

    async def read(self) -> bytes:
        """Return the whole body; raises ConnectionBrokenError."""
        chunks: list[bytes] = []
        await self.splice(Splice(chunks.append))
        return b"".join(chunks)

    def throttle(self, pause: bool) -> None:
        """Stop reading from the model server, or go on."""
        self._connection.throttle(pause)

    def close(self) -> None:
        """Keep the connection for another request if the body was read to its end, else break it off at once."""
        self._release(self._connection)


AtHead = Callable[[Response], Splice | None]


class Outgoing(NamedTuple):
    """A request to an endpoint."""

    endpoint: Endpoint
    method: str
    target: str
    headers: Headers
    body: bytes = b""
    at_head: AtHead = wait_for_caller
    """May say where the body goes, which saves it the time until the sender runs again; may not close the answer."""

    def head(self) -> bytes:
        """Return the bytes before the body."""
        host, port = self.endpoint
        first = f"{self.method} {self.target} HTTP/1.1\r\nhost: {host}:{port}\r\n".encode("latin-1")
        sized = b"content-length: %d\r\n" % len(self.body) if self.body or self.method != "GET" else b""
        return first + lines_of(self.headers) + sized + b"\r\n"


class UpstreamConnection(asyncio.Protocol):
    """One connection: an exchange at a time; httptools calls the `on_…` methods."""

    __slots__ = (
        "_at_chunk",
        "_at_head",
        "_broken",
        "_chunk_ended",
        "_chunks",
        "_complete",
        "_head_complete",
        "_keep_alive",
        "_lost",
        "_parser",
        "_short_way",
        "_throttled",
        "_transport",
        "_unread",
        "_waiter",
        "_write",
        "headers",
        "idle_since",
        "received",
        "spliced",
        "status",
    )

    def __init__(self, lost: Callable[["UpstreamConnection"], None]) -> None:
        self.status = 0
        self.headers: Headers = []
        self.received = False
        self.spliced = False
        self.idle_since = 0.0
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._unread = 0
        self._throttled = False
        self._at_head: AtHead | None = None
        """Asked once the head is complete."""
        self._write: Write | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._short_way: ShortWay = long_way
        self._at_chunk = False
        """Whether the next byte begins a chunk."""
        self._chunk_ended = False
        self._head_complete = False
        self._complete = True
        self._keep_alive = True
        self._broken: str | None = None

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow: the last one is complete and the server keeps the connection."""
        return self._complete and self._keep_alive and self._broken is None and not self._chunks

    def begin(self, request: Outgoing) -> None:
        """Write a request; `answered` tells what comes of it, if the connection has just broken too."""
        self.status, self.headers, self.received, self.spliced = 0, [], False, False
        self._write, self._at_head = None, request.at_head
        if self._throttled:
            self.throttle(False)
        self._at_chunk = self._chunk_ended = self._head_complete = self._complete = False
        self._parser = httptools.HttpResponseParser(self)
        if self._transport and not self._broken:
            self._transport.writelines((request.head(), request.body))

    async def answered(self) -> None:
        """Wait for the head of the answer, and for its end if it is spliced then; raises ConnectionBrokenError."""
        while not (self._complete if self.spliced else self._head_complete):
            await self._progress()

    async def splice(self, splice: Splice) -> None:
        """Hand the body on until it is complete; raises ConnectionBrokenError."""
        self._hand_on(splice)
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
        self._transport.set_write_buffer_limits(0)  # what is written is sent at once, not after all that has come
        connected = transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it went the short way."""
        if self._at_chunk and self._short_way(data):
            return
        if self._complete:
            self.abort("bytes that nobody asked for")  # this connection cannot be trusted
            return
        self.received = True
        try:
            self._parser.feed_data(data)
            if self._head_complete and self._at_head:
                self._ask(self._at_head)
            self._at_chunk = self._chunk_ended and self._write is not None and data.endswith(b"\r\n")
        except (httptools.HttpParserError, ValueError) as error:
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

    def on_chunk_header(self) -> None:
        """A chunk has begun."""
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        """A chunk has ended, with its line break."""
        self._chunk_ended = True

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._chunk_ended, self._complete = False, True

    def _ask(self, at_head: AtHead) -> None:
        self._at_head = None
        if splice := at_head(Response(self, UpstreamConnection.abort)):
            self.spliced = True
            self._hand_on(splice)

    def _hand_on(self, splice: Splice) -> None:
        """Hand on what has come of the body, and from now on what comes."""
        self._write, self._short_way = splice
        if self._unread:
            self._unread = 0
            chunks, self._chunks = self._chunks, []
            self._write(b"".join(chunks))
            self._pause_or_resume()

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
