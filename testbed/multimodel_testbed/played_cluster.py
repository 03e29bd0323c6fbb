"""One namespace of a real control plane in which this process plays operator and kubelet: pods are local processes.

The API server takes no loopback addresses for pods, so each gets one of 192.0.2.0/24 (for documentation, RFC 5737),
and who connects to it has to ask `local` where that is.
"""

import asyncio
import json
import socket
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from multimodel_api import launch, names
from multimodel_api.manifest import MultiModel
from multimodel_testbed.control_plane import ControlPlane

NODE = "played"
TICK = 0.02
MULTIMODELS = f"/apis/{names.API_VERSION}"

ROUTER_RIGHTS = [
    {"apiGroups": [names.GROUP], "resources": [names.PLURAL], "resourceNames": ["mm"], "verbs": ["list", "watch"]},
    {"apiGroups": [names.GROUP], "resources": [f"{names.PLURAL}/status"], "resourceNames": ["mm"], "verbs": ["patch"]},
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "watch"]},
    {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
]
"""All that a router may do."""

Address = tuple[str, int]


@dataclass
class PlayedPod:
    """A process that plays a pod."""

    process: asyncio.subprocess.Process
    address: str
    local: Address
    failure_file: Path
    shown: dict[str, Any] = field(default_factory=dict)


@dataclass
class PlayedCluster:
    """The namespace; `program` is the script that pods run, with a model server's arguments.

    Where each pod really is stands in the file `pods.json` of `folder` too, for other processes.
    """

    api: httpx.AsyncClient
    namespace: str
    folder: Path
    program: Path
    pods: dict[str, PlayedPod] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 255)))

    @property
    def addresses(self) -> Path:
        """The file that says where each pod is."""
        return self.folder / "pods.json"

    @property
    def kubeconfig(self) -> Path:
        """The file with a router's access to the API server."""
        return self.folder / "kubeconfig"

    def path(self, plural: str, group: str = "/api/v1") -> str:
        """Return where the API server serves a kind of objects of the namespace."""
        return f"{group}/namespaces/{self.namespace}/{plural}"

    async def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """Create an object and return it."""
        return await self._call("POST", path, "application/json", document)

    async def patch(self, path: str, patch: dict[str, Any]) -> dict[str, Any]:
        """Merge a patch into an object and return it."""
        return await self._call("PATCH", path, "application/merge-patch+json", patch)

    def local(self, host: str, port: int) -> Address | None:
        """Return where the process is that plays the pod with this address."""
        if port != names.MODEL_SERVER_PORT:
            return None
        return next((pod.local for pod in self.pods.values() if pod.address == host), None)

    async def router_access(self, url: str, ca_file: Path) -> dict[str, Any]:
        """Make the router's service account with its rights and return a kubeconfig of it."""
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        named = {"metadata": {"name": "router"}}
        await self.create(self.path("serviceaccounts"), named)
        await self.create(self.path("roles", rbac), named | {"rules": ROUTER_RIGHTS})
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
        await self.create(self.path(names.PLURAL, MULTIMODELS), document | typed)
        await self.list_models(multimodel)
        for model in multimodel.spec.models:
            if model.loadable:
                deployment, service = _objects_of(multimodel, model.name)
                await self.create(self.path("services"), service)
                await self.create(self.path("deployments", "/apis/apps/v1"), deployment)

    async def list_models(self, multimodel: MultiModel) -> None:
        """List the models in the status, as the operator does: only then commands can be recorded beside them."""
        models = [
            {
                "name": model.name,
                "id": model.api_id,
                "canonicalId": model.canonical_id,
                "state": "unloaded",
                "replicas": 0,
                "readyReplicas": 0,
            }
            for model in multimodel.spec.models
        ]
        name = multimodel.metadata.name
        await self.patch(f"{self.path(names.PLURAL, MULTIMODELS)}/{name}/status", {"status": {"models": models}})

    async def models_status(self) -> dict[str, dict[str, Any]]:
        """Return what the status says of each model."""
        found = (await self.api.get(f"{self.path(names.PLURAL, MULTIMODELS)}/mm")).json()
        return {model["name"]: model for model in found["status"]["models"]}

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
        """End all processes."""
        for pod in self.pods.values():
            await self._end(pod)

    async def _call(self, method: str, path: str, content_type: str, document: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": content_type}
        response = await self.api.request(method, path, content=json.dumps(document), headers=headers)
        if not response.is_success:
            raise RuntimeError(f"{method} {path}: {response.text}")
        answer: dict[str, Any] = response.json()
        return answer

    async def _tend(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if name not in self.pods:
            self.pods[name] = await self._run(pod)
            self._write_addresses()
        played = self.pods[name]
        going = "deletionTimestamp" in pod["metadata"]
        if going and played.process.returncode is None:
            played.process.terminate()
        if going and played.process.returncode is not None:
            await self.api.request("DELETE", f"{self.path('pods')}/{name}", json={"gracePeriodSeconds": 0})
            return
        status = _pod_status(played, await _is_ready(played))
        if status != played.shown:
            headers = {"Content-Type": "application/merge-patch+json"}
            body = json.dumps({"status": status})
            await self.api.patch(f"{self.path('pods')}/{name}/status", content=body, headers=headers)
            played.shown = status

    def _write_addresses(self) -> None:
        draft = self.addresses.with_suffix(".draft")
        draft.write_text(json.dumps({pod.address: pod.local for pod in self.pods.values()}))
        draft.replace(self.addresses)

    async def _run(self, pod: dict[str, Any]) -> PlayedPod:
        container = pod["spec"]["containers"][0]
        number = next(self.numbers)
        host, port = local = ("127.0.0.1", _free_port())
        failure_file = self.folder / f"{number}.failure"
        places = {"--port": str(port), "--host": host, "--failure-file": str(failure_file)}
        arguments = [a if (key := a.split("=")[0]) not in places else f"{key}={places[key]}" for a in container["args"]]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        command = [sys.executable, "-S", str(self.program), *arguments]
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        return PlayedPod(process, f"192.0.2.{number}", local, failure_file)

    async def _end(self, pod: PlayedPod) -> None:
        if pod.process.returncode is None:
            pod.process.kill()
        await pod.process.wait()


Played = TypeVar("Played", bound=PlayedCluster)


def add_node(plane: ControlPlane) -> None:
    """Make the node of all played clusters."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    plane.kubectl("create", "-f", "-", stdin=json.dumps(node))


@asynccontextmanager
async def played_cluster(plane: ControlPlane, folder: Path, program: Path, kind: type[Played]) -> AsyncIterator[Played]:
    """Play a namespace of its own; `kubeconfig` in `folder` gives a router's rights and no more."""
    trust = ssl.create_default_context(cafile=plane.ca_file)
    token = {"Authorization": f"Bearer {plane.users['admin'].token}"}
    async with httpx.AsyncClient(base_url=plane.url, verify=trust, headers=token, trust_env=False, timeout=10) as api:
        made = kind(api, f"played-{uuid.uuid4().hex[:10]}", folder, program)
        await made.create("/api/v1/namespaces", {"metadata": {"name": made.namespace}})
        access = yaml.safe_dump(await made.router_access(plane.url, plane.ca_file))
        made.kubeconfig.write_text(access)
        made.addresses.write_text("{}")
        kubelet = asyncio.create_task(made.play_kubelet())
        try:
            yield made
        finally:
            kubelet.cancel()
            await asyncio.wait((kubelet,))
            await made.end()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _is_ready(pod: PlayedPod) -> bool:
    if pod.process.returncode is not None:
        return False
    host, port = pod.local
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"http://{host}:{port}{names.READY_PATH}")
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
