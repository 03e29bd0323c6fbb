"""Markers in streams, and requests to go on, as router and model server read each other's."""

import json

import pytest

from multimodel_api.resume import END_MARKER, MarkerReader, Resume, ResumeRequest, is_resuming, marker, resuming

EVENTS = [
    b'data: {"a": ": resume 7"}\n\n',
    b'event: x\ndata: ": resume end"\n\n',
    b": a comment\n\n",
    b"data: [DONE]\n\n",
]
SENT = EVENTS[0] + marker([]) + EVENTS[1] + marker([5123, 99]) + EVENTS[2] + marker([7]) + EVENTS[3] + END_MARKER


@pytest.mark.parametrize("size", [1, 2, 7, 30, len(SENT)])
def test_markers_are_taken_out_however_the_stream_is_cut(size: int) -> None:
    reader = MarkerReader()
    pieces = [reader.feed(SENT[start : start + size]) for start in range(0, len(SENT), size)]
    assert b"".join(pieces) == b"".join(EVENTS)
    assert (reader.token_ids, reader.ended, reader.held) == ([5123, 99, 7], True, b"")


def test_what_no_marker_followed_is_held_back() -> None:
    reader = MarkerReader([3])
    assert reader.feed(EVENTS[0]) == b""
    assert reader.feed(b": resume") == b""
    assert reader.feed(b" 4\n\n" + EVENTS[1] + b": resume 5") == EVENTS[0]
    assert not reader.ended
    assert (reader.token_ids, reader.held) == ([3, 4], EVENTS[1] + b": resume 5")


def test_a_marker_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="x"):
        MarkerReader().feed(b": resume x\n\n")


def test_a_request_to_go_on_is_the_same_request() -> None:
    asked = {"model": "a", "messages": [{"role": "user", "content": "{"}]}
    body = resuming(b"\n " + json.dumps(asked).encode(), Resume(state='"', token_ids=[1, 2]))
    assert is_resuming(body)
    assert not is_resuming(json.dumps(asked).encode())
    assert json.loads(body) == {"multimodel_resume": {"state": '"', "token_ids": [1, 2]}, **asked}
    assert ResumeRequest.model_validate_json(body).multimodel_resume.token_ids == [1, 2]
