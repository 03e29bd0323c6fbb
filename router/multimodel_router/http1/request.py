"""A client's request, read whole."""

import itertools
import re
import secrets
from dataclasses import dataclass, field

Headers = list[tuple[bytes, bytes]]
"""Names in lower case."""

REQUEST_ID = b"x-request-id"
_PROCESS = secrets.token_hex(8).encode()
"""Makes ids of one process unlike those of any other."""
_numbers = itertools.count(1)

_ACCEPTABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


def first_header(headers: Headers, name: bytes) -> bytes | None:
    """Return the value of the first header with this lower-case name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def lines_of(headers: Headers) -> bytes:
    """Return headers as a head holds them, a line each."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


@dataclass(slots=True)
class Request:
    """One request; `id` is the client's `x-request-id` or one made here, and stands in `headers` too."""

    method: str
    target: str
    headers: Headers
    peer: str
    keep_alive: bool
    can_chunk: bool
    """Whether the client speaks HTTP/1.1, so that an answer of unknown length can be sent in chunks."""
    body: bytes = b""
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        given = self.header(REQUEST_ID)
        if given is not None:
            self.headers = [header for header in self.headers if header[0] != REQUEST_ID]
        self.id = given if given and _ACCEPTABLE_ID.fullmatch(given) else b"%s-%x" % (_PROCESS, next(_numbers))
        self.headers.append((REQUEST_ID, self.id))

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def header(self, name: bytes) -> bytes | None:
        """Return the first header with this lower-case name."""
        return first_header(self.headers, name)
