"""Routers as far as their metrics go, a kubelet that makes pods ready, and a leader with little patience."""

import asyncio
import contextlib
import random
import socketserver
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from multimodel_api import names
from multimodel_operator.api_server import connected
from multimodel_operator.cache import Cache
from multimodel_operator.cluster import Cluster
from multimodel_operator.metrics import Metrics
from multimodel_operator.pace import Pace
from multimodel_operator.residency import Patience
from multimodel_operator.scaler import Scaler, Timing
from multimodel_router.metrics import Metrics as RouterMetrics
from multimodel_testbed.control_plane import ControlPlane

TIMING = Timing(calm=0.3, urgent=0.2, down=2.0, patience=Patience(quiet=1.0, turn=4.0))
SECONDS = 60.0


@pytest.fixture(name="timing")
def timing_fixture() -> Timing:
    """How patient the leader is."""
    return TIMING


class Router(BaseHTTPRequestHandler):
    """A router as far as its metrics go."""

    server: "RouterPage"

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(503 if self.server.silent else 200)
        self.end_headers()
        self.wfile.write(self.server.metrics.page())

    def log_message(self, *_: Any) -> None:
        pass


class RouterPage(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str) -> None:
        socketserver.TCPServer.__init__(self, (address, names.ROUTER_PORT), Router)
        self.address = address
        self.metrics = RouterMetrics()
        self.asked = 0
        self.silent = False

    def requests(self, model: str, count: int) -> contextlib.ExitStack:
        """Have so many requests in flight, until the stack is closed."""
        stack = contextlib.ExitStack()
        for _ in range(count):
            stack.enter_context(self.metrics.under_way(model))
        return stack


@pytest.fixture
def router() -> Iterator[RouterPage]:
    """A router with an address of its own, as every pod has."""
    address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
    with RouterPage(address) as page:
        serving = threading.Thread(target=page.serve_forever, args=(0.02,))
        serving.start()
        yield page
        page.shutdown()
        serving.join()


class Kubelet:
    """Makes every pod ready that may run; pods that limit GPUs get a node one at a time, as it has but one.

    A pod that is to end does so when it has no `work`, which a test counts by pod. `looked` is called with all pods.
    """

    def __init__(self, namespace: Any, router: RouterPage) -> None:
        self._namespace = namespace
        self._router = router
        self.pods: list[dict[str, Any]] = []
        self.work: Counter[str] = Counter()
        self.looked: Callable[[list[dict[str, Any]]], None] = lambda _: None

    async def run(self) -> None:
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(0.1)

    def look(self) -> None:
        self.pods = pods = self._namespace.all("pods")
        self.looked(pods)
        gpu_is_free = not any(pod["spec"].get("nodeName") for pod in pods)
        for pod in pods:
            with contextlib.suppress(AssertionError, httpx.HTTPStatusError):  # it may have been deleted meanwhile
                if "deletionTimestamp" in pod["metadata"]:
                    if not self.work[pod["metadata"]["name"]]:
                        self._end(pod)
                elif pod["spec"].get("schedulingGates") or pod["status"].get("phase") == "Running":
                    continue
                elif not _limits_gpu(pod) or pod["spec"].get("nodeName"):
                    self._make_ready(pod)
                elif gpu_is_free:
                    self._place(pod)
                    gpu_is_free = False
                else:
                    self._refuse(pod)

    def _make_ready(self, pod: dict[str, Any]) -> None:
        is_router = pod["metadata"]["labels"][names.LABEL_COMPONENT] == "router"
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
        address = self._router.address if is_router else "127.0.0.2"
        status = {"phase": "Running", "startTime": now, "podIP": address, "conditions": [ready]}
        self._namespace.set_pod_status(pod["metadata"]["name"], status)

    def _refuse(self, pod: dict[str, Any]) -> None:
        scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        scheduled["message"] = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
        self._namespace.set_pod_status(pod["metadata"]["name"], {"conditions": [scheduled]})

    def _place(self, pod: dict[str, Any]) -> None:
        metadata = {"name": pod["metadata"]["name"]}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": {"kind": "Node", "name": "n"}}
        path = f"{self._namespace.path('pods', metadata['name'])}/binding"
        self._namespace.client.post(path, json=binding).raise_for_status()

    def _end(self, pod: dict[str, Any]) -> None:
        path = self._namespace.path("pods", pod["metadata"]["name"])
        self._namespace.client.delete(path, params={"gracePeriodSeconds": "0"}).raise_for_status()


def _limits_gpu(pod: dict[str, Any]) -> bool:
    return "nvidia.com/gpu" in pod["spec"]["containers"][0]["resources"].get("limits", {})


@pytest.fixture
async def kubelet(namespace: Any, router: RouterPage) -> AsyncIterator[Kubelet]:
    played = Kubelet(namespace, router)
    playing = asyncio.create_task(played.run())
    yield played
    playing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await playing


@contextlib.asynccontextmanager
async def every_connection_closed() -> AsyncIterator[None]:
    """Wait at the end until the block's connections are gone: a loop that ends before warns of them."""
    sockets = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
    before = len(sockets)
    yield
    async with asyncio.timeout(SECONDS):
        while len(sockets) > before:  # noqa: ASYNC110  (nothing here could set an event)
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)


Scaling = Callable[[], contextlib.AbstractAsyncContextManager[None]]


@pytest.fixture
def scaling(
    api_server: ControlPlane, namespace: Any, operator: Any, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> Scaling:
    """`async with scaling()`: a leader scales in the namespace for the length of the block."""
    default = "kubernetes_asyncio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(default, str(api_server.kubeconfig))

    @contextlib.asynccontextmanager
    async def run() -> AsyncIterator[None]:
        metrics = Metrics()
        async with every_connection_closed(), connected(metrics) as api:
            cache = Cache(api, namespace.name, relist_seconds=30)
            watching = asyncio.create_task(cache.run())
            await cache.synced()
            leading = asyncio.create_task(
                Scaler(cache, Cluster(api, cache, Pace(100, 100), metrics), metrics, TIMING).run()
            )
            try:
                yield
            finally:
                for task in (leading, watching):
                    task.cancel()
                for ended in await asyncio.gather(leading, watching, return_exceptions=True):
                    assert isinstance(ended, asyncio.CancelledError), ended

    return run


@pytest.fixture
def until(operator: Any) -> Callable[..., Awaitable[None]]:
    """`await until(what, look)`: return when `look` says so; fail with the operator's log."""

    async def wait(what: str, look: Callable[[], Any], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not (found := await asyncio.to_thread(look)):
            if time.monotonic() > deadline:
                pytest.fail(f"{what}: not within {seconds:.0f} s; last seen: {found!r}\n{operator.log[-2000:]}")
            await asyncio.sleep(0.05)

    return wait
