"""A namespace per test on a real API server, the operator as a real process, and a kubelet played by the test."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

from multimodel_testbed import binaries, object_schemas
from multimodel_testbed import foreign_kinds as foreign_crds
from multimodel_testbed.control_plane import ControlPlane

Found = TypeVar("Found")
SECONDS = 30.0
BUILD = "`python -m multimodel_testbed build` gets it, as the end-to-end tests do"

GROUPS = {
    "multimodels": "/apis/multimodel.dev/v1alpha1",
    "deployments": "/apis/apps/v1",
    "services": "/api/v1",
    "serviceaccounts": "/api/v1",
    "pods": "/api/v1",
    "roles": "/apis/rbac.authorization.k8s.io/v1",
    "rolebindings": "/apis/rbac.authorization.k8s.io/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "events": "/apis/events.k8s.io/v1",
}
CHILDREN = (
    "deployments",
    "services",
    "serviceaccounts",
    "roles",
    "rolebindings",
    "networkpolicies",
    "poddisruptionbudgets",
)


def _eventually(what: str, look: Callable[[], Found], seconds: float = SECONDS) -> Found:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:.0f} s; last seen: {found!r}")
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Namespace:
    """What a test sees and does in its namespace."""

    client: httpx.Client
    name: str

    def path(self, plural: str, name: str = "") -> str:
        return f"{GROUPS[plural]}/namespaces/{self.name}/{plural}/{name}".rstrip("/")

    def get(self, plural: str, name: str) -> dict[str, Any]:
        return self.client.get(self.path(plural, name)).raise_for_status().json()

    def all(self, plural: str, **query: str) -> list[dict[str, Any]]:
        return self.client.get(self.path(plural), params=query).raise_for_status().json()["items"]

    def names(self, plural: str) -> set[str]:
        return {item["metadata"]["name"] for item in self.all(plural)}

    def create(self, plural: str, document: dict[str, Any]) -> dict[str, Any]:
        response = self.client.post(self.path(plural), json=document)
        assert response.is_success, response.text
        return response.json()

    def patch(self, path: str, document: dict[str, Any], manager: str = "somebody") -> dict[str, Any]:
        headers = {"Content-Type": "application/merge-patch+json"}
        response = self.client.patch(path, json=document, headers=headers, params={"fieldManager": manager})
        assert response.is_success, response.text
        return response.json()

    def delete(self, plural: str, name: str) -> None:
        self.client.request("DELETE", self.path(plural, name)).raise_for_status()

    def multimodel(self, *models: dict[str, Any], name: str = "mm", **spec: Any) -> dict[str, Any]:
        """Create a MultiModel."""
        resource = {
            "apiVersion": "multimodel.dev/v1alpha1",
            "kind": "MultiModel",
            "metadata": {"name": name},
            "spec": {"models": list(models), **spec},
        }
        return self.create("multimodels", resource)

    def status(self, name: str = "mm") -> dict[str, Any]:
        return self.get("multimodels", name).get("status", {})

    def condition(self, kind: str, name: str = "mm") -> dict[str, Any]:
        return next((c for c in self.status(name).get("conditions", []) if c["type"] == kind), {})

    def model(self, model: str, name: str = "mm") -> dict[str, Any]:
        return next((m for m in self.status(name).get("models", []) if m["name"] == model), {})

    def own_events(self) -> list[dict[str, Any]]:
        return [e for e in self.all("events") if e.get("reportingController") == "multimodel-operator"]

    def versions(self) -> dict[tuple[str, str], str]:
        """Return the resource version of every object that the operator could have written."""
        return {
            (plural, item["metadata"]["name"]): item["metadata"]["resourceVersion"]
            for plural in (*CHILDREN, "multimodels", "pods", "events")
            for item in self.all(plural)
        }

    def scale(self, deployment: str, replicas: int) -> None:
        """Scale as a router does."""
        path = f"{self.path('deployments', deployment)}/scale"
        self.patch(path, {"spec": {"replicas": replicas}}, manager="multimodel-router")

    def pods_of(self, deployment: str) -> list[dict[str, Any]]:
        return [p for p in self.all("pods") if p["metadata"]["name"].startswith(f"{deployment}-")]

    def set_pod_status(self, pod: str, status: dict[str, Any]) -> None:
        """Play the kubelet."""
        self.patch(f"{self.path('pods', pod)}/status", {"status": status}, manager="kubelet")

    def running_status(self, pod: dict[str, Any], started: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
        """Return the status of a pod whose containers run and are ready."""
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"}
        containers = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": container["image"],
                "ready": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": started}},
            }
            for container in pod["spec"]["containers"]
        ]
        return {"phase": "Running", "conditions": [ready], "containerStatuses": containers}

    def become_ready(self, *deployments: str) -> None:
        """Play the kubelet until each Deployment has all its pods, and all of them are ready."""
        for deployment in deployments:
            wanted = self.get("deployments", deployment)["spec"]["replicas"]
            pods = _eventually(
                f"{deployment} has {wanted} pods",
                lambda d=deployment, n=wanted: p if len(p := self.pods_of(d)) == n else None,
            )
            for pod in pods:
                self.set_pod_status(pod["metadata"]["name"], self.running_status(pod))


@pytest.fixture
def namespace(api_client: httpx.Client) -> Iterator[Namespace]:
    """A fresh namespace; it is emptied afterwards."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    api_client.post("/api/v1/namespaces", json=document).raise_for_status()
    yield Namespace(api_client, name)
    api_client.request("DELETE", f"/api/v1/namespaces/{name}").raise_for_status()


