"""The HTTP client to model servers, against servers that behave in every way."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from multimodel_router.fleet import Endpoint
from multimodel_router.upstream import ConnectError, Upstream
from multimodel_router.upstream_connection import HIGH_WATER, ConnectionBrokenError, Outgoing, Response, Splice

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Script = Callable[[Reader, Writer], Awaitable[None]]


@dataclass
class Server:
    """A server that runs one script for every request; `requests` tells which connection each came on."""

    endpoint: Endpoint
    scripts: list[Script] = field(default_factory=list)
    requests: list[tuple[int, bytes]] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        number = self.connections
        try:
            while head := await _head(reader):
                self.requests.append((number, head))
                await self.scripts.pop(0)(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()


async def _head(reader: Reader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def sends(answer: bytes, *, then_close: bool = False) -> Script:
    async def script(_reader: Reader, writer: Writer) -> None:
        writer.write(answer)
        await writer.drain()
        if then_close:
            writer.close()

    return script


WHOLE = b"HTTP/1.1 200 OK\r\nX-Case: Kept\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server(Endpoint("127.0.0.1", 0))
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as listening:
        made.endpoint = Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1])
        yield made


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


async def get(upstream: Upstream, server: Server) -> tuple[int, bytes]:
    response = await upstream.send(Outgoing(server.endpoint, "GET", "/x", [(b"accept", b"*/*")]))
    try:
        return response.status, await response.read()
    finally:
        response.close()


async def test_connections_are_kept_and_used_again(upstream: Upstream, server: Server) -> None:
    server.scripts = [sends(WHOLE), sends(CHUNKED), sends(WHOLE)]
    assert [await get(upstream, server) for _ in range(3)] == [(200, b"hello"), (201, b"hello"), (200, b"hello")]
    assert [number for number, _ in server.requests] == [1, 1, 1]
    host = f"host: {server.endpoint.host}:{server.endpoint.port}".encode()
    assert server.requests[0][1] == b"GET /x HTTP/1.1\r\n" + host + b"\r\naccept: */*\r\n\r\n"


async def test_requests_at_the_same_time_use_connections_of_their_own(upstream: Upstream, server: Server) -> None:
    server.scripts = [sends(WHOLE), sends(WHOLE)]
    assert await asyncio.gather(get(upstream, server), get(upstream, server)) == [(200, b"hello")] * 2
    assert server.connections == 2


@pytest.mark.parametrize("answer", [UNTIL_CLOSE, WHOLE.replace(b"X-Case: Kept", b"connection: close")])
async def test_an_answer_that_ends_the_connection(upstream: Upstream, server: Server, answer: bytes) -> None:
    server.scripts = [sends(answer, then_close=True), sends(WHOLE)]
    assert await get(upstream, server) == (200, b"hello")
    assert await get(upstream, server) == (200, b"hello")
    assert server.connections == 2


async def test_a_kept_connection_that_the_server_drops_is_replaced(upstream: Upstream, server: Server) -> None:
    server.scripts = [sends(WHOLE), sends(b"", then_close=True), sends(WHOLE)]
    assert [await get(upstream, server) for _ in range(2)] == [(200, b"hello")] * 2
    assert [number for number, _ in server.requests] == [1, 1, 2]


async def test_an_endpoint_whose_connections_ended_is_forgotten(upstream: Upstream, server: Server) -> None:
    server.scripts = [sends(WHOLE, then_close=True)]
    assert await get(upstream, server) == (200, b"hello")
    async with asyncio.timeout(5):
        while upstream._idle:  # noqa: ASYNC110  (the end of a connection comes from the event loop)
            await asyncio.sleep(0)


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED, UNTIL_CLOSE], ids=["whole", "chunked", "until close"])
async def test_where_a_body_goes_may_be_said_at_its_head(upstream: Upstream, server: Server, answer: bytes) -> None:
    body: list[bytes] = []

    def at_head(response: Response) -> Splice:
        assert not response.spliced
        body.append(b"%d " % response.status)
        return Splice(body.append)

    server.scripts = [sends(answer, then_close=answer is UNTIL_CLOSE)]
    response = await upstream.send(Outgoing(server.endpoint, "GET", "/x", [], at_head=at_head))
    response.close()
    assert response.spliced
    assert b"".join(body) == b"%d hello" % response.status


async def test_a_body_that_is_spliced_at_its_head_and_breaks_off(upstream: Upstream, server: Server) -> None:
    body: list[bytes] = []
    server.scripts = [sends(WHOLE[:-2], then_close=True)]
    with pytest.raises(ConnectionBrokenError):
        await upstream.send(Outgoing(server.endpoint, "GET", "/x", [], at_head=lambda _: Splice(body.append)))
    assert b"".join(body) == b"hel"


async def test_headers_come_as_they_are_with_lower_case_names(upstream: Upstream, server: Server) -> None:
    server.scripts = [sends(WHOLE)]
    response = await upstream.send(Outgoing(server.endpoint, "POST", "/x", [], b"body"))
    assert response.headers == [(b"x-case", b"Kept"), (b"content-length", b"5")]
    assert b"content-length: 4\r\n" in server.requests[0][1]
    response.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\ncontent-", b"not HTTP at all\r\n\r\n"],
    ids=["nothing", "half a head", "something else"],
)
async def test_a_broken_head(upstream: Upstream, server: Server, answer: bytes) -> None:
    server.scripts = [sends(answer, then_close=True)]
    with pytest.raises(ConnectionBrokenError):
        await upstream.send(Outgoing(server.endpoint, "GET", "/x", []))


@pytest.mark.parametrize("answer", [WHOLE[:-1], CHUNKED[:-5]], ids=["length", "chunked"])
async def test_a_broken_body_gives_what_came_and_then_the_error(
    upstream: Upstream, server: Server, answer: bytes
) -> None:
    server.scripts = [sends(answer, then_close=True)]
    response = await upstream.send(Outgoing(server.endpoint, "GET", "/x", []))
    received = bytearray()
    with pytest.raises(ConnectionBrokenError):
        await response.splice(Splice(received.extend))
    assert received in (b"hell", b"hello")
    response.close()


async def test_nobody_listens(upstream: Upstream) -> None:
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:9"):
        await upstream.send(Outgoing(Endpoint("127.0.0.1", 9), "GET", "/x", []))


async def test_a_slow_reader_holds_the_server_back(upstream: Upstream, server: Server) -> None:
    size = 64 * 2**20
    sent = 0
    stuck, gone = asyncio.Event(), asyncio.Event()

    async def flood(_reader: Reader, writer: Writer) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // 2**16):
            writer.write(b"x" * 2**16)
            try:
                await asyncio.wait_for(writer.drain(), 0.3)
            except TimeoutError:
                stuck.set()
                await writer.drain()
            sent += 2**16
        gone.set()

    server.scripts = [flood]
    response = await upstream.send(Outgoing(server.endpoint, "GET", "/x", []))
    await asyncio.wait_for(stuck.wait(), 10)
    assert response._connection._unread < HIGH_WATER + 2**20
    assert sent < size / 2
    assert len(await response.read()) == size
    await gone.wait()
    response.close()


async def test_an_answer_that_is_given_up_ends_its_connection(upstream: Upstream, server: Server) -> None:
    ended = asyncio.Event()

    async def begins(reader: Reader, writer: Writer) -> None:
        writer.write(CHUNKED[:-5])
        await reader.read()
        ended.set()

    server.scripts = [begins]
    response = await upstream.send(Outgoing(server.endpoint, "GET", "/x", []))
    response.close()
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_cancelled_request_ends_its_connection(upstream: Upstream, server: Server) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: Reader, _writer: Writer) -> None:
        asked.set()
        await reader.read()
        ended.set()

    server.scripts = [silent]
    request = asyncio.create_task(upstream.send(Outgoing(server.endpoint, "GET", "/x", [])))
    await asyncio.wait_for(asked.wait(), 5)
    request.cancel()
    await asyncio.wait_for(ended.wait(), 5)
