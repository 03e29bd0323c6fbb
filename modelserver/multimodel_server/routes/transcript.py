"""What of an answer is written, and when: its events in groups, each with a marker where the stream has markers."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple, Protocol

from multimodel_api.errors import ApiError
from multimodel_api.resume import END_MARKER, marker
from multimodel_server.answer import Piece


class Event(NamedTuple):
    """One server-sent event; without a name it is a message."""

    data: str
    name: str | None = None

    def encode(self) -> bytes:
        """Return the event as it is sent."""
        name = "" if self.name is None else f"event: {self.name}\n"
        return f"{name}data: {self.data}\n\n".encode()


DONE = Event("[DONE]")


def openai_failure(error: ApiError) -> Event:
    """Return the event that tells OpenAI's clients of an error."""
    return Event(error.body.model_dump_json())


class EventWriter(Protocol):
    """Says the same in the events of one API; calls come in the order of the stream."""

    def opening(self, index: int) -> list[Event]:
        """Return the events before an answer's first piece."""

    def growth(self, index: int, piece: Piece) -> list[Event]:
        """Return the events of a piece of an answer."""

    def closing(self) -> list[Event]:
        """Return the events after the last piece of all."""

    def failure(self, error: ApiError) -> Event:
        """Return the event that tells of an error."""


class Transcript:
    """The bytes of a stream of one or more answers; with markers, of one.

    The last piece goes out together with the end. So a stream that broke before its last marker has not ended yet, and
    where it goes on all of the end is written.
    """

    def __init__(self, writer: EventWriter, answers: int, *, marked: bool) -> None:
        self._writer = writer
        self._unfinished = answers
        self._marked = marked
        self._opened: set[int] = set()
        self._unwritten = b""
        self._token_ids: list[int] = []

    def open(self, index: int) -> bytes:
        """Return the beginning of an answer that has none yet."""
        if index in self._opened:
            return b""
        self._opened.add(index)
        events = _encoded(self._writer.opening(index))
        return events + marker([]) if events and self._marked else events

    def written(self, index: int, piece: Piece) -> bytes:
        """Return what to write now that an answer grew by a piece; nothing if no marker may follow yet."""
        self._unwritten += self.open(index) + _encoded(self._writer.growth(index, piece))
        self._token_ids += piece.token_ids
        self._unfinished -= piece.finish_reason is not None
        if not self._unfinished:
            return self._taken() + _encoded(self._writer.closing()) + (END_MARKER if self._marked else b"")
        if not self._marked:
            return self._taken()
        if piece.withholds:
            return b""
        token_ids, self._token_ids = self._token_ids, []
        return self._taken() + marker(token_ids)

    def failed(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed; it has no marker if another server may do better."""
        is_last_word = self._marked and error.status < HTTPStatus.INTERNAL_SERVER_ERROR
        return self._taken() + self._writer.failure(error).encode() + (END_MARKER if is_last_word else b"")

    def _taken(self) -> bytes:
        unwritten, self._unwritten = self._unwritten, b""
        return unwritten


def _encoded(events: Sequence[Event]) -> bytes:
    return b"".join(event.encode() for event in events)
