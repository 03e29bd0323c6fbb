"""The operator as a process, a client of the API server, and what both can be asked: for operator_scale.py."""

import asyncio
import json
import os
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from multimodel_testbed.control_plane import ControlPlane

MULTIMODELS = "/apis/multimodel.dev/v1alpha1/namespaces/{}/multimodels"
OWNER = "multimodel.dev/multimodel"
MODELS = 3
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 1200.0

CHILDREN = {
    "serviceaccounts": "/api/v1",
    "services": "/api/v1",
    "roles": "/apis/rbac.authorization.k8s.io/v1",
    "rolebindings": "/apis/rbac.authorization.k8s.io/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "deployments": "/apis/apps/v1",
}
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass
class Running:
    """An operator process, and what its metrics say."""

    process: psutil.Process
    url: str

    async def samples(self) -> list[Sample]:
        """Return all that the operator publishes."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as answer:
            page = await answer.text()
        return [sample for family in text_string_to_metric_families(page) for sample in family.samples]

    async def numbers(self) -> Counter[str]:
        """Return the sum over the labels of each metric."""
        total: Counter[str] = Counter()
        for sample in await self.samples():
            total[sample.name.removeprefix("multimodel_operator_")] += sample.value  # type: ignore[assignment]
        return total

    async def writes(self) -> dict[str, int]:
        """Return how many writes there were, by verb and kind."""
        written = [sample for sample in await self.samples() if sample.name == "multimodel_operator_writes_total"]
        return {f"{each.labels['verb']} {each.labels['kind']}": int(each.value) for each in written}


class Api:
    """The calls that the bench makes itself."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Send a request and return the decoded answer; ends the bench where it is refused."""
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, path, data=data, headers={"Content-Type": content_type}) as answer:
            if answer.status >= 400:
                raise SystemExit(f"{method} {path}: {answer.status} {await answer.text()}")
            return await answer.json()

    async def list(self, path: str) -> tuple[list[Any], str]:
        """Return the objects and the version of the list."""
        listed = await self.call("GET", path)
        return listed["items"], listed["metadata"]["resourceVersion"]

    async def watch(self, path: str, version: str, accept: str = METADATA_ONLY, **query: str) -> AsyncIterator[Any]:
        """Yield what happens to objects, of which `accept` says how much comes."""
        query |= {"watch": "true", "resourceVersion": version, "timeoutSeconds": "3600"}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(path, params=query, headers={"Accept": accept}, timeout=timeout) as answer:
            async for line in answer.content:
                yield json.loads(line)


def multimodel(name: str) -> dict[str, Any]:
    models = [{"name": f"m{number}", "plain": {"modelId": f"org/model-{number}"}} for number in range(MODELS)]
    return {
        "apiVersion": "multimodel.dev/v1alpha1",
        "kind": "MultiModel",
        "metadata": {"name": name},
        "spec": {"models": models},
    }


class Births:
    """When the children of each MultiModel came, by a watch of each kind."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.last: dict[str, float] = {}

    def note(self, event: Any) -> None:
        """Count a child that came."""
        owner = event["object"]["metadata"].get("labels", {}).get(OWNER)
        if event["type"] == "ADDED" and owner:
            self.count[owner] += 1
            self.last[owner] = time.monotonic()


@asynccontextmanager
async def births(api: Api, namespace: str) -> AsyncIterator[Births]:
    seen = Births()
    ready = asyncio.Queue[str]()

    async def follow(plural: str, root: str) -> None:
        path = f"{root}/namespaces/{namespace}/{plural}"
        _, version = await api.list(path)
        ready.put_nowait(plural)
        async for event in api.watch(path, version):
            seen.note(event)

    tasks = [asyncio.create_task(follow(*kind)) for kind in CHILDREN.items()]
    for _ in tasks:
        await ready.get()
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(look: Callable[[], Any], what: str) -> float:
    """Return the seconds until `look` (which may be a coroutine function) returns something true."""
    began = time.monotonic()
    while True:
        found = look()
        if await found if asyncio.iscoroutine(found) else found:
            return time.monotonic() - began
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise SystemExit(f"{what}: not within {PATIENCE_SECONDS:.0f} s")
        await asyncio.sleep(POLL_SECONDS)


@contextmanager
def controllers_resting(rest: bool) -> Iterator[None]:
    """Let the controller manager do nothing for the length of the block, if asked to."""
    resting = [child for child in psutil.Process().children() if rest and child.name().startswith("kube-controller")]
    for process in resting:
        process.suspend()
    try:
        yield
    finally:
        for process in resting:
            process.resume()


def max_seqs(namespace: str, name: str, number: int) -> tuple[str, Any, str]:
    """Return the path, document and content type of an edit."""
    patch = {"spec": {"engine": {"maxSeqs": number}}}
    return f"{MULTIMODELS.format(namespace)}/{name}", patch, "application/merge-patch+json"


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def control_plane_cpu() -> float:
    children = psutil.Process().children()
    return sum(cpu_seconds(child) for child in children if child.name().startswith(("etcd", "kube-")))


@contextmanager
def operator(kubeconfig: Path, log_file: Path) -> Iterator[Running]:
    command = [sys.executable, "-m", "multimodel_operator", "--health-port=0"]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "KUBECONFIG": str(kubeconfig)}, stdout=log, stderr=log)
    try:
        while not (words := [word for word in log_file.read_text().split() if word.startswith("http://127.0.0.1:")]):
            if process.poll() is not None:
                raise SystemExit(log_file.read_text())
            time.sleep(0.05)
        yield Running(psutil.Process(process.pid), words[0])
    finally:
        process.terminate()
        process.wait(timeout=30)


@asynccontextmanager
async def connected(plane: ControlPlane) -> AsyncIterator[Api]:
    trust = ssl.create_default_context(cafile=plane.ca_file)
    headers = {"Authorization": f"Bearer {plane.users['admin'].token}"}
    connector = aiohttp.TCPConnector(ssl=trust, limit=0)
    async with aiohttp.ClientSession(plane.url, connector=connector, headers=headers, read_bufsize=2**21) as session:
        yield Api(session)