@dataclass
class Operator:
    """A running operator."""

    process: subprocess.Popen[bytes]
    log_file: Path
    stopped: bool = field(default=False)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep it from doing anything for the length of the block."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it as the kubelet does; it must end by itself, in order and without a complaint."""
        if self.stopped:
            return
        self.stopped = True
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=20)
        finally:
            self.process.kill()
        assert code == 0, self.log
        assert "Traceback" not in self.log, self.log


def _start(log_file: Path, kubeconfig: Path, *options: str) -> Operator:
    command = [sys.executable, "-m", "multimodel_operator", "--health-port=0", *options]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "KUBECONFIG": str(kubeconfig)}, stdout=log, stderr=log)
    started = Operator(process, log_file)
    _eventually("the operator begins", lambda: "health probes" in started.log or process.poll() is not None)
    assert process.poll() is None, started.log
    return started


@pytest.fixture(scope="session")
def operator(api_server: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator that looks after all namespaces, for all tests."""
    log_file = tmp_path_factory.mktemp("operator") / "log"
    running = _start(log_file, api_server.kubeconfig, "--resync-seconds=1")
    yield running
    running.stop()


@pytest.fixture
def start_operator(api_server: ControlPlane, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """`start_operator(*options)`: one more operator."""
    started: list[Operator] = []

    def start(*options: str, kubeconfig: Path = api_server.kubeconfig) -> Operator:
        started.append(_start(tmp_path / f"operator-{len(started)}.log", kubeconfig, *options))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def eventually(operator: Operator) -> Callable[..., Any]:
    """`eventually(what, look)`: the first truthy value of `look`, or a failure with `what` and the operator's log."""

    def wait(what: str, look: Callable[[], Any]) -> Any:
        try:
            return _eventually(what, look)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{failure}\n{operator.log[-3000:]}")

    return wait


def model(name: str, model_id: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"name": name, "plain": {"modelId": model_id or f"org/{name}"}, **fields}


@pytest.fixture(name="model", scope="session")
def model_fixture() -> Callable[..., dict[str, Any]]:
    """`model(name, …)`: a model of a manifest."""
    return model


@pytest.fixture(scope="session")
def helm() -> Callable[..., str]:
    """`helm(*arguments)`: what helm prints."""
    program = _built("helm")

    def run(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def foreign_kinds(api_server: ControlPlane) -> None:
    """The kinds of others, of which the chart makes objects, on the shared API server."""
    crds = foreign_crds.locate()
    if crds is None:
        pytest.skip(f"others' CRDs are not there; {BUILD}")
    api_server.kubectl("apply", "--server-side", *(f"--filename={crd}" for crd in crds))
    kinds = {(document["spec"]["group"], document["spec"]["names"]["plural"]) for document in map(_document, crds)}
    _eventually("the API server serves them", lambda: all(plural in _served(api_server, g) for g, plural in kinds))


def _document(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(file.read_text())
    return document


def _served(plane: ControlPlane, group: str) -> str:
    """Return the kinds of a group that can be asked for, once their fields are published, too."""
    published = f"apis/{group}/v1" in plane.kubectl("get", "--raw", "/openapi/v3")
    return plane.kubectl("api-resources", f"--api-group={group}", "--output=name") if published else ""


@pytest.fixture(scope="session")
def kubeconform(
    api_server: ControlPlane, foreign_kinds: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[dict[str, Any]]]:
    """`kubeconform(text)`: what it finds wrong with manifests, by the schemas that the API server publishes."""
    location = object_schemas.write(api_server, tmp_path_factory.mktemp("schemas"))
    command = [_built("kubeconform"), "-strict", "-output=json", f"-schema-location={location}", "-"]

    def check(text: str) -> list[dict[str, Any]]:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
        wrong: list[dict[str, Any]] = json.loads(done.stdout)["resources"]
        assert bool(done.returncode) == bool(wrong), done.stderr
        return wrong

    return check


def _built(program: str) -> Path:
    found = binaries.locate(program)
    if found is None:
        pytest.skip(f"{program} is not there; {BUILD}")
    return found
