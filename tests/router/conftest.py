"""Routers over both fleets, with scripted stand-ins as model servers; in the cluster's case the tests play kubelet."""

import asyncio
import json
import socket
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai import AsyncOpenAI

from multimodel_api import launch, names
from multimodel_api.manifest import MultiModel
from multimodel_router.app import create_app
from multimodel_router.fleet import Endpoint, Fleet
from multimodel_router.fleet.kubernetes import KubernetesFleet, cluster_access
from multimodel_router.fleet.processes import ProcessFleet
from multimodel_router.fleet.server_process import Launch
from multimodel_router.metrics import Metrics
from multimodel_router.server import make_server
from multimodel_router.settings import ProcessesSettings, Settings
from multimodel_router.upstream import Upstream, dial_tcp
from multimodel_testbed.control_plane import ControlPlane, control_plane

ROOT = Path(__file__).parent.parent.parent
STANDIN = Path(__file__).with_name("standin_server.py")
NODE = "played-by-the-test"
DEADLINE = 30.0
TICK = 0.02

RBAC_RULES = [
    {"apiGroups": [names.GROUP], "resources": [names.PLURAL], "resourceNames": ["mm"], "verbs": ["list", "watch"]},
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "watch"]},
    {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
]
"""All that a router may do; the tests run with no more."""


@dataclass
class Running:
    """A router that answers, and what is behind it."""

    url: str
    fleet: Fleet
    metrics: Metrics
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
    scaling = {"minReplicas": model.get("min", 0)}
    kept = {key: value for key, value in model.items() if key not in ("standin", "min")}
    return {"env": [{"name": "STANDIN", "value": script}], "scaling": scaling} | kept


def standin_command(start: Launch) -> list[str]:
    arguments = launch.server_arguments(
        start.model, start.engine, **start.endpoint._asdict(), failure_file=str(start.failure_file)
    )
    return [sys.executable, "-S", str(STANDIN), *arguments]


@asynccontextmanager
async def serving(fleet: Fleet, upstream: Upstream, wait_seconds: float) -> AsyncIterator[Running]:
    settings = Settings(fleet=ProcessesSettings(Path("unused")), port=0, drain_seconds=1)
    metrics = Metrics()
    server = make_server(create_app(fleet, upstream, metrics, wait_seconds=wait_seconds), settings)
    task = asyncio.create_task(server.serve())

    async def stop() -> None:
        server.should_exit = True
        await task

    async def started() -> bool:
        return server.started or task.done()

    await eventually(started, True)
    async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE, trust_env=False) as http:
        openai = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE)
        async with openai:
            yield Running(server.url, fleet, metrics, http, openai, stop)
    await stop()


