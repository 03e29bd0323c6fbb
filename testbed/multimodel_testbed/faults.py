"""A way to the API server that can fail: it answers errors, hangs, silences watches, or loses some of their events."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from aiohttp import web

from multimodel_testbed import access
from multimodel_testbed.control_plane import ControlPlane, start_controller_manager
from multimodel_testbed.processes import Processes

_HOP_HEADERS = frozenset({"connection", "content-length", "host", "transfer-encoding"})
START_SECONDS = 30.0
LONGEST_BODY = 8 * 1024 * 1024
HOLD_SECONDS = 0.01


def _none(_: Any) -> bool:
    return False


@dataclass
class FaultyWay:
    """What goes wrong now; set from any thread, effective at once."""

    url: str
    kubeconfig: Path
    status: int | None = None
    """Answer everything with this status, and end watches when anything is to be told."""
    silent: bool = False
    """Keep watches open, and pass nothing on."""
    hanging: bool = False
    """Answer nothing."""
    late: bool = False
    """Answer lists when this is over, with what they held before."""
    held: int = 0
    """Lists that have been made, and whose answers wait."""
    loses: Callable[[dict[str, Any]], bool] = _none
    """Which events of watches are lost."""
    writes: list[str] = field(default_factory=list)
    """The method and path of every request that was to change something, and did."""

    def heal(self) -> None:
        """Let everything through again."""
        self.status, self.silent, self.hanging, self.late, self.loses = None, False, False, False, _none


@contextmanager
def faulty_way(plane: ControlPlane, folder: Path) -> Iterator[FaultyWay]:
    """Open a way to the API server, on loopback and without TLS, for the length of the block."""
    opened: asyncio.Queue[FaultyWay] = asyncio.Queue()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="faulty way")
    thread.start()
    serving = asyncio.run_coroutine_threadsafe(_begin(_serve(plane, folder, opened)), loop).result(START_SECONDS)
    try:
        yield asyncio.run_coroutine_threadsafe(opened.get(), loop).result(START_SECONDS)
    finally:
        asyncio.run_coroutine_threadsafe(_end(serving), loop).result(START_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_SECONDS)
        loop.close()


@contextmanager
def controllers_on(plane: ControlPlane, way: FaultyWay) -> Iterator[None]:
    """Let the controllers of a control plane that this process runs go the same way for the length of the block."""
    usual = next(child for child in psutil.Process().children() if _is_controller_manager(child, plane))
    processes = Processes(plane.folder / "logs" / "faulty")
    usual.suspend()
    try:
        start_controller_manager(processes, plane, way.kubeconfig)
        yield
    finally:
        processes.stop()
        usual.resume()


def _is_controller_manager(process: psutil.Process, plane: ControlPlane) -> bool:
    return process.name().startswith("kube-controller") and str(plane.folder) in " ".join(process.cmdline())


async def _begin(serving: Coroutine[None, None, None]) -> "asyncio.Task[None]":
    return asyncio.create_task(serving)


async def _serve(plane: ControlPlane, folder: Path, opened: "asyncio.Queue[FaultyWay]") -> None:
    trust = ssl.create_default_context(cafile=plane.ca_file)
    connector = aiohttp.TCPConnector(ssl=trust, limit=0)
    async with aiohttp.ClientSession(plane.url, connector=connector, read_bufsize=2**21) as session:
        app = web.Application(client_max_size=LONGEST_BODY)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        passage = _Passage(session, plane.users["admin"].token)
        app.router.add_route("*", "/{path:.*}", passage.handle)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        kubeconfig = folder / "faulty.kubeconfig"
        access.write_kubeconfig(kubeconfig, url, plane.ca_file, plane.users["admin"])
        passage.way = FaultyWay(url, kubeconfig)
        opened.put_nowait(passage.way)
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


async def _end(serving: "asyncio.Task[None]") -> None:
    """End everything: first in order, then the requests that are still being answered."""
    serving.cancel()
    await asyncio.wait((serving,))
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


class _Passage:
    """Passes requests on, as far as the way lets them."""

    way: FaultyWay

    def __init__(self, session: aiohttp.ClientSession, token: str) -> None:
        self._session = session
        self._token = token

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        if self.way.hanging:
            await asyncio.Event().wait()
        if self.way.status is not None:
            return web.json_response({"message": "injected"}, status=self.way.status)
        async with self._passed_on(request) as answer:
            if request.method != "GET" and answer.ok:
                self.way.writes.append(f"{request.method} {request.path}")
            if request.query.get("watch") == "true" and answer.status == 200:
                return await self._relay(request, answer)
            body = await answer.read()
            if "labelSelector" in request.query:
                await self._hold()
            return web.Response(status=answer.status, body=body, headers=_content_type(answer))

    async def _hold(self) -> None:
        self.way.held += 1
        while self.way.late:  # noqa: ASYNC110  (set from another thread, which could not set an event)
            await asyncio.sleep(HOLD_SECONDS)
        self.way.held -= 1

    @asynccontextmanager
    async def _passed_on(self, request: web.Request) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
        headers.setdefault("Authorization", f"Bearer {self._token}")  # Go's clients send none without TLS
        taken = headers.get("Accept", "").split(",")
        if len(taken) > 1:  # controllers take JSON too, in which alone events are understood here
            headers["Accept"] = ",".join(kind for kind in taken if "protobuf" not in kind)
        timeout = aiohttp.ClientTimeout(total=None)
        body = await request.read()
        async with self._session.request(
            request.method, request.path_qs, headers=headers, data=body or None, timeout=timeout
        ) as answer:
            yield answer

    async def _relay(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        relayed = web.StreamResponse(headers=_content_type(answer))
        await relayed.prepare(request)
        with suppress(ConnectionResetError):  # who watched has gone
            async for line in answer.content:
                if self.way.status is not None:
                    break
                if not (self.way.silent or self.way.loses(json.loads(line))):
                    await relayed.write(line)
        return relayed


def _content_type(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """Return the type of an answer with its parameters, which tell what kind of list it is."""
    return {"Content-Type": answer.headers.get("Content-Type", "application/json")}
