"""Nearly right bytes: every answer is whole and its client's own, and what is sent on is what a strict reader sees."""

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Connect = Callable[..., Awaitable[Any]]
ReadAnswers = Callable[[bytes], list[Any]]

OWN_STATUSES = {200, 400, 404, 405, 408, 413, 431, 501, 505}
AT_ONCE = 8

# Streams of requests, and what is done to them.

NUMBER = b"@@@@@@"
"""Stands for the number that tells a stream from all others."""

BREAKS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"\x0b",
    b"\x80",
    b" ",
    b"\t",
    b":",
    b"\r\n ",
    b"0\r\n\r\n",
    b"HTTP/1.0",
    b"HTTP/0.9",
]
LINES = [
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding : chunked"),
    *(b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: gzip, chunked"),
    *(b"Transfer-Encoding: chunked, identity", b"Transfer_Encoding: chunked", b"Transfer-Encoding\r\n: chunked"),
    *(b"Transfer-Encoding:\r\n chunked", b"TRANSFER-ENCODING: CHUNKED", b"X: y\r\n\r\nGET /health/live HTTP/1.1"),
    *(
        b"Content-Length: 0",
        b"Content-Length: 5",
        b"Content-Length: 1e1",
        b"Content-Length: +9",
        b"Content-Length: 0x9",
    ),
    *(b"Content-Length: 99999999", b"Content-Length:", b"Content-Length : 3", b"content-length: 40, 40"),
    *(b"Host: elsewhere", b"Host:", b"Connection: close", b"Connection: keep-alive", b"Connection: content-length"),
    *(b"Connection: Upgrade\r\nUpgrade: h2c", b"Upgrade: websocket", b"Expect: 100-continue", b"Expect: more"),
    *(
        b"X: " + b"y" * 70_000,
        b"X: y\r\n" * 200,
        b"GET /health/live HTTP/1.1\r\nHost: inner\r\n",
        b"X-Request-Id: \xff",
    ),
]


def request(mark: bytes, kind: str) -> bytes:
    """Return a request that is right."""
    body = b'{"mark": "%b"}' % mark
    head = b"POST /v1/completions?%b HTTP/1.1\r\nHost: router\r\n" % mark
    match kind:
        case "length":
            return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        case "chunks":
            return head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (
                body[:5],
                len(body) - 5,
                body[5:],
            )
        case "upgrade":
            return head + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        case _:
            return b"GET /health/live HTTP/1.1\r\nHost: router\r\n\r\n"


@st.composite
def mutated(draw: st.DrawFn, stream: bytes) -> bytes:
    """Draw a stream that is nearly `stream`."""
    at = draw(st.integers(0, len(stream)))
    line_ends = [match.end() for match in re.finditer(b"\r\n", stream)] or [0]
    line = draw(st.sampled_from(line_ends))
    until = min(len(stream), at + draw(st.integers(1, 30)))
    match draw(st.sampled_from(["line", "line", "line", "break", "cut", "repeat", "overwrite", "end"])):
        case "line":
            return stream[:line] + draw(st.sampled_from(LINES)) + b"\r\n" + stream[line:]
        case "break":
            return stream[:at] + draw(st.sampled_from(BREAKS)) + stream[at:]
        case "cut":
            return stream[:at] + stream[until:]
        case "repeat":
            return stream[:until] + stream[at:]
        case "overwrite":
            return stream[:at] + draw(st.binary(max_size=8)) + stream[until:]
        case _:
            return stream[:at]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    kinds = draw(st.lists(st.sampled_from(["length", "chunks", "upgrade", "get"]), min_size=1, max_size=4))
    stream = b"".join(request(b"%b-%d" % (NUMBER, index), kind) for index, kind in enumerate(kinds))
    for _ in range(draw(st.integers(0, 3))):
        stream = draw(mutated(stream))
    return stream


def strictly_read(stream: bytes) -> tuple[list[bytes], bool]:
    """Return the bodies of the inference requests that h11 finds, and whether it found all there is."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=2**17)
    reader.receive_data(stream)
    bodies: list[bytes] = []
    head, body = None, b""
    try:
        while True:
            match event := reader.next_event():
                case h11.Request():
                    head, body = event, b""
                case h11.Data():
                    body += bytes(event.data)
                case h11.EndOfMessage():
                    assert head is not None
                    if head.method == b"POST":
                        bodies.append(body)
                    reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    reader.send(h11.EndOfMessage())
                    reader.start_next_cycle()
                case _:
                    return bodies, event is h11.NEED_DATA
    except h11.ProtocolError:
        return bodies, False


# The judgement.


@dataclass
class Judge:
    """Sends streams to a router, each with a number of its own, and checks what becomes of them."""

    connect: Connect
    read_answers: ReadAnswers
    url: str
    recorder: Any
    numbers: Iterator[int] = field(default_factory=itertools.count)

    async def judge(self, template: bytes, pieces: int) -> None:
        number = b"%06x" % next(self.numbers)
        stream = template.replace(NUMBER, number)
        answers = self.read_answers(await self._exchange(stream, pieces))
        assert {answer.status for answer in answers} <= OWN_STATUSES, (answers, stream)
        assert not any(b"callback" in answer.body for answer in answers), (answers, stream)
        answered = [mark for mark in map(_mark, answers) if mark is not None]
        assert all(mark in stream.decode("latin-1") for mark in answered), (answered, stream)
        sent_on = [body for body in self.recorder.bodies if number in body]
        assert len(sent_on) == sum(number.decode() in mark for mark in answered), (answered, sent_on, stream)
        bodies, read_all = strictly_read(stream)
        assert not read_all or in_order(sent_on, bodies), (sent_on, bodies, stream)

    async def _exchange(self, stream: bytes, pieces: int) -> bytes:
        """Return all that comes until the router closes the connection, which it always does before long."""
        client = await self.connect(self.url)
        step = max(1, len(stream) // pieces)
        for start in range(0, len(stream), step):
            if client.writer.is_closing():
                break
            client.writer.write(stream[start : start + step])
            await asyncio.sleep(0)
        received: bytes = await client.ended()
        await client.close()
        return received


@pytest.fixture
async def judge(recorded: tuple[str, Any], connect: Connect, read_answers: ReadAnswers) -> Judge:
    return Judge(connect, read_answers, *recorded)


def _mark(answer: Any) -> str | None:
    mark = answer.document.get("mark") if answer.body.startswith(b"{") else None
    return mark if isinstance(mark, str) else None


def in_order(some: list[bytes], everything: list[bytes]) -> bool:
    rest = iter(everything)
    return all(body in rest for body in some)


@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(st.tuples(streams(), st.integers(1, 6)), min_size=AT_ONCE, max_size=AT_ONCE))
async def test_nearly_right_streams(judge: Judge, batch: list[tuple[bytes, int]]) -> None:
    judge.recorder.bodies.clear()
    await asyncio.gather(*(judge.judge(stream, pieces) for stream, pieces in batch))
    assert judge.recorder.problems == []
    fresh = await judge.connect(judge.url)
    await fresh.send(request(b"afterwards", "length"))
    assert (await fresh.answer()).document == {"mark": "afterwards"}
    await fresh.close()


async def test_streams_that_are_right_are_answered_whole(judge: Judge) -> None:
    kinds = ["length", "chunks", "upgrade", "get"]
    for count in range(1, len(kinds) + 1):
        client = await judge.connect(judge.url)
        await client.send(
            b"".join(request(b"%d-%d" % (count, index), kind) for index, kind in enumerate(kinds[:count]))
        )
        answers = judge.read_answers(await client.ended())
        assert [answer.status for answer in answers] == [200] * count
        assert [_mark(answer) for answer in answers[:3]] == [f"{count}-{index}" for index in range(min(3, count))]
    assert len(judge.recorder.bodies) == 1 + 2 + 3 + 3
    assert judge.recorder.problems == []