@pytest.fixture
async def start_on_processes(manifest: Callable[..., MultiModel]) -> AsyncIterator[StartRouter]:
    async with AsyncExitStack() as stack:

        async def start(models: Sequence[dict[str, Any]], *, wait_seconds: float = DEADLINE, **spec: Any) -> Running:
            upstream = Upstream()
            fleet = ProcessFleet(manifest(models, **spec).spec, upstream, command=standin_command)
            return await stack.enter_async_context(serving(fleet, upstream, wait_seconds))

        yield start


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    with control_plane() as running:
        running.kubectl("apply", "-f", str(ROOT / "crds" / "multimodel.dev_multimodels.yaml"))
        running.kubectl("wait", "--for=condition=Established", f"crd/{names.PLURAL}.{names.GROUP}")
        running.kubectl(
            "create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        )
        yield running


@pytest.fixture
async def cluster(plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator["Cluster"]:
    """A namespace of its own, a kubelet played by the test, and KUBECONFIG with a router's rights alone."""
    trust = ssl.create_default_context(cafile=plane.ca_file)
    token = {"Authorization": f"Bearer {plane.users['admin'].token}"}
    async with httpx.AsyncClient(base_url=plane.url, verify=trust, headers=token, trust_env=False, timeout=10) as api:
        made = Cluster(api, f"test-{uuid.uuid4().hex[:10]}", tmp_path)
        await made.create("/api/v1/namespaces", {"metadata": {"name": made.namespace}})
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(await made.router_access(plane.url, plane.ca_file)))
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        kubelet = asyncio.create_task(made.play_kubelet())
        yield made
        kubelet.cancel()
        await asyncio.wait((kubelet,))
        await made.end()


@pytest.fixture
async def start_on_kubernetes(cluster: "Cluster", manifest: Callable[..., MultiModel]) -> AsyncIterator[StartRouter]:
    async with AsyncExitStack() as stack:

        async def start(models: Sequence[dict[str, Any]], *, wait_seconds: float = DEADLINE, **spec: Any) -> Running:
            await cluster.apply(manifest(models, **spec))
            upstream = Upstream(cluster.dial)
            fleet = KubernetesFleet("mm", cluster.namespace, upstream, await cluster_access())
            running = await stack.enter_async_context(serving(fleet, upstream, wait_seconds))

            async def synced() -> bool:
                return fleet.synced and len(fleet.catalog.models) == len(models)

            await eventually(synced, True)
            return running

        yield start


@pytest.fixture(params=["processes", pytest.param("kubernetes", marks=pytest.mark.control_plane)])
def start_router(request: pytest.FixtureRequest) -> StartRouter:
    """Starts a router over each of the fleets."""
    start: StartRouter = request.getfixturevalue(f"start_on_{request.param}")
    return start


@dataclass
class PlayedPod:
    """A stand-in process that plays a pod."""

    process: asyncio.subprocess.Process
    address: str
    local: Endpoint
    failure_file: Path
    shown: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cluster:
    """One namespace of a real control plane; this class plays the operator and the kubelet."""

    api: httpx.AsyncClient
    namespace: str
    folder: Path
    pods: dict[str, PlayedPod] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 250)))

    def path(self, plural: str, group: str = "/api/v1") -> str:
        return f"{group}/namespaces/{self.namespace}/{plural}"

    async def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        response = await self.api.post(path, json=document)
        assert response.is_success, response.text
        created: dict[str, Any] = response.json()
        return created

    async def dial(self, endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol]) -> object:
        """Connect to the process behind a pod's address; the API server takes no loopback addresses for pods."""
        local = next((pod.local for pod in self.pods.values() if pod.address == endpoint.host), None)
        if local is None or endpoint.port != names.MODEL_SERVER_PORT:
            raise ConnectionRefusedError(f"no pod has the address {endpoint}")
        return await dial_tcp(local, protocol)

    async def router_access(self, url: str, ca_file: Path) -> dict[str, Any]:
        """Make the router's service account with its rights and return a kubeconfig of it."""
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        named = {"metadata": {"name": "router"}}
        await self.create(self.path("serviceaccounts"), named)
        await self.create(self.path("roles", rbac), named | {"rules": RBAC_RULES})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "router"}
        subject = {"kind": "ServiceAccount", "name": "router", "namespace": self.namespace}
        await self.create(self.path("rolebindings", rbac), named | {"roleRef": role, "subjects": [subject]})
        token = await self.create(self.path("serviceaccounts/router/token"), {"spec": {"expirationSeconds": 3600}})
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "router",
            "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority": str(ca_file)}}],
            "users": [{"name": "router", "user": {"token": token["status"]["token"]}}],
            "contexts": [{"name": "router", "context": {"cluster": "c", "user": "router"}}],
        }

    async def apply(self, multimodel: MultiModel) -> None:
        """Create the MultiModel and what the operator would make of it."""
        document = multimodel.model_dump(mode="json", by_alias=True, exclude_unset=True)
        typed = {"apiVersion": names.API_VERSION, "kind": names.KIND}
        await self.create(self.path(names.PLURAL, f"/apis/{names.API_VERSION}"), document | typed)
        for model in multimodel.spec.models:
            if model.loadable:
                deployment, service = _objects_of(multimodel, model.name)
                await self.create(self.path("services"), service)
                await self.create(self.path("deployments", "/apis/apps/v1"), deployment)

    async def play_kubelet(self) -> None:
        """Run a process for every pod, tell its state as a kubelet does, and end it with its pod."""
        while True:
            listed = (await self.api.get(self.path("pods"))).json()["items"]
            for pod in listed:
                await self._tend(pod)
            for name in set(self.pods) - {pod["metadata"]["name"] for pod in listed}:
                await self._end(self.pods.pop(name))
            await asyncio.sleep(TICK)

    async def end(self) -> None:
        for pod in self.pods.values():
            await self._end(pod)

    async def _tend(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if name not in self.pods:
            self.pods[name] = await self._run(pod)
        played = self.pods[name]
        if "deletionTimestamp" in pod["metadata"] and played.process.returncode is None:
            played.process.terminate()
        if "deletionTimestamp" in pod["metadata"] and played.process.returncode is not None:
            await self.api.request("DELETE", f"{self.path('pods')}/{name}", json={"gracePeriodSeconds": 0})
            return
        status = _pod_status(played, await _is_ready(played))
        if status != played.shown:
            headers = {"Content-Type": "application/merge-patch+json"}
            body = json.dumps({"status": status})
            await self.api.patch(f"{self.path('pods')}/{name}/status", content=body, headers=headers)
            played.shown = status

    async def _run(self, pod: dict[str, Any]) -> PlayedPod:
        container = pod["spec"]["containers"][0]
        number = next(self.numbers)
        local = Endpoint("127.0.0.1", _free_port())
        failure_file = self.folder / f"{number}.failure"
        places = {"--port": str(local.port), "--host": local.host, "--failure-file": str(failure_file)}
        arguments = [a if (key := a.split("=")[0]) not in places else f"{key}={places[key]}" for a in container["args"]]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        process = await asyncio.create_subprocess_exec(sys.executable, "-S", str(STANDIN), *arguments, env=environment)
        return PlayedPod(process, f"192.0.2.{number}", local, failure_file)

    async def _end(self, pod: PlayedPod) -> None:
        if pod.process.returncode is None:
            pod.process.kill()
        await pod.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _is_ready(pod: PlayedPod) -> bool:
    if pod.process.returncode is not None:
        return False
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"http://{pod.local.host}:{pod.local.port}{names.READY_PATH}")
    except httpx.TransportError:
        return False
    return answer.is_success


