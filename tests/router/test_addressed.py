"""What is read of a request's body and of an answer's end."""

import json
from typing import Any

import pytest

from multimodel_api.errors import ApiError
from multimodel_router.addressed import PREFIX_BYTES, opening, read_addressed
from multimodel_router.usage import PIECES, Tail

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def opened(**body: Any) -> bytes:
    return opening(json.dumps(body).encode())


def test_the_requests_of_one_conversation_open_alike() -> None:
    first = opened(messages=[SYSTEM, user("hello")])
    later = opened(messages=[SYSTEM, user("hello"), {"role": "assistant", "content": "hi"}, user("and now?")])
    assert first == later
    assert first != opened(messages=[SYSTEM, user("goodbye")])
    assert first != opened(messages=[SYSTEM | {"content": "Be long."}, user("hello")])


@pytest.mark.parametrize("field", ["prompt", "input", "instructions", "system"])
def test_each_routes_words_count(field: str) -> None:
    assert opened(**{field: "one"}) != opened(**{field: "two"})
    assert opened(**{field: "one"}, temperature=0.1) == opened(temperature=0.9, **{field: "one"})


def test_a_long_opening_is_cut_and_a_strange_one_is_no_error() -> None:
    assert len(opened(prompt="x" * 10 * PREFIX_BYTES)) == PREFIX_BYTES
    assert opened(prompt=[[1, 2], [3]]) != opened(prompt=[[1, 3], [3]])
    assert opened(messages=["no message", 7]) == opened(messages=["no message", 7])
    assert opened(model="m") == b"{}"


@pytest.mark.parametrize(
    ("end", "tokens"),
    [
        (b'{"usage": {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18}}', (7, 11)),
        (b'data: {"usage":{"input_tokens":5,"output_tokens":6}}\n\ndata: [DONE]\n\n', (5, 6)),
        (b'{"usage": {"output_tokens": 1}} ... {"usage": {"output_tokens": 42}}', (0, 42)),
        (b"data: [DONE]\n\n", (0, 0)),
    ],
)
@pytest.mark.parametrize("piece", [16, 50, 10_000])
def test_the_tokens_are_read_from_the_last_pieces(end: bytes, tokens: tuple[int, int], piece: int) -> None:
    tail = Tail()
    for before in (b'{"prompt_tokens": 999}', *[b"data: x"] * PIECES):
        tail.feed(before)
    for start in range(0, len(end), piece):
        tail.feed(end[start : start + piece])
    assert tail.tokens() == tokens


@pytest.mark.parametrize(
    ("body", "model", "stream"),
    [
        (b"{}", None, None),
        (b'{"model": "a", "stream": true, "n": [1]}', "a", True),
        (b'{"model": null, "stream": null}', None, None),
        (b'{"model": "b", "x": NaN}', "b", None),
        (b'{"x": "\xff", "model": "a"}', "a", None),
    ],
)
def test_the_model_and_the_wish_for_a_stream_are_read(body: bytes, model: str | None, stream: bool | None) -> None:
    addressed = read_addressed(body)
    assert (addressed.model, addressed.stream) == (model, stream)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b'{"model": 7}', "model", "(got 7)"),
        (b'{"model": "a", "stream": 1}', "stream", "(got 1)"),
        (b"[1]", None, "object"),
        (b'{"model": "a"', None, "not valid JSON"),
        (b'{"a":' + b"[" * 100_000, None, "not valid JSON"),
    ],
    ids=lambda given: repr(given)[:24],
)
def test_what_is_wrong_with_them_is_said(body: bytes, param: str | None, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        read_addressed(body)
    assert (refused.value.status, refused.value.detail.param) == (400, param)
    assert words in refused.value.detail.message


def test_a_body_that_is_no_json_opens_nothing() -> None:
    assert opening(b'{"prompt": "\xff"}') == b""
