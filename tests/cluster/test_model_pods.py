"""Pods as a real kubelet runs them: restricted, bounded in their loading, and told apart when they fail."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NAMESPACE = "pods"
LIMIT = 20

SERVER = """
import http.server, time
LOAD_SECONDS = {load_seconds}
began = time.monotonic()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = self.path != "/health/ready" or time.monotonic() - began > LOAD_SECONDS
        self.send_response(200 if ready else 503)
        self.end_headers()

http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


def played(name: str, load_seconds: float, **fields: Any) -> dict[str, Any]:
    """A model whose server loads nothing, for as long as is said."""
    container = {
        "name": "modelserver",
        "command": ["python", "-c", SERVER.format(load_seconds=load_seconds)],
        "args": [],
    }
    spec = {"terminationGracePeriodSeconds": 2, "containers": [container]}
    return {"name": name, "plain": {"modelId": f"org/{name}"}, "podTemplate": {"spec": spec}, **fields}


@pytest.fixture(scope="module")
def restricted(cluster: Any) -> Iterator[Any]:
    """A namespace that enforces the restricted standard, with models that do well and models that do not."""
    cluster.node.kubectl("create", "namespace", NAMESPACE)
    cluster.node.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    models = [
        played("endless", 1e9, loading={"timeoutSeconds": LIMIT}),
        played("slow", LIMIT / 2, loading={"timeoutSeconds": LIMIT}, cache={"sizeLimit": "64Mi"}),
    ]
    resource = {"apiVersion": "multimodel.dev/v1alpha1", "kind": "MultiModel", "metadata": {"name": "played"}}
    document = json.dumps(resource | {"spec": {"models": models}})
    cluster.node.kubectl("apply", f"--namespace={NAMESPACE}", "--filename=-", stdin=document)
    yield cluster
    cluster.node.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def status(cluster: Any, model: str) -> dict[str, Any]:
    resource = cluster.get("mm", "played", f"--namespace={NAMESPACE}")
    found = [entry for entry in resource.get("status", {}).get("models", []) if entry["name"] == model]
    return found[0] if found else {}


def test_a_load_within_its_bound_succeeds(restricted: Any, wait_for: Callable[..., Any]) -> None:
    wait_for("slow is loaded", lambda: status(restricted, "slow").get("state") == "loaded")
    pods = restricted.get("pods", f"--namespace={NAMESPACE}", "-l", "multimodel.dev/model=slow")["items"]
    assert [container["restartCount"] for pod in pods for container in pod["status"]["containerStatuses"]] == [0]


def test_a_load_beyond_its_bound_is_ended_and_told(restricted: Any, wait_for: Callable[..., Any]) -> None:
    wait_for("endless has failed", lambda: status(restricted, "endless").get("reason") == "LoadTimeout")
    assert f"within {LIMIT} s" in status(restricted, "endless")["message"]


def test_the_cache_is_all_that_may_be_written(restricted: Any, wait_for: Callable[..., Any]) -> None:
    wait_for("slow is loaded", lambda: status(restricted, "slow").get("state") == "loaded")
    script = "touch /cache/a /tmp/a && ! touch /a 2>/dev/null && id -u"
    pod = ["exec", f"--namespace={NAMESPACE}", "deployment/played-model-slow", "--", "sh", "-c", script]
    assert restricted.node.kubectl(*pod).strip() == "65532"


def test_of_two_operators_one_leads(cluster: Any, wait_for: Callable[..., Any]) -> None:
    def pods() -> set[str]:
        return cluster.names("pods", "--namespace=multimodel", "-l", "app.kubernetes.io/component=operator")

    def holder() -> str:
        lease = cluster.get("lease", "multimodel-operator", "--namespace=multimodel")
        return str(lease["spec"].get("holderIdentity", ""))

    assert len(pods()) == 2
    wait_for("one leads", lambda: holder() in pods())
