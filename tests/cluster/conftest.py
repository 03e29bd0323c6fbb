"""A real node with MultiModel installed from the chart and the quickstart applied, shared by all end-to-end tests."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai
import psutil
import pytest

from multimodel_testbed import images
from multimodel_testbed.node import Node, node

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
CHART = ROOT / "charts" / "multimodel"
RELEASE_NAMESPACE = "multimodel"
TAG = "e2e"
LOAD_SECONDS = 240.0
POD_USER = 65532

Found = TypeVar("Found")


def _wait_for(what: str, look: Callable[[], Found | None], seconds: float = LOAD_SECONDS) -> Found:
    """Return the first truthy value that `look` gives; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {seconds:.0f} s")


@dataclass(frozen=True)
class Cluster:
    """What the tests do to the cluster and see of it."""

    node: Node

    def get(self, *arguments: str) -> Any:
        """Return `kubectl get … -o json`, decoded."""
        return json.loads(self.node.kubectl("get", *arguments, "-o", "json"))

    def names(self, kind: str, *arguments: str) -> set[str]:
        """Return the names of the objects that `kubectl get kind …` finds."""
        return {item["metadata"]["name"] for item in self.get(kind, *arguments)["items"]}

    def pods(self, model: str) -> list[dict[str, Any]]:
        """Return the pods of one model of the quickstart, those that are ending included."""
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
        sets = [
            f"--set=images.{part}.repository=multimodel/{part},images.{part}.tag={TAG}"
            for part in ("operator", "router", "modelserver")
        ]
        open_to_all = "--set=requireApiKeys=false"  # as the README installs it to try it
        running.helm(
            *("install", "multimodel", str(CHART), f"--namespace={RELEASE_NAMESPACE}", "--create-namespace"),
            *(open_to_all, *sets),
        )
        yield Cluster(running)


@pytest.fixture(scope="session")
def quickstart(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with examples/quickstart.yaml applied and ready."""
    cluster.node.kubectl("apply", "-f", str(QUICKSTART))
    _wait_for("the quickstart is ready", lambda: cluster.is_ready("quickstart"))
    yield cluster
    cluster.node.kubectl("delete", "-f", str(QUICKSTART), "--ignore-not-found")


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
