"""What is written of an answer, group by group, where pieces cannot be had from a model at will."""

from collections.abc import Sequence
from http import HTTPStatus

import pytest

from multimodel_api.errors import ApiError, invalid_request, server_error
from multimodel_server.answer import Piece
from multimodel_server.routes.transcript import DONE, Event, Transcript, openai_failure
from multimodel_server.text.parts import Content


class Writer:
    """Writes a piece's text."""

    def opening(self, index: int) -> list[Event]:
        return [Event(f"open {index}")]

    def growth(self, index: int, piece: Piece) -> list[Event]:  # noqa: ARG002
        return [Event(piece.text)]

    def closing(self) -> list[Event]:
        return [DONE]

    def failure(self, error: ApiError) -> Event:
        return openai_failure(error)


def piece(text: str, token_ids: Sequence[int], *, withholds: bool = False, ends: bool = False) -> Piece:
    return Piece([Content(text)], list(token_ids), "stop" if ends else None, withholds=withholds)


def test_a_marker_waits_until_nothing_is_withheld() -> None:
    transcript = Transcript(Writer(), 1, marked=True)
    assert transcript.written(0, piece("a", [1])) == b"data: open 0\n\n: resume\n\ndata: a\n\n: resume 1\n\n"
    assert transcript.written(0, piece("b", [2, 3], withholds=True)) == b""
    assert transcript.written(0, piece("c", [4])) == b"data: b\n\ndata: c\n\n: resume 2 3 4\n\n"
    assert transcript.written(0, piece("d", [5], ends=True)) == b"data: d\n\ndata: [DONE]\n\n: resume end\n\n"


def test_several_answers_have_one_end_and_no_markers() -> None:
    transcript = Transcript(Writer(), 2, marked=False)
    assert transcript.written(1, piece("a", [1], ends=True)) == b"data: open 1\n\ndata: a\n\n"
    assert transcript.written(0, piece("b", [2], withholds=True)) == b"data: open 0\n\ndata: b\n\n"
    assert transcript.written(0, piece("c", [3], ends=True)) == b"data: c\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(("error", "is_last_word"), [(invalid_request("wrong"), True), (server_error("broken"), False)])
def test_only_an_error_of_the_request_ends_a_marked_stream(error: ApiError, is_last_word: bool) -> None:
    transcript = Transcript(Writer(), 1, marked=True)
    transcript.written(0, piece("a", [1]))
    transcript.written(0, piece("b", [2], withholds=True))
    end = b": resume end\n\n" if is_last_word else b""
    assert transcript.failed(error) == b"data: b\n\n" + openai_failure(error).encode() + end
    assert (error.status is HTTPStatus.BAD_REQUEST) is is_last_word
