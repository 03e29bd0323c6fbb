"""What goes wrong in a cluster's life, against real operators: each time all is in line again soon, and made once.

Lease and resync are shortened. The operators have a control plane of their own: another's help would hide a fault.
"""

import signal
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from multimodel_operator.objects import CHILD_KINDS
from multimodel_testbed.control_plane import ControlPlane, control_plane
from multimodel_testbed.faults import FaultyWay, controllers_on, faulty_way

pytestmark = pytest.mark.control_plane

Namespace = Any
Operator = Any
StartOperator = Callable[..., Operator]
MakeModel = Callable[..., dict[str, Any]]

CRD = Path(__file__).parents[2] / "crds" / "multimodel.dev_multimodels.yaml"
CONVERGED_SECONDS = 30.0
LEASE_SECONDS = 3
TAKEOVER_SECONDS = LEASE_SECONDS * 4 / 3
"""As 20 s is to the usual 15 s Lease."""
PATIENCE_SECONDS = 60.0
QUICK = "--resync-seconds=2"
SLOW = ("--workers=1", "--requests-per-second=15", "--requests-burst=1")


@pytest.fixture(scope="module")
def api_server() -> Iterator[ControlPlane]:
    with control_plane() as plane:
        plane.define(CRD)
        yield plane


@pytest.fixture(scope="module")
def api_client(api_server: ControlPlane) -> Iterator[httpx.Client]:
    trust = ssl.create_default_context(cafile=api_server.ca_file)
    headers = {"Authorization": f"Bearer {api_server.users['admin'].token}"}
    with httpx.Client(base_url=api_server.url, verify=trust, headers=headers, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def way(api_server: ControlPlane, tmp_path: Path) -> Iterator[FaultyWay]:
    with faulty_way(api_server, tmp_path) as opened:
        yield opened


@pytest.fixture
def settled(namespace: Namespace, start_operator: StartOperator, way: FaultyWay, model: MakeModel) -> Operator:
    """Start an operator whose way to the API server may become faulty, with one MultiModel that is in line."""
    operator = start_operator(QUICK, f"--namespace={namespace.name}", kubeconfig=way.kubeconfig)
    namespace.multimodel(model("a"), model("b"))
    until("in line", lambda: in_line(namespace, "mm"), operator)
    return operator


@pytest.fixture
def elected(namespace: Namespace) -> Callable[[str], list[str]]:
    """`elected(identity)`: the options of one of several operators."""
    lease = f"default/lease-{uuid.uuid4().hex[:8]}"

    def options(identity: str) -> list[str]:
        names = f"--namespace={namespace.name}", f"--lease={lease}", f"--identity={identity}"
        return [QUICK, "--leader-elect", f"--lease-seconds={LEASE_SECONDS}", *names]

    return options


def until(what: str, look: Callable[[], Any], *operators: Operator, seconds: float = PATIENCE_SECONDS) -> float:
    """Return how long it took until `look` found something true."""
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > seconds:
            logs = "\n".join(operator.log[-3000:] for operator in operators)
            pytest.fail(f"{what}: not within {seconds:.0f} s\n{logs}")
        time.sleep(0.05)
    return time.monotonic() - began


def in_line(namespace: Namespace, name: str, models: int = 2) -> bool:
    """Tell whether a MultiModel's Deployments are there and its status tells of all its models."""
    wanted = {f"{name}-router", *(f"{name}-model-{letter}" for letter in "abcdef"[:models])}
    return wanted <= namespace.names("deployments") and len(namespace.status(name).get("models", [])) == models


def patched(namespace: Namespace, deployment: str, max_seqs: int) -> bool:
    return f"--max-seqs={max_seqs}" in str(namespace.get("deployments", deployment)["spec"])


def edit(namespace: Namespace, max_seqs: int, name: str = "mm") -> None:
    namespace.patch(namespace.path("multimodels", name), {"spec": {"engine": {"maxSeqs": max_seqs}}})


def test_a_leader_killed_in_the_midst_of_a_rollout(
    namespace: Namespace, start_operator: StartOperator, elected: Callable[[str], list[str]], model: MakeModel
) -> None:
    first = start_operator(*elected("first"), *SLOW)
    until("the first leads", lambda: "first leads" in first.log, first)
    second = start_operator(*elected("second"))
    names = [f"mm-{number}" for number in range(4)]
    for name in names:
        namespace.multimodel(model("a"), model("b"), name=name)
    until("some is made", lambda: len(namespace.all("deployments")) >= 2, first)
    assert len(namespace.all("deployments")) < 3 * len(names), "too quick: nothing is left to take over"
    first.process.kill()
    first.process.wait()
    first.stopped = True

    takeover = until("the second leads", lambda: "second leads" in second.log, second)
    assert takeover < TAKEOVER_SECONDS + 2, "and two seconds for a busy machine"
    for name in names:
        until(f"{name} is in line", lambda n=name: in_line(namespace, n), second, seconds=CONVERGED_SECONDS)
    assert len(namespace.all("deployments")) == 3 * len(names)
    replicas = sum(deployment["spec"]["replicas"] for deployment in namespace.all("deployments"))
    until("every pod is made", lambda: len(namespace.all("pods")) >= replicas, second)
    assert len(namespace.all("pods")) == replicas, "and none twice"


def test_a_leader_that_was_frozen_writes_nothing_when_it_wakes(
    namespace: Namespace,
    start_operator: StartOperator,
    elected: Callable[[str], list[str]],
    way: FaultyWay,
    model: MakeModel,
) -> None:
    first = start_operator(*elected("first"), *SLOW, kubeconfig=way.kubeconfig)
    until("the first leads", lambda: "first leads" in first.log, first)
    for number in range(3):
        namespace.multimodel(model("a"), model("b"), name=f"mm-{number}")
    until("some is made", lambda: namespace.all("deployments"), first)
    first.process.send_signal(signal.SIGSTOP)
    second = start_operator(*elected("second"))
    until("the second has made the rest", lambda: all(in_line(namespace, f"mm-{n}") for n in range(3)), second)
    edit(namespace, 9, "mm-0")
    until("the second has edited", lambda: patched(namespace, "mm-0-model-a", 9), second)
    way.writes.clear()
    first.process.send_signal(signal.SIGCONT)
    until("the first gives up", lambda: "first leads no more" in first.log, first)
    assert [write for write in way.writes if "/leases/" not in write] == []
    assert patched(namespace, "mm-0-model-a", 9)


def test_a_watch_that_falls_silent(namespace: Namespace, settled: Operator, way: FaultyWay, model: MakeModel) -> None:
    way.silent = True
    edit(namespace, 9)
    until("the edit is seen", lambda: patched(namespace, "mm-model-a", 9), settled, seconds=CONVERGED_SECONDS)
    namespace.multimodel(model("a"), model("b"), name="new")
    until("the new one is seen", lambda: in_line(namespace, "new"), settled, seconds=CONVERGED_SECONDS)


def test_deletions_that_no_watch_tells(namespace: Namespace, settled: Operator, way: FaultyWay) -> None:
    way.loses = lambda event: event["type"] == "DELETED"
    for plural, name in (("services", "mm-model-a"), ("deployments", "mm-model-b"), ("roles", "mm-router")):
        namespace.delete(plural, name)
        what = f"{plural} {name} is made again"
        until(what, lambda p=plural, n=name: n in namespace.names(p), settled, seconds=CONVERGED_SECONDS)
    namespace.delete("multimodels", "mm")
    until("all is gone", lambda: not namespace.all("deployments"), settled, seconds=CONVERGED_SECONDS)


def test_deletions_in_the_midst_of_a_list(namespace: Namespace, settled: Operator, way: FaultyWay) -> None:
    way.late = True
    until("all kinds are listed again", lambda: way.held >= len(CHILD_KINDS), settled)
    gone = ("services", "mm-model-a"), ("deployments", "mm-model-b"), ("roles", "mm-router")
    before = {name: namespace.get(plural, name)["metadata"]["uid"] for plural, name in gone}
    for plural, name in gone:
        namespace.delete(plural, name)
    way.late = False

    def made_again() -> bool:
        there = all(name in namespace.names(plural) for plural, name in gone)
        return there and all(namespace.get(plural, name)["metadata"]["uid"] != before[name] for plural, name in gone)

    until("all are made again", made_again, settled, seconds=CONVERGED_SECONDS)


def test_an_api_server_that_answers_503_for_a_while(
    namespace: Namespace, settled: Operator, way: FaultyWay, model: MakeModel
) -> None:
    url = next(word for word in settled.log.split() if word.startswith("http://127.0.0.1:"))
    with httpx.Client(base_url=url, trust_env=False) as probes:
        until("ready", lambda: probes.get("/health/ready").status_code == 200, settled)
        way.status = 503
        until("not ready", lambda: probes.get("/health/ready").status_code == 503, settled)
        assert probes.get("/health/live").status_code == 200
        edit(namespace, 9)
        namespace.multimodel(model("a"), model("b"), name="new")
        time.sleep(2 * LEASE_SECONDS)  # the outage has to last
        assert not patched(namespace, "mm-model-a", 9)
        way.heal()
        until("the edit is done", lambda: patched(namespace, "mm-model-a", 9), settled, seconds=CONVERGED_SECONDS)
        until("the new one is made", lambda: in_line(namespace, "new"), settled, seconds=CONVERGED_SECONDS)
        until("ready again", lambda: probes.get("/health/ready").status_code == 200, settled)


def test_an_api_server_that_answers_503_to_the_controllers_too(
    api_server: ControlPlane, namespace: Namespace, start_operator: StartOperator, way: FaultyWay, model: MakeModel
) -> None:
    def pods(name: str) -> set[str]:
        return {pod for pod in namespace.names("pods") if pod.startswith(f"{name}-")}

    with controllers_on(api_server, way):
        operator = start_operator(QUICK, f"--namespace={namespace.name}", kubeconfig=way.kubeconfig)
        namespace.multimodel(model("a"), model("b"))
        until("every pod is made", lambda: len(pods("mm")) == 4, operator)
        way.status = 503
        namespace.multimodel(model("a"), model("b"), name="new")
        edit(namespace, 9)
        time.sleep(2 * LEASE_SECONDS)  # the outage has to last
        assert "new-router" not in namespace.names("deployments")
        way.heal()
        until("the new one is made", lambda: in_line(namespace, "new"), operator, seconds=CONVERGED_SECONDS)
        until("the edit is done", lambda: patched(namespace, "mm-model-a", 9), operator, seconds=CONVERGED_SECONDS)
        until("its pods are made", lambda: len(pods("new")) >= 4, operator, seconds=2 * CONVERGED_SECONDS)
    assert len(pods("new")) == 4, "and none twice"


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
def test_a_multimodel_deleted_while_it_loads(
    namespace: Namespace, start_operator: StartOperator, model: MakeModel, policy: str
) -> None:
    operator = start_operator(QUICK, f"--namespace={namespace.name}", "--log-level=DEBUG")
    namespace.multimodel(model("a"), model("b"))
    until("it loads", lambda: namespace.model("a").get("state") == "reloading", operator)
    path = namespace.path("multimodels", "mm")
    namespace.client.request("DELETE", path, json={"propagationPolicy": policy}).raise_for_status()
    for plural in ("multimodels", "deployments", "services", "roles", "pods"):
        until(f"no {plural}", lambda p=plural: not namespace.names(p), operator, seconds=CONVERGED_SECONDS)
    namespace.multimodel(model("a"), model("b"))
    until("another of its name is in line", lambda: in_line(namespace, "mm"), operator, seconds=CONVERGED_SECONDS)


def test_a_namespace_deleted_while_it_is_filled(
    api_client: httpx.Client, namespace: Namespace, start_operator: StartOperator, model: MakeModel
) -> None:
    operator = start_operator(QUICK, *SLOW)
    for number in range(3):
        namespace.multimodel(model("a"), model("b"), name=f"mm-{number}")
    until("some is made", lambda: namespace.all("deployments"), operator)
    path = f"/api/v1/namespaces/{namespace.name}"
    api_client.delete(path).raise_for_status()
    until("the namespace is gone", lambda: api_client.get(path).status_code == 404, operator)
    document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name}}
    api_client.post("/api/v1/namespaces", json=document).raise_for_status()
    namespace.multimodel(model("a"), model("b"))
    until("work goes on", lambda: in_line(namespace, "mm"), operator, seconds=CONVERGED_SECONDS)
