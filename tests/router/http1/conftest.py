"""Raw sockets to a router that runs on the product's event loop, and strict reading of what it answers."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import pytest
import uvloop

from multimodel_api.manifest import MultiModelSpec
from multimodel_router import server
from multimodel_router.catalog import Catalog
from multimodel_router.fleet import Endpoint, ModelView
from multimodel_router.http1.limits import Limits
from multimodel_router.relay import INFERENCE_PATHS
from multimodel_router.router import Router
from multimodel_router.server import Server
from multimodel_router.settings import ProcessesSettings, Settings
from multimodel_router.upstream import Upstream

DEADLINE = 10.0
SWEEP_SECONDS = 0.02
PATIENCE = 0.15
IMPATIENT = Limits(head_seconds=PATIENCE, body_idle_seconds=PATIENCE, idle_seconds=PATIENCE, body_bytes=2**17)

SPEC = MultiModelSpec.model_validate({"models": [{"name": "echo", "plain": {"modelId": "echo"}}]})
SERVED = {"model": "echo", "canonical_id": "echo", "boot": "1"}
HOP_BY_HOP = {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings"}


@dataclass
class Answer:
    """One answer as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes
    continues: int
    """Times the router said `100 Continue` before."""

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def read_answer(data: bytes, method: str, *, at_end: bool) -> tuple[Answer, bytes] | None:
    """Return the first answer and the bytes after it, None while it is not whole; h11 raises for what is no HTTP."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("host", "router")]))
    reader.send(h11.EndOfMessage())
    if data:
        reader.receive_data(data)
    if at_end:
        reader.receive_data(b"")  # h11's sign for the connection's end
    head, body, continues = None, b"", 0
    while (event := reader.next_event()) is not h11.NEED_DATA:
        match event:
            case h11.InformationalResponse():
                continues += 1
            case h11.Response():
                head = event
            case h11.Data():
                body += bytes(event.data)
            case h11.EndOfMessage():
                assert head is not None
                headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
                return Answer(head.status_code, headers, body, continues), reader.trailing_data[0]
            case _:
                return None
    return None


@dataclass
class RawClient:
    """One connection to the router."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: bytes = field(default=b"")

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answers(self, methods: Sequence[str]) -> list[Answer]:
        """Return an answer to each of as many requests, in order."""
        return [await self.answer(method) for method in methods]

    async def answer(self, method: str = "POST") -> Answer:
        async with asyncio.timeout(DEADLINE):
            at_end = False
            while (read := read_answer(self.received, method, at_end=at_end)) is None:
                assert not at_end, f"the connection ended within {self.received!r}"
                data = await self.reader.read(2**16)
                at_end = not data
                self.received += data
        answer, self.received = read
        return answer

    async def ended(self) -> bytes:
        """Return what still comes until the router closes the connection."""
        async with asyncio.timeout(DEADLINE):
            rest = bytearray(self.received)
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(2**16):
                    rest += data
            return bytes(rest)

    async def close(self) -> None:
        self.writer.transport.abort()


Connect = Callable[..., Awaitable[RawClient]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have deadlines met to the hundredth of a second."""
    monkeypatch.setattr(server, "SWEEP_SECONDS", SWEEP_SECONDS)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open raw connections that the test's end closes."""
    async with AsyncExitStack() as stack:

        async def open_connection(url: str, *, receive_buffer: int | None = None) -> RawClient:
            address = urlsplit(url)
            made = socket.socket()
            if receive_buffer:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, (address.hostname, address.port))
            trust = _trusting() if address.scheme == "https" else None
            named = "router" if trust else None
            streams = await asyncio.open_connection(
                sock=made, limit=receive_buffer or 2**16, ssl=trust, server_hostname=named
            )
            client = RawClient(*streams)
            stack.push_async_callback(client.close)
            return client

        yield open_connection


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@dataclass
class Recorder:
    """Answers every request with its mark, and keeps it; what h11 finds wrong is a problem."""

    bodies: list[bytes] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while (event := await _next(connection, reader)) and isinstance(event, h11.Request):
                body = b""
                while isinstance(data := await _next(connection, reader), h11.Data):
                    body += bytes(data.data)
                writer.write(self._answer(connection, event, body))
                connection.start_next_cycle()
        except h11.ProtocolError as error:
            self.problems.append(str(error))
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _answer(self, connection: h11.Connection, head: h11.Request, body: bytes) -> bytes:
        said: dict[str, Any] = SERVED
        if head.method == b"POST":
            self.bodies.append(body)
            self._check(head)
            said = {"mark": mark_in(body)}
        content = json.dumps(said).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(content)))]
        events = (h11.Response(status_code=200, headers=headers), h11.Data(data=content), h11.EndOfMessage())
        return b"".join(connection.send(event) or b"" for event in events)

    def _check(self, head: h11.Request) -> None:
        names = [name for name, _ in head.headers]
        path = head.target.partition(b"?")[0].decode()
        if path not in INFERENCE_PATHS or HOP_BY_HOP & set(names) or names.count(b"content-length") != 1:
            self.problems.append(f"{head.target!r} {names}")


async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(2**16))
    return event


class OneServer:
    """A fleet of one model server that is always there."""

    synced = True
    catalog = Catalog(SPEC)

    def __init__(self, endpoint: Endpoint) -> None:
        self._view = ModelView(desired=1, ready=(endpoint,))

    def view(self, _model: str) -> ModelView:
        return self._view

    async def scale(self, _model: str, _replicas: int) -> None: ...

    async def record(self, _model: str, _command: object) -> None: ...

    async def changed(self) -> None:
        await asyncio.Event().wait()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@pytest.fixture
async def recorded(until: Callable[..., Awaitable[None]]) -> AsyncIterator[tuple[str, Recorder]]:
    """Start an impatient router before a recorder; give the router's address and the recorder."""
    recorder = Recorder()
    listening = await asyncio.start_server(recorder.serve, "127.0.0.1", 0)
    fleet = OneServer(Endpoint(*listening.sockets[0].getsockname()[:2]))
    settings = Settings(ProcessesSettings(Path("unused")), port=0, drain_seconds=1.0)
    router = Router(fleet, Upstream(), settings, IMPATIENT)
    started = Server(router, settings)
    serving = asyncio.create_task(started.serve())
    await started.started.wait()

    async def ready() -> int:
        return len(router.fleet.view("echo").ready)

    await until(ready, 1)
    yield started.url, recorder
    started.stop()
    await serving
    listening.close()


@pytest.fixture
def read_answers() -> Callable[[bytes], list[Answer]]:
    """Read all answers of a connection that has ended; nothing may follow one that closes it."""

    def read(received: bytes) -> list[Answer]:
        answers: list[Answer] = []
        while received:
            assert not answers or answers[-1].headers.get("connection") != "close", received
            found = read_answer(received, "POST", at_end=True)
            assert found is not None, received
            answers.append(found[0])
            received = found[1]
        return answers

    return read


def mark_in(body: bytes) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(body).get("mark")
    return None
