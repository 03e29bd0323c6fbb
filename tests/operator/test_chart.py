"""The chart: it installs on a real API server, and the operator gets along with the rights that it grants."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multimodel_testbed import binaries
from multimodel_testbed.access import User, write_kubeconfig
from multimodel_testbed.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "multimodel"
FORBIDDEN_WORDS = ("forbidden", "Forbidden", "refused", "Traceback")


@pytest.fixture(scope="module")
def helm() -> Callable[..., str]:
    """`helm(*arguments)`: what helm prints."""
    program = binaries.locate("helm")
    if program is None:
        pytest.skip("helm is not there; `python -m multimodel_testbed build` builds it, the end-to-end tests need it")

    def run(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("options", [[], ["--set=watchNamespace=default"], ["--set=crds.enabled=false"]])
def test_the_api_server_takes_everything(helm: Any, api_server: ControlPlane, options: list[str]) -> None:
    rendered = helm("template", "multimodel", str(CHART), "--namespace=default", *options)
    api_server.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--filename=-", stdin=rendered
    )
    assert ("kind: CustomResourceDefinition" in rendered) is ("--set=crds.enabled=false" not in options)
    assert ("kind: ClusterRole" in rendered) is ("--set=watchNamespace=default" not in options)


def test_the_chart_is_clean(helm: Any) -> None:
    helm("lint", "--strict", str(CHART))


@pytest.mark.parametrize(
    "wrong",
    ["imagePullPolicy=Sometimes", "operator.resyncSeconds=61", "images.router.repository=", "operator.replicas=2"],
)
def test_wrong_values_are_refused(helm: Any, wrong: str) -> None:
    with pytest.raises(AssertionError, match="values don't meet the specifications"):
        helm("template", "multimodel", str(CHART), f"--set={wrong}")


def test_images_and_names(helm: Any) -> None:
    sets = ["--set=images.router.tag=r1", "--set=images.modelserver.repository=mine/server,imagePullPolicy=Never"]
    rendered = helm("template", "multimodel", str(CHART), *sets, "--show-only=templates/deployment.yaml")
    assert "name: multimodel-operator" in rendered
    for expected in ("--router-image=multimodel/router:r1", "--modelserver-image=mine/server:0.1.0"):
        assert expected in rendered
    assert "imagePullPolicy: Never" in rendered


@pytest.fixture(params=["cluster-wide", "one namespace"])
def granted(
    request: pytest.FixtureRequest, helm: Any, api_server: ControlPlane, namespace: Any, tmp_path: Path
) -> Iterator[tuple[Path, list[str]]]:
    """A kubeconfig with the rights that the chart gives to the operator, and the operator's options to match."""
    alone = request.param == "one namespace"
    options = [f"--set=watchNamespace={namespace.name}"] if alone else []
    rendered = helm(
        *("template", "multimodel", str(CHART), f"--namespace={namespace.name}"),
        *("--show-only=templates/rights.yaml", *options),
    )
    api_server.kubectl("apply", "--filename=-", stdin=rendered)
    token = api_server.kubectl("create", "token", "multimodel-operator", f"--namespace={namespace.name}").strip()
    kubeconfig = tmp_path / "kubeconfig"
    write_kubeconfig(kubeconfig, api_server.url, api_server.ca_file, User("operator", "", token))
    yield kubeconfig, [f"--namespace={namespace.name}"] if alone else []
    api_server.kubectl("delete", "--ignore-not-found", "--filename=-", stdin=rendered)


def test_the_rights_are_enough(
    granted: Any, operator: Any, start_operator: Any, namespace: Any, eventually: Any, model: Any
) -> None:
    kubeconfig, options = granted
    with operator.paused():
        running = start_operator(*options, "--resync-seconds=1", kubeconfig=kubeconfig)
        namespace.multimodel(model("a"), model("b"))
        eventually("a status", lambda: namespace.status().get("loaded") == "0/2")
        namespace.become_ready("mm-model-a", "mm-model-b", "mm-router")
        eventually("ready", lambda: namespace.condition("Ready")["status"] == "True")
        namespace.scale("mm-model-a", 0)
        eventually("unloaded", lambda: namespace.model("a")["state"] == "unloaded")
        namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"models": [model("a", engine={"maxSeqs": 3})]}})
        eventually("b is gone", lambda: "mm-model-b" not in namespace.names("deployments"))
        eventually("a is patched", lambda: "--max-seqs=3" in json.dumps(namespace.get("deployments", "mm-model-a")))
        assert namespace.own_events()
        running.stop()
    assert [line for line in running.log.splitlines() if any(word in line for word in FORBIDDEN_WORDS)] == []
