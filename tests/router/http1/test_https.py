"""The same over TLS, where a connection cannot be half closed and every byte takes another way."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from multimodel_router.http1.limits import Limits
from multimodel_router.settings import TlsSettings

Start = Callable[..., Awaitable[Any]]
Connect = Callable[..., Awaitable[Any]]
Until = Callable[..., Awaitable[None]]

LIVE = b"GET /health/live HTTP/1.1\r\nHost: router\r\n\r\n"
LIMITS = Limits(body_bytes=16 * 2**20, head_seconds=0.5, stall_seconds=0.5)


def chat(content: str, **more: Any) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": content}]} | more).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    folder = tmp_path_factory.mktemp("tls")
    made = TlsSettings(folder / "tls.crt", folder / "tls.key")
    subject = ["-subj", "/CN=router", "-addext", "subjectAltName=DNS:router"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(["openssl", "req", "-x509", *key, *subject, *files], check=True, capture_output=True)
    return made


@pytest.fixture
async def router(start_on_processes: Start, tls: TlsSettings) -> Any:
    model = {"name": "abacus", "alias": "math"}
    started = await start_on_processes([model], settings={"tls": tls, "limits": LIMITS})
    assert started.url.startswith("https://")
    return started


async def test_requests_streams_and_large_bodies(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    await client.send(LIVE + chat("one two", stream=True) + chat("x" * 4 * 2**20) + LIVE)
    live, stream, large, again = await client.answers(["GET", "POST", "POST", "GET"])
    assert (live.body, again.body) == (b"OK", b"OK")
    assert stream.body.endswith(b"data: [DONE]\n\n")
    assert len(large.body) > 4 * 2**20


async def test_a_refusal_reaches_a_client_that_still_sends(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    await client.send(b"POST /v1/completions HTTP/1.1\r\nHost: router\r\nContent-Length: 99999999\r\n\r\n")
    for _ in range(16):
        await client.send(b"x" * 2**16)
    assert (await client.answer()).status == 413
    assert await client.ended() == b""


async def test_a_client_that_says_nothing_after_the_handshake(router: Any, connect: Connect) -> None:
    client = await connect(router.url)
    assert await client.ended() == b""


async def test_a_client_that_does_not_read_is_cut_off(router: Any, connect: Connect, until: Until) -> None:
    client = await connect(router.url, receive_buffer=4096)
    client.writer.transport.pause_reading()
    await client.send(chat("x" * 15 * 2**20))

    async def running() -> float:
        return float(router.metrics.in_flight.labels("abacus")._value.get())

    await until(running, 1)
    await until(running, 0)
    assert all(connection.idle for connection in router.site.connections)


async def test_a_client_that_leaves_ends_its_request(
    router: Any, connect: Connect, tmp_path: Path, until: Until
) -> None:
    begun, cancelled = tmp_path / "begun", tmp_path / "cancelled"
    files = {"gate": str(tmp_path / "never"), "begun": str(begun), "cancelled": str(cancelled)}
    client = await connect(router.url)
    await client.send(chat("bye", stream=True, standin=files))
    await until(lambda: asyncio.to_thread(begun.exists), True)
    await client.close()
    await until(lambda: asyncio.to_thread(cancelled.exists), True)


async def test_plain_http_gets_nothing_from_it(router: Any, connect: Connect) -> None:
    client = await connect(router.url.replace("https", "http"))
    await client.send(LIVE)
    assert b"HTTP" not in await client.ended()


async def test_only_modern_tls_is_spoken_and_http_1_1_agreed_on(router: Any) -> None:
    host, port = router.url.removeprefix("https://").split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    spoken = writer.get_extra_info("ssl_object")
    assert spoken.selected_alpn_protocol() == "http/1.1"
    assert spoken.version() in ("TLSv1.2", "TLSv1.3")
    writer.transport.abort()
