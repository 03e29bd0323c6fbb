"""What is no request is refused, for a reason that the client gets to read; nothing smuggled in it is answered."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from multimodel_router.http1.limits import Limits

Start = Callable[..., Awaitable[Any]]
Connect = Callable[..., Awaitable[Any]]

LIMITS = Limits(head_bytes=4096, headers=20, body_bytes=2**16)
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
MANY_HEADERS = b"".join(b"X-%d: y\r\n" % number for number in range(LIMITS.headers))

NO_HTTP = {
    "bare_line_feeds": b"GET /health HTTP/1.1\nHost: router\n\n",
    "one_bare_line_feed": POST + b"X: y\nContent-Length: 2\r\n\r\n{}",
    "bare_carriage_return": POST + b"X: y\rz\r\n\r\n",
    "nul_in_a_value": POST + b"X: y\0z\r\n\r\n",
    "nul_in_a_name": POST + b"X\0: y\r\n\r\n",
    "nul_in_the_target": b"GET /\0 HTTP/1.1\r\nHost: router\r\n\r\n",
    "vertical_tab_in_a_name": POST + b"Transfer-Encoding\x0b: chunked\r\n\r\n",
    "vertical_tab_in_a_value": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
    "space_before_the_colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "space_before_the_name": POST + b" Content-Length: 2\r\n\r\n{}",
    "folded_header": POST + b"X: y\r\n z\r\n\r\n",
    "no_colon": POST + b"Content-Length 2\r\n\r\n{}",
    "no_name": POST + b": y\r\n\r\n",
    "space_in_the_target": b"GET /health /health HTTP/1.1\r\nHost: router\r\n\r\n",
    "raw_bytes_in_the_target": b"GET /\xff\xfe HTTP/1.1\r\nHost: router\r\n\r\n",
    "relative_target": b"GET health HTTP/1.1\r\nHost: router\r\n\r\n",
    "unknown_method": b"FETCH /health HTTP/1.1\r\nHost: router\r\n\r\n",
    "lower_case_method": b"get /health HTTP/1.1\r\nHost: router\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "http_2_preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no_host": b"GET /health HTTP/1.1\r\n\r\n",
    "two_hosts": b"GET /health HTTP/1.1\r\nHost: router\r\nHost: router\r\n\r\n",
    "length_and_chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks_and_length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "two_lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "listed_lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "signed_length": POST + b"Content-Length: +2\r\n\r\n{}",
    "negative_length": POST + b"Content-Length: -2\r\n\r\n{}",
    "hexadecimal_length": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "empty_length": POST + b"Content-Length: \r\n\r\n{}",
    "endless_length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "chunked_twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked_not_last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunks_in_http_1.0": b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunk_size_with_a_sign": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
    "chunk_size_with_a_prefix": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "chunk_size_with_a_space": CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
    "no_chunk_size": CHUNKED + b"\r\n{}\r\n0\r\n\r\n",
    "endless_chunk_size": CHUNKED + b"FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
    "chunk_size_with_a_bare_line_feed": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "chunk_extension_with_a_bare_line_feed": CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "chunk_longer_than_its_size": CHUNKED + b"2\r\n{}}0\r\n\r\n",
    "last_chunk_with_bare_line_feeds": CHUNKED + b"2\r\n{}\r\n0\n\n",
}

OTHERWISE_REFUSED = {
    "http_0.9": (505, b"GET /health/live\r\n\r\n"),
    "http_2": (505, b"GET /health HTTP/2.0\r\nHost: router\r\n\r\n"),
    "unknown_coding": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "coding_in_quotes": (501, POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "coding_hidden_by_another": (501, POST + b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "connect": (501, b"CONNECT router:443 HTTP/1.1\r\nHost: router\r\n\r\n"),
    "long_head": (431, POST + b"X: " + b"y" * LIMITS.head_bytes + b"\r\n\r\n"),
    "long_target": (431, b"GET /" + b"x" * LIMITS.head_bytes + b" HTTP/1.1\r\nHost: router\r\n\r\n"),
    "header_without_end": (431, POST + b"X: " + b"y" * 2 * LIMITS.head_bytes),
    "target_without_end": (431, b"GET /" + b"x" * 2 * LIMITS.head_bytes),
    "many_headers": (431, POST + MANY_HEADERS + b"\r\n"),
    "nothing_but_line_ends": (431, b"\r\n" * LIMITS.head_bytes),
    "long_body": (413, POST + b"Content-Length: %d\r\n\r\n" % (LIMITS.body_bytes + 1)),
    "long_chunked_body": (413, CHUNKED + b"8001\r\n%b\r\n" % (b"x" * 0x8001) * 2),
    "trailers_without_end": (413, CHUNKED + b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * LIMITS.body_bytes),
}
REFUSED = {name: (400, request) for name, request in NO_HTTP.items()} | OTHERWISE_REFUSED


@pytest.fixture
async def router(start_on_processes: Start) -> Any:
    return await start_on_processes([{"name": "abacus"}], settings={"limits": LIMITS})


STATUSES = {name: status for name, (status, _) in REFUSED.items()}


async def test_each_is_refused_once_with_a_reason_and_the_connection_closed(router: Any, connect: Connect) -> None:
    statuses = {}
    for name, (_, request) in REFUSED.items():
        client = await connect(router.url)
        await client.send(request)
        answer = await client.answer()
        statuses[name] = answer.status
        error = answer.document["error"]
        assert (error["type"], set(error)) == ("invalid_request_error", {"message", "type", "param", "code"}), name
        assert "callback" not in error["message"], name  # that would be an error of the router's own
        assert answer.headers["connection"] == "close", name
        assert answer.headers["x-request-id"], name
        assert await client.ended() == b"", name
    assert statuses == STATUSES


async def test_each_is_refused_byte_by_byte_as_in_one_piece(router: Any, connect: Connect) -> None:
    statuses = {}
    for name, (_, request) in REFUSED.items():
        client = await connect(router.url)
        for index in range(len(request[:100])):
            await client.send(request[index : index + 1])
        await client.send(request[100:])
        statuses[name] = (await client.answer()).status
        assert await client.ended() == b"", name
    assert statuses == STATUSES


async def test_a_smuggled_request_is_never_answered(router: Any, connect: Connect) -> None:
    smuggled = b"GET /health HTTP/1.1\r\nHost: router\r\n\r\n"
    for name, request in NO_HTTP.items():
        client = await connect(router.url)
        await client.send(request + smuggled)
        assert (await client.answer()).status == 400, name
        assert await client.ended() == b"", name


async def test_the_requests_before_it_are_answered_first(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    health = b"GET /health/live HTTP/1.1\r\nHost: router\r\n\r\n"
    await client.send(health + health + POST + b"Content-Length: two\r\n\r\n")
    statuses = [answer.status for answer in await client.answers(["GET", "GET", "POST"])]
    assert statuses == [200, 200, 400]
    assert await client.ended() == b""


async def test_a_client_that_still_sends_gets_to_read_the_refusal(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    await client.send(POST + b"Content-Length: 50000000\r\n\r\n")
    for _ in range(64):
        await client.send(b"x" * 2**16)
    assert (await client.answer()).status == 413
    assert await client.ended() == b""
