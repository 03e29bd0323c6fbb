"""What a connection is good for: order, reuse, versions, patience, and clients that leave or do not read."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from multimodel_router.http1.connection import Connection, Site
from multimodel_router.http1.limits import Limits
from multimodel_router.http1.reply import Reply
from multimodel_router.http1.request import Request

Start = Callable[..., Awaitable[Any]]
Connect = Callable[..., Awaitable[Any]]
Until = Callable[..., Awaitable[None]]

MODEL = {"name": "abacus", "alias": "math", "min": 1}
LIVE = b"GET /health/live HTTP/1.1\r\nHost: router\r\n\r\n"
BIG = 32 * 2**20


def chat(content: str = "one", *lines: bytes, **more: Any) -> bytes:
    """Return a request; `lines` are further headers, `more` further fields of the body."""
    body = json.dumps({"messages": [{"role": "user", "content": content}]} | more).encode()
    head = [b"POST /v1/chat/completions HTTP/1.1", b"Host: router", b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join([*head, b"", body])


def said(answer: Any) -> str:
    return str(answer.document["choices"][0]["message"]["content"])


@pytest.fixture
async def router(start_on_processes: Start) -> Any:
    started = await start_on_processes([MODEL])
    await started.until("math", "loaded")
    return started


async def impatient(start: Start, **limits: Any) -> Any:
    started = await start([MODEL], settings={"limits": Limits(**limits)})
    await started.until("math", "loaded")
    return started


# Order and reuse.


async def test_pipelined_requests_are_answered_in_order(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    count = 40  # more than may wait
    for number in range(count):
        await client.send(chat(f"request {number}") + (LIVE if number % 3 == 0 else b""))
    for number in range(count):
        assert said(await client.answer()) == f"You said: request {number}"
        if number % 3 == 0:
            assert (await client.answer("GET")).body == b"OK"
    assert len(router.site.connections) >= 1


async def test_a_request_that_comes_while_another_is_answered_waits_for_it(
    router: Any, connect: Connect, tmp_path: Path, until: Until
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    client = await connect(router.url)
    await client.send(chat("slow", stream=True, standin={"gate": str(gate), "begun": str(begun)}))
    await until(lambda: asyncio.to_thread(begun.exists), True)
    await client.send(LIVE[:20])
    await client.send(LIVE[20:] + chat("quick"))
    gate.touch()
    assert b"[DONE]" in (await client.answer()).body
    assert (await client.answer("GET")).body == b"OK"
    assert said(await client.answer()) == "You said: quick"


async def test_a_body_may_come_in_chunks_with_extensions_and_trailers(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    body = chat("in chunks").partition(b"\r\n\r\n")[2]
    first, rest = body[:7], body[7:]
    chunks = b"7;name=value\r\n%b\r\n%x\r\n%b\r\n0\r\nHost: elsewhere\r\n\r\n" % (first, len(rest), rest)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nTransfer-Encoding: Chunked\r\n\r\n"
    await client.send(head + chunks + LIVE)
    assert said(await client.answer()) == "You said: in chunks"
    assert (await client.answer("GET")).status == 200


async def test_a_client_that_wishes_to_close_is_closed(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    await client.send(chat("last", b"Connection: close"))
    answer = await client.answer()
    assert (said(answer), answer.headers["connection"]) == ("You said: last", "close")
    assert await client.ended() == b""


@pytest.mark.parametrize("stream", [False, True])
async def test_http_1_0_gets_no_chunks_and_a_connection_for_one_request(
    router: Any, connect: Connect, stream: bool
) -> None:
    client = await connect(router.url)
    await client.send(chat("old", b"Connection: keep-alive", stream=stream).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    answer = await client.answer()
    assert answer.headers.get("transfer-encoding") is None
    assert answer.headers["connection"] == "close"
    assert b"old" in answer.body
    assert stream == answer.body.endswith(b"data: [DONE]\n\n")
    assert await client.ended() == b""


async def test_head_gets_the_head_alone(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    for path in (b"/v1/models", b"/health/live", b"/console"):
        for method in (b"GET", b"HEAD"):
            await client.send(b"%b %b HTTP/1.1\r\nHost: router\r\n\r\n" % (method, path))
        whole, head = await client.answers(["GET", "HEAD"])
        assert (head.status, head.body) == (whole.status, b"")
        for name in ("content-type", "content-length"):
            assert head.headers.get(name) == whole.headers.get(name)
    await client.send(b"HEAD /v1/chat/completions HTTP/1.1\r\nHost: router\r\n\r\n" + LIVE)
    refused, live = await client.answers(["HEAD", "GET"])
    assert (refused.status, live.status) == (405, 200)


async def test_options_without_a_web_page_behind_it_is_refused(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    for target, status in ((b"*", 404), (b"/v1/models", 405), (b"/v1/chat/completions", 405)):
        await client.send(b"OPTIONS %b HTTP/1.1\r\nHost: router\r\n\r\n" % target)
        assert (await client.answer("OPTIONS")).status == status


async def test_a_target_written_for_a_proxy_is_understood(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    await client.send(
        LIVE.replace(b"/health", b"http://router:1234/health") + LIVE.replace(b"/health/live", b"HTTP://r")
    )
    live, root = await client.answers(["GET", "GET"])
    assert (live.body, root.status) == (b"OK", 404)
    await client.send(chat("absolute").replace(b"/v1", b"https://router/v1", 1))
    answer = await client.answer()
    assert (said(answer), answer.headers["x-seen-path"]) == ("You said: absolute", "/v1/chat/completions")


# Wishes that are ignored, and one that is granted.

UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")


async def test_a_wish_for_http_2_is_ignored_as_jdk_clients_expect(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    request = chat("from java", *UPGRADE)
    await client.send(request[:-5])
    await client.send(request[-5:] + chat("again", *UPGRADE) + LIVE)
    answers = await client.answers(["POST", "POST", "GET"])
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [said(answer) for answer in answers[:2]] == ["You said: from java", "You said: again"]
    assert "upgrade" not in answers[0].headers


async def test_a_thousand_wishes_in_one_piece_do_no_harm(router: Any, connect: Connect) -> None:
    wish = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    client = await connect(router.url)
    sending = asyncio.create_task(client.send(wish * 1000))
    answers = await client.answers(["GET"] * 1000)
    assert {answer.status for answer in answers} == {200}
    await sending


async def test_a_client_that_asks_first_is_told_to_continue_once(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    request = chat("may I", b"Expect: 100-Continue")
    head, _, body = request.partition(b"\r\n\r\n")
    await client.send(head + b"\r\n\r\n")
    async with asyncio.timeout(5):
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(body)
    answer = await client.answer()
    assert (said(answer), answer.continues) == ("You said: may I", 0)
    await client.send(request)
    assert (await client.answer()).continues == 0  # the body is there already


async def test_a_client_that_asks_first_with_too_much_is_refused_at_once(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    await client.send(head % 10**9)
    answer = await client.answer()
    assert (answer.status, answer.continues) == (413, 0)


# Request ids.


async def test_a_request_id_is_kept_if_it_is_harmless(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    cases = (
        (b"trace-1", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"a b", False),
        (b"\xc3\xa9", False),
        (b"", False),
    )
    for given, kept in cases:
        await client.send(chat("hello", b"X-Request-Id: " + given))
        answer = await client.answer()
        assert answer.headers["x-request-id"] == answer.headers["x-seen-request-id"] != ""
        assert (answer.headers["x-request-id"] == given.decode("latin-1")) == kept


async def test_requests_of_one_connection_have_ids_of_their_own(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    await client.send(LIVE + LIVE)
    first, second = await client.answers(["GET", "GET"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


# Patience.


async def test_a_head_that_does_not_come_in_time(start_on_processes: Start, connect: Connect) -> None:
    router = await impatient(start_on_processes, head_seconds=0.3)
    client = await connect(router.url)
    began = time.monotonic()
    answering = asyncio.create_task(client.answer())
    for byte in LIVE[:-1]:
        if answering.done():
            break
        client.writer.write(bytes([byte]))
        await asyncio.wait((answering,), timeout=0.02)
    answer = await answering
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert 0.25 < time.monotonic() - began < 2
    assert await client.ended() == b""


async def test_a_second_head_that_does_not_come_in_time(
    start_on_processes: Start, connect: Connect, tmp_path: Path
) -> None:
    router = await impatient(start_on_processes, head_seconds=0.3, idle_seconds=60.0)
    client = await connect(router.url)
    await client.send(LIVE + LIVE[:10])
    first, second = await client.answers(["GET", "GET"])
    assert (first.status, second.status) == (200, 408)


async def test_a_client_that_says_nothing_is_closed_without_a_word(start_on_processes: Start, connect: Connect) -> None:
    router = await impatient(start_on_processes, head_seconds=0.2, idle_seconds=0.2)
    silent = await connect(router.url)
    assert await silent.ended() == b""
    used = await connect(router.url)
    await used.send(LIVE)
    assert (await used.answer("GET")).status == 200
    assert await used.ended() == b""


async def test_an_answer_takes_as_long_as_it_takes(
    start_on_processes: Start, connect: Connect, tmp_path: Path, until: Until
) -> None:
    limits = dict.fromkeys(("head_seconds", "idle_seconds", "body_seconds", "body_idle_seconds", "stall_seconds"), 0.2)
    router = await impatient(start_on_processes, **limits)
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    client = await connect(router.url)
    await client.send(chat("think", standin={"gate": str(gate), "begun": str(begun)}))
    await until(lambda: asyncio.to_thread(begun.exists), True)
    others = [await connect(router.url) for _ in range(3)]
    for other in others:  # each is closed only after all deadlines have passed
        assert await other.ended() == b""
    gate.touch()
    assert said(await client.answer()) == "You said: think"


@pytest.mark.parametrize("limits", [{"body_idle_seconds": 0.3}, {"body_seconds": 0.3}], ids=["pause", "whole"])
async def test_a_body_that_does_not_come_in_time(
    start_on_processes: Start, connect: Connect, limits: dict[str, float]
) -> None:
    router = await impatient(start_on_processes, **limits)
    client = await connect(router.url)
    request = chat("slow " * 100)
    await client.send(request[:-400])
    answering = asyncio.create_task(client.answer())
    if "body_seconds" in limits:
        for byte in request[-400:-1]:
            if answering.done():
                break
            client.writer.write(bytes([byte]))
            await asyncio.wait((answering,), timeout=0.05)
    assert (await answering).status == 408
    assert await client.ended() == b""


# Clients that do not read, and clients that leave.


async def deaf(connect: Connect, url: str) -> Any:
    """Return a client whose machine takes in little of what it is sent."""
    client = await connect(url, receive_buffer=4096)
    client.writer.transport.pause_reading()
    return client


def in_flight(router: Any) -> Callable[[], Awaitable[float]]:
    async def ask() -> float:
        return float(router.metrics.in_flight.labels("abacus")._value.get())

    return ask


def behind(router: Any) -> Callable[[], Awaitable[int]]:
    async def ask() -> int:
        return sum(connection._behind for connection in router.site.connections)

    return ask


async def most_held_back(router: Any) -> int:
    """Return how many bytes the router holds at most for a client that does not read, until it is cut off."""
    most = 0
    async with asyncio.timeout(20):
        while held := [connection for connection in router.site.connections if connection._behind]:
            most = max(most, *(connection._transport.get_write_buffer_size() for connection in held))
            await asyncio.sleep(0.005)
    return most


async def test_a_client_that_does_not_read_is_cut_off_and_its_request_given_up(
    start_on_processes: Start, connect: Connect, until: Until
) -> None:
    router = await impatient(start_on_processes, stall_seconds=0.5)
    client = await deaf(connect, router.url)
    await client.send(chat("x" * BIG))
    await until(behind(router), 1)
    assert await in_flight(router)() == 1
    assert 0 < await most_held_back(router) < 2**20
    await until(in_flight(router), 0)


async def test_a_client_that_reads_slowly_gets_everything(router: Any, connect: Connect, until: Until) -> None:
    client = await deaf(connect, router.url)
    await client.send(chat("x" * BIG, b"Connection: close"))
    await until(behind(router), 1)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
    client.writer.transport.resume_reading()
    received = len(await client.ended())
    assert BIG < received < BIG + 2000


async def test_answers_do_not_pile_up_before_a_client_that_does_not_read(
    start_on_processes: Start, connect: Connect, until: Until
) -> None:
    router = await impatient(start_on_processes, stall_seconds=2.0)
    client = await deaf(connect, router.url)
    sending = asyncio.create_task(client.send(chat("x" * 1_000_000) * 16))
    await until(behind(router), 1)
    assert 0 < await most_held_back(router) < 2_000_000
    await asyncio.wait((sending,), timeout=5)
    assert sending.done()


async def test_requests_do_not_pile_up_behind_a_slow_one(
    router: Any, connect: Connect, tmp_path: Path, until: Until
) -> None:
    gate = tmp_path / "gate"
    client = await connect(router.url)
    await client.send(chat("slow", standin={"gate": str(gate)}))
    await until(in_flight(router), 1)
    (connection,) = [held for held in router.site.connections if not held.idle]
    large = 2_000_000
    sending = asyncio.create_task(client.send(chat("x" * large) * 12))

    async def queued() -> int:
        return len(connection._queue)

    await until(queued, 1)
    done, _ = await asyncio.wait((sending,), timeout=0.5)
    assert (done, await queued()) == (set(), 1)
    gate.touch()
    assert said(await client.answer()) == "You said: slow"
    for _ in range(12):
        assert len(said(await client.answer())) > large
    await sending


@pytest.mark.parametrize("last", [b"keep-alive", b"close"])
async def test_a_last_piece_that_nobody_fetches_is_thrown_away(
    start_on_processes: Start, connect: Connect, until: Until, last: bytes
) -> None:
    router = await impatient(start_on_processes, stall_seconds=0.3, idle_seconds=0.3)
    client = await deaf(connect, router.url)

    async def held_back() -> int:
        return sum(connection._transport.get_write_buffer_size() for connection in router.site.connections)

    async def answered() -> int:
        return int(router.metrics.requests.labels("abacus", "200")._value.get())

    while not await held_back():  # what is held back is less than what makes the router pause
        before = await answered()
        await client.send(chat("x" * 30_000))
        await until(answered, before + 1)
    await client.send(chat("last", b"Connection: " + last))
    await until(held_back, 0)


async def test_a_reply_to_a_client_that_left_goes_nowhere(router: Any, connect: Connect, tmp_path: Path) -> None:
    class Left(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.close()

    host, port = router.url.removeprefix("http://").split(":")
    transport, _ = await asyncio.get_running_loop().create_connection(Left, host, int(port))
    await asyncio.sleep(0)
    reply = Reply(Request("GET", "/", [], "", keep_alive=True, can_chunk=True), transport, ())
    reply.start(200, [])
    reply.write(b"lost")
    reply.end()
    assert reply.ended


async def test_the_model_server_hears_within_100_ms_that_a_client_left(
    router: Any, connect: Connect, tmp_path: Path, until: Until
) -> None:
    for stream in (False, True):
        for leave in (_close, _reset, _close_half):
            name = f"{leave.__name__}-{stream}"
            begun, cancelled = tmp_path / f"begun{name}", tmp_path / f"cancelled{name}"
            files = {"gate": str(tmp_path / "never"), "begun": str(begun), "cancelled": str(cancelled)}
            client = await connect(router.url)
            await client.send(chat("bye", stream=stream, standin=files))
            await until(lambda path=begun: asyncio.to_thread(path.exists), True)
            left = time.time()
            leave(client.writer)
            await until(lambda path=cancelled: asyncio.to_thread(path.exists), True)
            assert cancelled.stat().st_mtime - left < 0.1, name
            await until(in_flight(router), 0)


def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    at_once = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.transport.abort()


def _close_half(writer: asyncio.StreamWriter) -> None:
    writer.write_eof()


@pytest.mark.parametrize("leave", [_close, _reset, _close_half])
async def test_clients_that_leave_as_soon_as_they_have_asked_leave_nothing_behind(
    router: Any, connect: Connect, until: Until, leave: Callable[[asyncio.StreamWriter], None]
) -> None:
    clients = [await connect(router.url) for _ in range(20)]
    await clients[0].send(chat("so that a connection to the model server is kept"))
    await clients[0].answer("POST")
    for client in clients:
        client.writer.write(chat("bye", stream=True))
        leave(client.writer)

    async def nothing_left() -> bool:
        return not router.endpoints.load and all(connection.idle for connection in router.site.connections)

    await until(nothing_left, True)
    assert await in_flight(router)() == 0
    client = await connect(router.url)
    await client.send(chat("still here"))
    assert (await client.answer("POST")).status == 200


async def test_what_a_handler_has_begun_is_ended_though_the_client_left_before_its_task_ran() -> None:
    ended = asyncio.Event()

    async def rest() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    connection = Connection(Site(lambda _request, _reply: rest()))
    transport = create_autospec(asyncio.Transport, instance=True)
    transport.is_closing.return_value = False
    connection.connection_made(transport)
    connection.data_received(LIVE)
    connection.connection_lost(None)
    async with asyncio.timeout(5):
        await ended.wait()
