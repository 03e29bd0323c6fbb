"""How a stream that broke goes on at another model server: the words that router and model server share.

The router sends `RESUMABLE_HEADER` with a request for a stream. A server that can have the answer go on elsewhere
replies with `STATE_HEADER`, and writes markers: comments that stand alone between events. `: resume 51 99` names the
tokens of which the events since the marker before were made, `: resume` follows the events that no token made, and
`: resume end` the last events, those of the last tokens included. What a client has seen ends with a complete marker.

To go on, the same request is sent with `FIELD` put first: the state, and the tokens of all markers so far. The answer
begins with what follows the last marker. Until there was a marker, the request is sent again as it was.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

RESUMABLE_HEADER = "x-multimodel-resumable"
"""On a request, with any value: the stream may have markers."""
STATE_HEADER = "x-multimodel-resume"
"""On an answer: the stream has markers, and this is the state to send back."""
FIELD = "multimodel_resume"

MAX_STATE = 512
END_MARKER = b": resume end\n\n"

_MARKER = b": resume"
_OPENING = f'{{"{FIELD}":'.encode()
_NEWLINE = 0x0A
_DIGITS = b"0123456789 "


class Resume(BaseModel):
    """Where an answer goes on."""

    model_config = ConfigDict(strict=True, frozen=True)

    state: Annotated[str, Field(max_length=MAX_STATE)]
    """The value of `STATE_HEADER`."""
    token_ids: list[Annotated[int, Field(ge=0, lt=2**32)]]
    """All tokens that the markers named, in their order."""


class ResumeRequest(BaseModel):
    """What is read of a request's body beside the request itself."""

    multimodel_resume: Resume


def resuming(body: bytes, resume: Resume) -> bytes:
    """Return the body, a JSON object with at least one field, of a request to go on with its answer."""
    return b"%s%s,%s" % (_OPENING, resume.model_dump_json().encode(), body.lstrip().removeprefix(b"{"))


def is_resuming(body: bytes) -> bool:
    """Say whether `resuming` made a request's body."""
    return body.startswith(_OPENING)


def marker(token_ids: Iterable[int]) -> bytes:
    """Return the marker that follows events made of these tokens."""
    return _MARKER + b"".join(b" %d" % token_id for token_id in token_ids) + b"\n\n"


class MarkerReader:
    """Takes the markers out of a stream, and holds back what no marker has followed yet.

    A router feeds it every piece of every stream, so it keeps the ids as they are written until they are asked for.
    """

    __slots__ = ("ended", "held", "written_ids")

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        """`token_ids` are those of the streams that this one goes on with."""
        self.ended = False
        """Whether the last marker was read."""
        self.held = b""
        """What came after the last complete marker: of a stream without an end, perhaps the error that ended it."""
        self.written_ids = bytearray(b"".join([b" %d" % token_id for token_id in token_ids]))
        """The tokens of all markers so far, as those write them."""

    @property
    def token_ids(self) -> list[int]:
        """The tokens of all markers so far."""
        return list(map(int, self.written_ids.split()))

    @property
    def token_count(self) -> int:
        """How many those are, without reading them."""
        return len(self.written_ids.split())

    def feed(self, data: bytes) -> bytes:
        """Return what the client may see now; raises ValueError if a marker is none."""
        data = self.held + data
        seen, searched, forwarded = 0, 0, []
        while (start := data.find(_MARKER, searched)) >= 0:
            end = data.find(b"\n\n", start)
            if end < 0:
                break
            if start and data[start - 1] != _NEWLINE:  # it stands in an event's text
                searched = start + len(_MARKER)
                continue
            self._note(data[start + len(_MARKER) : end])
            forwarded.append(data[seen:start])
            seen = searched = end + 2
        self.held = data[seen:]
        return forwarded[0] if len(forwarded) == 1 else b"".join(forwarded)

    def _note(self, said: bytes) -> None:
        if not said.translate(None, _DIGITS):
            self.written_ids += said
        elif said == b" end":
            self.ended = True
        else:
            raise ValueError(f"no tokens: {said!r}")
