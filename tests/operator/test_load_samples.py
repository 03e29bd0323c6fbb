"""What routers tell of their load, from real pages over real connections."""

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from multimodel_operator.load_samples import MAX_PAGE_BYTES, Counted, RouterPod, asking, joined, read_page
from multimodel_router.metrics import Metrics

NOW = 5_000.0


def router(name: str, url: str = "", began: float = 1_000.0, *, must_answer: bool = True) -> RouterPod:
    return RouterPod(name, url, began, must_answer)


def test_a_router_page_tells_requests_in_flight_and_when_the_last_one_was() -> None:
    metrics = Metrics()
    before = time.time()
    with metrics.under_way("a"), metrics.under_way("a"):
        with metrics.under_way("b"):
            pass
        page = read_page(metrics.page().decode())
    assert {model: counted.in_flight for model, counted in page.items()} == {"a": 2, "b": 0}
    assert all(before <= counted.last_request <= time.time() for counted in page.values())


def test_the_end_of_a_request_is_when_its_model_was_last_used() -> None:
    metrics = Metrics()
    with metrics.under_way("a"):
        began = read_page(metrics.page().decode())["a"].last_request
    assert read_page(metrics.page().decode())["a"].last_request > began


def test_a_page_without_requests_knows_no_model() -> None:
    assert read_page(Metrics().page().decode()) == {}


def test_routers_add_up_and_the_latest_request_counts() -> None:
    pages = [{"a": Counted(2, 4_000)}, {"a": Counted(1, 4_500), "b": Counted(0, 4_100)}]
    sample = joined(NOW, [router("one"), router("two")], pages)
    assert sample.complete
    assert sample.of("a") == Counted(3, 4_500)
    assert sample.of("b") == Counted(0, 4_100)


def test_before_a_router_began_there_may_have_been_requests_that_nobody_remembers() -> None:
    routers = [router("old", began=1_000), router("new", began=4_900)]
    sample = joined(NOW, routers, [{"a": Counted(0, 2_000)}, {}])
    assert sample.of("a") == Counted(0, 4_900)
    assert sample.of("never asked for") == Counted(0, 4_900)


def test_a_router_that_must_answer_and_does_not_leaves_the_sample_incomplete() -> None:
    routers = [router("one"), router("two"), router("starting", must_answer=False)]
    sample = joined(NOW, routers, [{"a": Counted(2, 4_000)}, None, None])
    assert (sample.complete, sample.silent, sample.of("a").in_flight) == (False, ("two",), 2)
    assert joined(NOW, routers, [{}, {}, None]).complete
    assert not joined(NOW, [], []).complete


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.answer(self)  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


Answer = Callable[[BaseHTTPRequestHandler], None]


def text(page: bytes, status: int = 200) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(page)

    return answer


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`serve(answer, tls)`: the address of a server."""
    with contextlib.ExitStack() as servers:

        def start(answer: Answer, tls: ssl.SSLContext | None = None) -> str:
            server = servers.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Page))
            server.daemon_threads = True
            server.answer = answer  # type: ignore[attr-defined]
            if tls:
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            servers.callback(server.shutdown)
            return f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/metrics"

        yield start


@pytest.fixture
def busy_page() -> bytes:
    metrics = Metrics()
    with metrics.under_way("a"):
        return metrics.page()


async def test_every_router_is_asked(serve: Callable[..., str], busy_page: bytes) -> None:
    routers = [router("one", serve(text(busy_page))), router("two", serve(text(busy_page)))]
    async with asking() as pages:
        sample = await pages.sample(routers, NOW)
    assert sample.complete
    assert sample.of("a").in_flight == 2


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=models.example", "-days", "1"]
    subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def test_a_routers_certificate_is_for_another_name(
    serve: Callable[..., str], busy_page: bytes, tls: ssl.SSLContext
) -> None:
    async with asking() as pages:
        sample = await pages.sample([router("one", serve(text(busy_page), tls))], NOW)
    assert sample.of("a").in_flight == 1


def never(_: BaseHTTPRequestHandler) -> None:
    threading.Event().wait(3)


@pytest.mark.parametrize(
    "answer",
    [text(b"", 503), text(b'multimodel_router_requests_in_flight{model="a"} many\n'), text(b"\xff"), never],
    ids=["an error", "no number", "no text", "nothing"],
)
async def test_a_router_that_gives_no_page_is_silent(
    answer: Answer, serve: Callable[..., str], busy_page: bytes
) -> None:
    routers = [router("good", serve(text(busy_page))), router("bad", serve(answer))]
    async with asking(answer_seconds=0.5) as pages:
        sample = await pages.sample(routers, NOW)
    assert sample.silent == ("bad",)
    assert sample.of("a").in_flight == 1


async def test_an_endless_page_is_given_up(serve: Callable[..., str]) -> None:
    endless = text(b"# \n" * (MAX_PAGE_BYTES // 3 + 1))
    async with asking() as pages:
        assert (await pages.sample([router("one", serve(endless))], NOW)).silent == ("one",)


async def test_a_router_that_is_gone_is_silent() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        async with asking() as pages:
            sample = await pages.sample([router("one", f"http://127.0.0.1:{port}/metrics")], NOW)
    assert sample.silent == ("one",)
