"""The reply to one request, written straight to the client's transport."""

import asyncio
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from pydantic import BaseModel

from multimodel_router.http1.request import REQUEST_ID, Headers, Request, lines_of

_PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}
_NO_BODY = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}

JSON = (b"content-type", b"application/json")


@lru_cache(maxsize=1)
def _date(now: int) -> bytes:
    return formatdate(now, usegmt=True).encode()


class Reply:
    """Begun once with `start`, grown with `write`, finished with `end`; `on_pressure` is told when to pause."""

    __slots__ = (
        "_behind",
        "_bodiless",
        "_caught_up",
        "_chunked",
        "_content_type",
        "_extra",
        "_head",
        "_loop",
        "_on_pressure",
        "_request",
        "bytes_sent",
        "ended",
        "first_byte",
        "flows",
        "keep_alive",
        "status",
        "transport",
    )

    def __init__(
        self, request: Request, transport: asyncio.WriteTransport, extra: Iterable[tuple[bytes, bytes]]
    ) -> None:
        self.status = 0
        self.bytes_sent = 0
        self._loop = asyncio.get_running_loop()
        self.ended = False
        self.first_byte: float | None = None
        """When the first byte of the body was written that is no padding, by the loop's clock."""
        self.flows = False
        """Whether all that was written has been handed to the transport, and chunks may follow: nobody has left."""
        self.keep_alive = request.keep_alive
        self._request = request
        self.transport = transport
        self._extra = [(REQUEST_ID, request.id), *extra]
        self._content_type = b""
        self._head = b""
        """What has to be sent before any more of the body."""
        self._chunked = False
        self._bodiless = False
        self._behind = False
        """Whether the client is slower than what is written."""
        self._caught_up: asyncio.Event | None = None
        """Set when it no longer is; made for those who wait."""
        self._on_pressure: Callable[[bool], None] | None = None

    @property
    def started(self) -> bool:
        """Whether the head has been written: from then on the status cannot change."""
        return self.status != 0

    @property
    def is_event_stream(self) -> bool:
        """Whether the answer that has begun is a stream of events."""
        return self._content_type.startswith(b"text/event-stream")

    def start(self, status: int, headers: Headers) -> None:
        """Write the head; without a `content-length` the body goes out in chunks, or until the connection closes."""
        self.status = status
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"Unknown"))]
        lines.append(lines_of(headers + self._extra))
        of_name = dict(headers)
        if b"date" not in of_name:
            lines.append(b"date: %b\r\n" % _date(int(time.time())))
        self._content_type = of_name.get(b"content-type", b"")
        self._bodiless = status in _NO_BODY or self._request.method == "HEAD"
        sized = self._bodiless or b"content-length" in of_name
        self._chunked = not sized and self._request.can_chunk
        self.keep_alive = self.keep_alive and (sized or self._chunked)
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)
        self._loop.call_soon(self._flush)  # by then, what there is of the body has joined it

    def write(self, data: bytes) -> None:
        """Write a piece of the body."""
        if self._bodiless or not data or self.transport.is_closing():
            return
        if self.first_byte is None:
            self.first_byte = self._loop.time()
        self.bytes_sent += len(data)
        piece = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        if self._head:
            piece, self._head = self._head + piece, b""
        self.transport.write(piece)
        self.flows = self._chunked

    def pad(self, data: bytes) -> None:
        """Write what means nothing to the client, to show that the connection lives: white space, or comments."""
        first_byte = self.first_byte
        self.write(data)
        self.first_byte = first_byte

    def end(self) -> None:
        """Finish the body."""
        last = b"0\r\n\r\n" if self._chunked and not self._bodiless else b""
        self._head += last
        self._flush()
        self.ended = True

    def document(self, status: int, body: BaseModel, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Write a whole reply that is one JSON document."""
        content = body.model_dump_json().encode()
        more = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self.start(status, [JSON, (b"content-length", b"%d" % len(content)), *more])
        self.write(content)
        self.end()

    def throttle(self, on_pressure: Callable[[bool], None] | None) -> None:
        """Tell `on_pressure` True when the client is slower than what is written, False when it has caught up."""
        self._on_pressure = on_pressure
        if on_pressure and self._behind:
            on_pressure(True)

    async def writable(self) -> None:
        """Return when the client has caught up."""
        while self._behind:
            self._caught_up = self._caught_up or asyncio.Event()
            await self._caught_up.wait()

    def pressure(self, high: bool) -> None:
        """Take the transport's word on how full its buffer is."""
        self._behind = high
        if self._caught_up and not high:
            self._caught_up.set()
            self._caught_up = None
        if self._on_pressure:
            self._on_pressure(high)

    def _flush(self) -> None:
        """Write what waits, to a client that is there: one that left has its request given up a moment later."""
        if self._head and not self.transport.is_closing():
            self.transport.write(self._head)
        self._head = b""
