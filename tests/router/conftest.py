"""Routers over both fleets, with scripted stand-ins as model servers; in the cluster's case the tests play kubelet."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from openai import AsyncOpenAI

from multimodel_api import launch
from multimodel_api.manifest import MultiModel
from multimodel_router import endpoints as router_endpoints
from multimodel_router.endpoints import Endpoints
from multimodel_router.fleet import Endpoint, Fleet, probe
from multimodel_router.fleet.kubernetes import KubernetesFleet, cluster_access
from multimodel_router.fleet.processes import ProcessFleet
from multimodel_router.fleet.server_process import Launch
from multimodel_router.http1.connection import Site
from multimodel_router.http1.limits import Limits
from multimodel_router.metrics import Metrics
from multimodel_router.router import Router
from multimodel_router.server import Server
from multimodel_router.settings import ProcessesSettings, Settings, WaitingSettings
from multimodel_router.upstream import Upstream, dial_tcp
from multimodel_testbed.control_plane import ControlPlane, control_plane
from multimodel_testbed.played_cluster import PlayedCluster, add_node, played_cluster

ROOT = Path(__file__).parent.parent.parent
STANDIN = Path(__file__).with_name("standin_server.py")
DEADLINE = 30.0
TICK = 0.02


class Cluster(PlayedCluster):
    """A namespace whose pods this process can connect to."""

    async def dial(self, endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol]) -> object:
        local = self.local(*endpoint)
        if local is None:
            raise ConnectionRefusedError(f"no pod has the address {endpoint}")
        return await dial_tcp(Endpoint(*local), protocol)


@dataclass
class Running:
    """A router that answers, and what is behind it."""

    url: str
    fleet: Fleet
    metrics: Metrics
    endpoints: Endpoints
    site: Site
    http: httpx.AsyncClient
    openai: AsyncOpenAI
    stop: Callable[[], Awaitable[None]]

    async def status(self, model_id: str) -> str:
        reply = await self.http.post("/v1/models/status", json={"model_id": model_id})
        return str(reply.json()["status"])

    async def until(self, model_id: str, status: str) -> None:
        await eventually(lambda: self.status(model_id), status)


async def eventually(ask: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Ask until the answer is the wanted one."""
    answer = None
    try:
        async with asyncio.timeout(DEADLINE):
            while (answer := await ask()) != wanted:  # noqa: ASYNC110  (what is waited for is in another process)
                await asyncio.sleep(TICK)
    except TimeoutError:
        pytest.fail(f"still {answer!r} after {DEADLINE} s, not {wanted!r}")


async def connections_to(port: int | None) -> int:
    """Return how many connections this process has to a port."""
    return sum(at.raddr != () and at.raddr.port == port for at in psutil.Process().net_connections("tcp"))


StartRouter = Callable[..., Awaitable[Running]]


@pytest.fixture
def until() -> Callable[[Callable[[], Awaitable[Any]], Any], Awaitable[None]]:
    return eventually


@pytest.fixture
def manifest() -> Callable[..., MultiModel]:
    """Make a manifest of stand-ins; what a model's `standin` says goes to its script."""

    def make(models: Sequence[dict[str, Any]], **spec: Any) -> MultiModel:
        scripted = [{"plain": {"modelId": f"standins/{model['name']}"}} | _with_script(model) for model in models]
        document = {"metadata": {"name": "mm"}, "spec": {"models": scripted} | spec}
        return MultiModel.model_validate(document)

    return make


def _with_script(model: dict[str, Any]) -> dict[str, Any]:
    script = json.dumps(model.get("standin", {}))
    scaling = {"minReplicas": model.get("min", 0), "waitSeconds": model.get("wait")}
    kept = {key: value for key, value in model.items() if key not in ("standin", "min", "wait")}
    return {"env": [{"name": "STANDIN", "value": script}], "scaling": scaling} | kept


def standin_command(start: Launch) -> list[str]:
    arguments = launch.server_arguments(
        start.model, start.engine, **start.endpoint._asdict(), failure_file=str(start.failure_file)
    )
    return [sys.executable, "-S", str(STANDIN), *arguments]


