"""A real node with MultiModel installed from the chart and the quickstart applied, shared by all end-to-end tests."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import openai
import psutil
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from multimodel_testbed import images
from multimodel_testbed.calls import Crowd
from multimodel_testbed.node import Node, node

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
CHART = ROOT / "charts" / "multimodel"
RELEASE_NAMESPACE = "multimodel"
TAG = "e2e"
LOAD_SECONDS = 240.0
ANSWER_SECONDS = 120.0
ABACUS = "examples/models/abacus"
GPU = "nvidia.com/gpu"
POD_USER = 65532
SUM = {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "max_tokens": 16}

Found = TypeVar("Found")


def _wait_for(what: str, look: Callable[[], Found | None], seconds: float = LOAD_SECONDS) -> Found:
    """Return the first truthy value that `look` gives; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {seconds:.0f} s")


class Traffic:
    """Clients that ask for a sum, one call after the other, some for a stream, and who count every wrong answer."""

    def __init__(self, portal: BlockingPortal, url: str, model: str, callers: int, pause: float) -> None:
        self._portal = portal
        documents = [SUM | {"model": model}, SUM | {"model": model, "stream": True}]
        make = partial(Crowd, [url], callers, spread=0.5, pause=pause)
        self._crowds = [portal.call(make, document) for document in documents]

    @property
    def answered(self) -> int:
        """How many calls have ended."""
        return sum(len(crowd.answers) for crowd in self._crowds)

    @property
    def failed(self) -> list[str]:
        """What went wrong until now."""
        answers = [answer for crowd in self._crowds for answer in crowd.answers]
        return [str(answer) for answer in answers if not answer.good or "42" not in answer.text]

    def leave(self) -> float:
        """Let the running calls be the last, and return when the last of them ended, in seconds since the epoch."""
        return self._portal.call(self._leave)

    async def _leave(self) -> float:
        async with asyncio.timeout(ANSWER_SECONDS):
            answers = [answer for crowd in self._crowds for answer in await crowd.leave()]
        return max(answer.ended for answer in answers)


