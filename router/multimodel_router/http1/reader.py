"""What a client's bytes ask for: whole requests, or why no more can be read. Knows neither transports nor clocks."""

import re
from enum import Enum, auto
from http import HTTPStatus
from itertools import chain

import httptools

from multimodel_api import errors
from multimodel_router.http1.limits import Limits
from multimodel_router.http1.request import Headers, Request

_VERSIONS = ("1.0", "1.1")
_UPGRADE_HEADERS = {b"connection", b"upgrade", b"http2-settings"}


class Phase(Enum):
    """Where in a request the next byte belongs."""

    BETWEEN = auto()
    HEAD = auto()
    BODY = auto()


class Reader:
    """Reads requests with httptools, which calls the `on_…` methods; those raise ApiError for what is refused."""

    __slots__ = (
        "_body",
        "_headers",
        "_limits",
        "_parser",
        "_peer",
        "_request",
        "_target",
        "_unfinished",
        "_whole",
        "awaits_continue",
        "begun",
        "phase",
        "refusal",
    )

    def __init__(self, limits: Limits, peer: str) -> None:
        self.phase = Phase.BETWEEN
        self.begun = 0
        """How many requests have begun."""
        self.refusal: errors.ApiError | None = None
        """Why nothing more is read: from here on nobody knows where a request begins."""
        self.awaits_continue = False
        """Whether the client waits for a word before it sends the body."""
        self._limits = limits
        self._peer = peer
        self._parser = httptools.HttpRequestParser(self)
        self._unfinished = 0
        """Bytes that came since the current head or body began, but for those that came along with its beginning."""
        self._target = b""
        self._headers: Headers = []
        self._request: Request | None = None
        self._body = bytearray()
        self._whole: list[Request] = []

    def feed(self, data: bytes) -> list[Request]:
        """Return the requests that have become whole; `refusal` is what follows them, if anything."""
        self._unfinished += len(data)
        try:
            self._parse(data)
            self._require_end_in_sight()
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, errors.ApiError):
                raise
            self.refusal = error.__context__
        except httptools.HttpParserError as error:
            self.refusal = errors.invalid_request(f"The request is no HTTP/1.1: {error}.")
        except errors.ApiError as refusal:
            self.refusal = refusal
        whole, self._whole = self._whole, []
        return whole

    # The parser's side.

    def on_message_begin(self) -> None:
        """A head begins."""
        self.phase = Phase.HEAD
        self.begun += 1
        self._target, self._headers = b"", []

    def on_url(self, url: bytes) -> None:
        """Take the target, or a part of it."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those that follow a body mean nothing here."""
        if self.phase is Phase.HEAD:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide on the head: whether it is acceptable, and so is the body that it announces."""
        version = self._parser.get_http_version()
        require_acceptable(self._target, self._headers, version, self._limits)
        self._request = Request(
            self._parser.get_method().decode("ascii"),
            origin_form(self._target.decode("latin-1")),
            self._headers,
            self._peer,
            keep_alive=version == "1.1" and self._parser.should_keep_alive(),
            can_chunk=version == "1.1",
        )
        self.awaits_continue = version == "1.1" and _expects_continue(self._request)
        self.phase = Phase.BODY
        self._body, self._unfinished = bytearray(), 0

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, within the limit."""
        self.awaits_continue = False
        self._body += body
        if len(self._body) > self._limits.body_bytes:
            raise _body_too_large(self._limits)

    def on_message_complete(self) -> None:
        """Take the whole request, unless its head was only a wish for another protocol."""
        if self._request and not self._parser.should_upgrade():
            self._request.body = bytes(self._body)
            self._whole.append(self._request)
            self._request, self._body = None, bytearray()
            self.phase, self.awaits_continue, self._unfinished = Phase.BETWEEN, False, 0

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
            else:
                return

    def _without_upgrade(self) -> bytes:
        """Return the head anew, as one of HTTP/1.1: a server may ignore the wish to upgrade (RFC 9110, 7.8)."""
        request = self._request
        if request is None or request.method == "CONNECT":
            raise errors.ApiError(HTTPStatus.NOT_IMPLEMENTED, "CONNECT is not offered here.", code="not_implemented")
        self._parser = httptools.HttpRequestParser(self)
        kept = [b"%b: %b\r\n" % header for header in request.headers if header[0] not in _UPGRADE_HEADERS]
        first = f"{request.method} {request.target} HTTP/1.1\r\n".encode("latin-1")
        return b"".join([first, *kept, b"\r\n"])

    def _require_end_in_sight(self) -> None:
        """Refuse what goes on and on without a head or a body that ends: white space, one header, trailers."""
        if self.phase is Phase.BODY:
            if self._unfinished > 2 * self._limits.body_bytes:
                raise _body_too_large(self._limits)
        elif self._unfinished > self._limits.head_bytes:
            raise _head_too_large(self._limits)


def require_acceptable(target: bytes, headers: Headers, version: str, limits: Limits) -> None:
    """Require a head to be within the limits, and to leave no doubt where its request ends; pure.

    Raises:
        ApiError: it is not, or it does.
    """
    size = len(target) + 4 * len(headers) + sum(map(len, chain.from_iterable(headers)))
    if size > limits.head_bytes or len(headers) > limits.headers:
        raise _head_too_large(limits)
    if version not in _VERSIONS:
        raise errors.ApiError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, f"HTTP/{version} is not spoken here.")
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise errors.invalid_request(f"A request needs one Host header; this one has {hosts}.")
    if b"transfer-encoding" in names:
        _require_chunked([value for name, value in headers if name == b"transfer-encoding"], version)
    if b"content-length" in names and int(headers[names.index(b"content-length")][1]) > limits.body_bytes:
        raise _body_too_large(limits)


def _require_chunked(codings: list[bytes], version: str) -> None:
    if version == "1.0":
        raise errors.invalid_request("HTTP/1.0 knows no Transfer-Encoding; send a Content-Length.")
    if len(codings) > 1 or codings[0].lower() != b"chunked":
        raise errors.ApiError(HTTPStatus.NOT_IMPLEMENTED, "The only Transfer-Encoding known here is 'chunked'.")


def origin_form(target: str) -> str:
    """Return a target that was written for a proxy as its path and query (RFC 9112, 3.2.2), any other as it is."""
    if target.startswith("/"):
        return target
    absolute = re.match(r"https?://[^/?]*", target, re.IGNORECASE)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith("/") else f"/{rest}"


def _expects_continue(request: Request) -> bool:
    return (request.header(b"expect") or b"").lower() == b"100-continue"


def _head_too_large(limits: Limits) -> errors.ApiError:
    return errors.ApiError(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        f"The request's head is longer than {limits.head_bytes // 1024} KiB or has more than {limits.headers} headers.",
        code="head_too_large",
    )


def _body_too_large(limits: Limits) -> errors.ApiError:
    return errors.ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request body is longer than {limits.body_bytes // 2**20} MiB; send less.",
        code="request_too_large",
    )