@asynccontextmanager
async def serving(fleet: Fleet, upstream: Upstream, wait_seconds: float, **more: Any) -> AsyncIterator[Running]:
    waiting = more.pop("waiting", WaitingSettings(seconds=wait_seconds))
    limits = more.pop("limits", Limits())
    unused = ProcessesSettings(Path("unused"))
    settings = Settings(**{"fleet": unused, "port": 0, "drain_seconds": 1.0, "waiting": waiting} | more)
    router = Router(fleet, upstream, settings, limits)
    server = Server(router, settings)
    task = asyncio.create_task(server.serve())

    async def stop() -> None:
        server.stop()
        await task

    async def started() -> bool:
        return server.started.is_set() or task.done()

    await eventually(started, True)
    async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE, trust_env=False) as http:
        openai = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE)
        endpoints = router._endpoints
        async with openai:
            yield Running(server.url, router.fleet, router.metrics, endpoints, router.site, http, openai, stop)
    await stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a silent server be found soon."""
    monkeypatch.setattr(router_endpoints, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(router_endpoints, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.3)


@pytest.fixture
def stand_in() -> Callable[[Launch], list[str]]:
    """Make the command line of a stand-in."""
    return standin_command


@pytest.fixture
def serve() -> Callable[[Fleet, Upstream], AbstractAsyncContextManager[Running]]:
    """Run a router over a fleet."""
    return partial(serving, wait_seconds=DEADLINE)


@pytest.fixture
async def start_on_processes(manifest: Callable[..., MultiModel]) -> AsyncIterator[StartRouter]:
    async with AsyncExitStack() as stack:

        async def start(
            models: Sequence[dict[str, Any]],
            *,
            wait_seconds: float = DEADLINE,
            settings: dict[str, Any] | None = None,
            **spec: Any,
        ) -> Running:
            upstream = Upstream()
            fleet = ProcessFleet(manifest(models, **spec).spec, upstream, command=standin_command)
            return await stack.enter_async_context(serving(fleet, upstream, wait_seconds, **(settings or {})))

        yield start


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    with control_plane() as running:
        running.define(ROOT / "crds" / "multimodel.dev_multimodels.yaml")
        add_node(running)
        yield running


@pytest.fixture
async def cluster(plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A namespace of its own, a kubelet played by the test, and KUBECONFIG with a router's rights alone."""
    async with played_cluster(plane, tmp_path, STANDIN, Cluster) as made:
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
        yield made
    # Watches were broken off: their TLS connections live until the API server has said goodbye, and need the loop.
    await eventually(partial(connections_to, urlsplit(plane.url).port), 0)


@pytest.fixture
async def start_on_kubernetes(cluster: Cluster, manifest: Callable[..., MultiModel]) -> AsyncIterator[StartRouter]:
    async with AsyncExitStack() as stack:

        async def start(
            models: Sequence[dict[str, Any]],
            *,
            wait_seconds: float = DEADLINE,
            settings: dict[str, Any] | None = None,
            **spec: Any,
        ) -> Running:
            await cluster.apply(manifest(models, **spec))
            return await stack.enter_async_context(router_of(cluster, len(models), wait_seconds, settings))

        yield start


@asynccontextmanager
async def router_of(
    cluster: Cluster, models: int | None, wait_seconds: float = DEADLINE, settings: dict[str, Any] | None = None
) -> AsyncIterator[Running]:
    """Run a router of a cluster, beside those that are there, and wait until it has seen so many models, if any."""
    upstream = Upstream(cluster.dial)
    fleet = KubernetesFleet("mm", cluster.namespace, upstream, await cluster_access())
    async with serving(fleet, upstream, wait_seconds, **(settings or {})) as running:

        async def synced() -> bool:
            return models is None or (fleet.synced and len(fleet.catalog.models) == models)

        await eventually(synced, True)
        yield running


@pytest.fixture
async def join(cluster: Cluster) -> AsyncIterator[StartRouter]:
    """Starts one more router of the cluster's models."""
    async with AsyncExitStack() as stack:

        async def start(models: int | None = 1, settings: dict[str, Any] | None = None) -> Running:
            return await stack.enter_async_context(router_of(cluster, models, settings=settings))

        yield start


@pytest.fixture(params=["processes", pytest.param("kubernetes", marks=pytest.mark.control_plane)])
def start_router(request: pytest.FixtureRequest) -> StartRouter:
    """Starts a router over each of the fleets."""
    start: StartRouter = request.getfixturevalue(f"start_on_{request.param}")
    return start