@dataclass(frozen=True)
class Cluster:
    """What the tests do to the cluster and see of it."""

    node: Node

    def install(self, *more: str) -> None:
        """Install the chart, or upgrade it to other values."""
        sets = [
            f"--set=images.{part}.repository=multimodel/{part},images.{part}.tag={TAG}"
            for part in ("operator", "router", "modelserver")
        ]
        open_to_all = "--set=requireApiKeys=false"  # as the README installs it to try it
        release = ("multimodel", str(CHART), f"--namespace={RELEASE_NAMESPACE}", "--create-namespace")
        self.node.helm("upgrade", "--install", *release, open_to_all, *sets, *more)

    def apply(self, name: str, models: Sequence[Mapping[str, Any]], **spec: Any) -> None:
        """Make a MultiModel, or give it another spec."""
        resource = {"apiVersion": "multimodel.dev/v1alpha1", "kind": "MultiModel", "metadata": {"name": name}}
        document = json.dumps(resource | {"spec": {"models": [*models], **spec}})
        self.node.kubectl("apply", "--filename=-", stdin=document)

    def change(self, name: str, models: Sequence[Mapping[str, Any]]) -> None:
        """Give a MultiModel other models."""
        patch = json.dumps({"spec": {"models": [*models]}})
        self.node.kubectl("patch", "mm", name, "--type=merge", f"--patch={patch}")

    @contextmanager
    def traffic(self, multimodel: str, model: str, callers: int = 1, pause: float = 0.2) -> Iterator[Traffic]:
        """Have so many callers ask a model for the length of the block, and as many for streams.

        Each rests for `pause` seconds between two calls.
        """
        url = self.router_url(multimodel).removesuffix("/v1")
        with start_blocking_portal() as portal:
            traffic = Traffic(portal, url, model, callers, pause)
            try:
                yield traffic
            finally:
                traffic.leave()

    def get(self, *arguments: str) -> Any:
        """Return `kubectl get … -o json`, decoded."""
        return json.loads(self.node.kubectl("get", *arguments, "-o", "json"))

    def names(self, kind: str, *arguments: str) -> set[str]:
        """Return the names of the objects that `kubectl get kind …` finds."""
        return {item["metadata"]["name"] for item in self.get(kind, *arguments)["items"]}

    def pods(self, model: str) -> list[dict[str, Any]]:
        """Return the pods of one model, those that are ending included."""
        return list(self.get("pods", "-l", f"multimodel.dev/model={model}")["items"])

    def ready_pod(self, model: str) -> dict[str, Any] | None:
        """Return the one pod of a model if it is ready, and None otherwise."""
        pods = self.pods(model)
        if len(pods) != 1 or "deletionTimestamp" in pods[0]["metadata"]:
            return None
        conditions = pods[0].get("status", {}).get("conditions", [])
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        return pods[0] if ready else None

    def condition(self, multimodel: str, kind: str) -> dict[str, Any]:
        """Return a condition of a MultiModel, or an empty one."""
        conditions = self.get("mm", multimodel).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def is_ready(self, multimodel: str) -> bool:
        """Tell whether a MultiModel says that it is ready, for the generation that was applied last."""
        resource = self.get("mm", multimodel)
        ready = self.condition(multimodel, "Ready")
        return ready.get("status") == "True" and ready["observedGeneration"] == resource["metadata"]["generation"]

    def status(self, multimodel: str) -> dict[str, Any]:
        """Return the status of a MultiModel, empty before it has one."""
        return dict(self.get("mm", multimodel).get("status", {}))

    def model(self, multimodel: str, name: str) -> dict[str, Any]:
        """Return what a MultiModel's status says of a model, empty before it does."""
        return next((dict(m) for m in self.status(multimodel).get("models", []) if m["name"] == name), {})

    def is_settled(self, multimodel: str) -> bool:
        """Tell whether a MultiModel is ready and nothing of what was applied last is under way."""
        return self.is_ready(multimodel) and self.condition(multimodel, "Progressing").get("reason") == "Settled"

    def events(self, multimodel: str) -> list[dict[str, Any]]:
        """Return the Events of a MultiModel."""
        found = self.get("events.events.k8s.io")["items"]
        return [event for event in found if event["regarding"]["name"] == multimodel]

    def router_url(self, multimodel: str) -> str:
        """Return the URL of a MultiModel's router; the machine reaches Services by their addresses."""
        service = self.get("service", f"{multimodel}-router")["spec"]
        return f"http://{service['clusterIP']}:{service['ports'][0]['port']}/v1"

    def processes(self, alias: str) -> list[psutil.Process]:
        """Return the model server of an alias and its engine: the node's processes are this machine's."""
        servers = [p for p in psutil.process_iter() if f"--alias={alias}" in _command(p) and _is_server(p)]
        return [
            *servers,
            *(child for server in servers for child in server.children() if "spawn_main" in str(_command(child))),
        ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_server(process: psutil.Process) -> bool:
    """Tell whether this is a model server of a pod: other tests may run servers of their own as somebody else."""
    return "multimodel_server" in _command(process) and process.uids().real == POD_USER


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A node with the images built from the Dockerfile, and the operator installed by helm."""
    with node() as running:
        for target in ("operator", "router", "modelserver"):
            images.build_and_import(running, target, ROOT, tag=TAG)
        installed = Cluster(running)
        installed.install()
        yield installed


@pytest.fixture(scope="session")
def quickstart(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with examples/quickstart.yaml applied and ready."""
    cluster.node.kubectl("apply", "-f", str(QUICKSTART))
    _wait_for("the quickstart is ready", lambda: cluster.is_ready("quickstart"))
    yield cluster
    cluster.node.kubectl("delete", "-f", str(QUICKSTART), "--ignore-not-found")


@pytest.fixture(scope="session")
def busy(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with a MultiModel `busy` of one model, `steady`, which has the node's only GPU; for traffic."""
    cluster.node.set_devices(GPU, 1)
    steady = {"name": "steady", "alias": "chat", "plain": {"modelId": ABACUS}, "resources": {"limits": {GPU: 1}}}
    cluster.apply("busy", [steady], router={"replicas": 1, "waiting": {"maxSeconds": 20}})
    _wait_for("the model for the traffic is ready", lambda: cluster.is_settled("busy"))
    yield cluster
    cluster.node.kubectl("delete", "mm", "busy", "--wait=false")


@pytest.fixture
def client(quickstart: Cluster) -> Iterator[openai.OpenAI]:
    """The official client, told not to retry: what is lost must be seen."""
    url = quickstart.router_url("quickstart")
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=LOAD_SECONDS) as made:
        yield made


@pytest.fixture(name="wait_for", scope="session")
def wait_for_fixture() -> Callable[..., Any]:
    """`wait_for(what, look, seconds=…)`: the first truthy value of `look`, or a failure that names `what`."""
    return _wait_for