def _pod_status(pod: PlayedPod, ready: bool) -> dict[str, Any]:
    code = pod.process.returncode
    state: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    if code is not None:
        message = pod.failure_file.read_text() if pod.failure_file.exists() else ""
        end = {"exitCode": code, "reason": "Error", "message": message}
        times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}
        state = {"terminated": end | times}
    container = {"name": "modelserver", "image": "standin", "imageID": "", "restartCount": 0, "ready": ready}
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return {
        "phase": "Running",
        "podIP": pod.address,
        "podIPs": [{"ip": pod.address}],
        "conditions": [condition],
        "containerStatuses": [container | {"state": state, "started": True}],
    }


def _objects_of(multimodel: MultiModel, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the Deployment and Service of a model as the operator would make them, where the router looks."""
    model = next(model for model in multimodel.spec.models if model.name == name)
    labels = {
        names.LABEL_INSTANCE: multimodel.metadata.name,
        names.LABEL_COMPONENT: names.Component.MODEL_SERVER.value,
        names.LABEL_MODEL: name,
    }
    metadata = {"name": names.model_object_name(multimodel.metadata.name, name), "labels": labels}
    port = names.MODEL_SERVER_PORT
    arguments = launch.server_arguments(model, model.engine, host="0.0.0.0", port=port, failure_file="/dev/x")
    container = {"name": "modelserver", "image": "standin", "args": arguments, "env": model.env}
    pod_spec = {"nodeName": NODE, "containers": [container], "terminationGracePeriodSeconds": 30}
    deployment = {
        "metadata": metadata,
        "spec": {
            "replicas": model.scaling.min_replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec},
        },
    }
    service = {
        "metadata": metadata,
        "spec": {"clusterIP": "None", "selector": labels, "ports": [{"port": port, "targetPort": port}]},
    }
    return deployment, service
