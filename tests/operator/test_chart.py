"""The chart: it installs on a real API server, and the operator gets along with the rights that it grants."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from multimodel_api import names
from multimodel_api.manifest import MultiModelSpec
from multimodel_operator import resources, settings
from multimodel_operator.objects import Key
from multimodel_operator.owned import Owner
from multimodel_operator.settings import Images
from multimodel_testbed.access import User, write_kubeconfig
from multimodel_testbed.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "multimodel"
FORBIDDEN_WORDS = ("forbidden", "Forbidden", "refused", "Traceback")


def documents(rendered: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(rendered) if document]


ROUTES = """[
  {multimodel: chat, namespace: default, host: chat.example.org, gateway: {name: public, namespace: gateways}},
  {multimodel: code, namespace: default, host: code.example.org, ingress: {className: nginx, tlsSecretName: code}},
  {multimodel: bare, namespace: default, host: "*.example.org", ingress: {}},
]"""
ALL_MONITORING = [f"--set=monitoring.{part}.enabled=true" for part in ("podMonitors", "rules", "dashboards")]
VALUES = {
    "defaults": [],
    "one namespace": ["--set=watchNamespace=default"],
    "no CRD": ["--set=crds.enabled=false"],
    "one operator, bare": ["--set=operator.replicas=1,networkPolicy.enabled=false"],
    "all monitoring": [*ALL_MONITORING, "--set=monitoring.namespaces={monitoring,grafana}"],
    "placed": [
        '--set-json=operator.tolerations=[{"key": "infra", "operator": "Exists"}]',
        "--set=operator.nodeSelector.role=infra,operator.priorityClassName=system-cluster-critical",
        "--set=imagePullSecrets[0].name=registry",
    ],
    "routes": [f"--set-json=routes={json.dumps(yaml.safe_load(ROUTES))}"],
}


@pytest.mark.parametrize("options", VALUES.values(), ids=VALUES)
def test_the_api_server_takes_everything(
    helm: Any, api_server: ControlPlane, foreign_kinds: None, options: list[str]
) -> None:
    text = helm("template", "multimodel", str(CHART), "--namespace=default", *options)
    rendered = documents(text)
    api_server.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "--filename=-"),
        stdin=text,
    )
    kinds = {document["kind"] for document in rendered}
    assert ("CustomResourceDefinition" in kinds) is ("--set=crds.enabled=false" not in options)
    assert ("ClusterRole" in kinds) is ("--set=watchNamespace=default" not in options)
    names = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in rendered]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("options", VALUES.values(), ids=VALUES)
def test_the_chart_is_clean(helm: Any, kubeconform: Any, options: list[str]) -> None:
    helm("lint", "--strict", str(CHART), *options)
    assert kubeconform(helm("template", "multimodel", str(CHART), *options)) == []


def rendered_kind(helm: Any, kind: str, *options: str) -> list[dict[str, Any]]:
    rendered = documents(helm("template", "multimodel", str(CHART), "--namespace=default", *options))
    return [document for document in rendered if document["kind"] == kind]


def test_routes_do_not_cut_long_answers(helm: Any) -> None:
    (route,) = rendered_kind(helm, "HTTPRoute", *VALUES["routes"])
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    (rule,) = route["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert rule["backendRefs"] == [{"name": names.router_name("chat"), "port": names.ROUTER_PORT}]
    with_tls, bare = rendered_kind(helm, "Ingress", *VALUES["routes"])
    for ingress in (with_tls, bare):
        assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "3600"
        assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert with_tls["spec"]["tls"] == [{"hosts": ["code.example.org"], "secretName": "code"}]
    (backend,) = [path["backend"]["service"] for path in bare["spec"]["rules"][0]["http"]["paths"]]
    assert backend == {"name": "bare-router", "port": {"number": names.ROUTER_PORT}}


def test_monitors_find_the_pods_that_there_are(helm: Any) -> None:
    """No Prometheus operator runs here: the labels and ports of its objects are compared with ours."""
    owner = Owner(Key("team", "chat"), "uid")
    spec = MultiModelSpec.model_validate({"models": [{"name": "a", "plain": {"modelId": "org/a"}}]})
    made = [child.document for child in resources.children(owner, spec, Images("r", "m"))]
    templates = [document["spec"]["template"] for document in made if document["kind"] == "Deployment"]
    (deployment,) = rendered_kind(helm, "Deployment")
    templates.append(deployment["spec"]["template"])
    monitors = rendered_kind(helm, "PodMonitor", *ALL_MONITORING)
    assert len(monitors) == len(templates) == 3
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (found,) = [template for template in templates if wanted <= template["metadata"]["labels"].items()]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in {port["name"] for port in found["spec"]["containers"][0]["ports"]}
    assert [monitor["spec"].get("namespaceSelector") for monitor in monitors] == [None, {"any": True}, {"any": True}]
    alone = rendered_kind(helm, "PodMonitor", *ALL_MONITORING, "--set=watchNamespace=team")
    assert [monitor["spec"].get("namespaceSelector") for monitor in alone[1:]] == [{"matchNames": ["team"]}] * 2


def test_rules_and_dashboards_come_through_unchanged(helm: Any) -> None:
    (rule,) = rendered_kind(helm, "PrometheusRule", *ALL_MONITORING)
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    found = {
        name: json.loads(text)
        for config_map in rendered_kind(helm, "ConfigMap", *ALL_MONITORING)
        for name, text in config_map["data"].items()
        if config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    }
    files = (CHART / "files" / "dashboards").glob("*.json")
    assert found == {f"multimodel-{file.name}": json.loads(file.read_text()) for file in files}


def test_metrics_are_read_from_the_charts_namespace_and_those_that_are_named(helm: Any) -> None:
    options = ["--set=monitoring.namespaces={default,monitoring}"]
    (deployment,) = rendered_kind(helm, "Deployment", *options)
    assert "--metrics-namespaces=default,monitoring" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    (policy,) = rendered_kind(helm, "NetworkPolicy", *options)
    (caller,) = policy["spec"]["ingress"][0]["from"]
    assert caller["namespaceSelector"]["matchExpressions"][0]["values"] == ["default", "monitoring"]


def test_the_operator_understands_its_command_line(helm: Any) -> None:
    (deployment,) = rendered_kind(helm, "Deployment", "--set=watchNamespace=team")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    chosen = settings.parse([argument.replace("$(POD_NAME)", "pod-1") for argument in container["args"]], {})
    assert chosen.election is not None
    assert (chosen.election.namespace, chosen.election.name) == ("default", "multimodel-operator")
    assert chosen.election.identity == "pod-1"
    assert (chosen.namespace, chosen.require_api_keys, chosen.metrics_namespaces) == ("team", True, ("default",))
    assert {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}} in container["env"]


@pytest.mark.parametrize(
    ("options", "looks"),
    [((), True), (("--set=operator.hubEndpoint=",), False), (("--set=watchNamespace=team",), False)],
)
def test_the_operator_sees_nodes_only_to_tell_what_fits(helm: Any, options: tuple[str, ...], looks: bool) -> None:
    kind = "Role" if "--set=watchNamespace=team" in options else "ClusterRole"
    rules = [rule for role in rendered_kind(helm, kind, *options) for rule in role["rules"]]
    assert [rule["verbs"] for rule in rules if "nodes" in rule["resources"]] == ([["list"]] if looks else [])


@pytest.mark.parametrize(
    ("group", "resource", "verb"),
    [
        ("", "secrets", "list"),
        ("", "secrets", "get"),
        ("", "pods/exec", "create"),
        ("", "pods", "create"),
        ("", "nodes", "patch"),
        ("multimodel.dev", "multimodels", "delete"),
        ("coordination.k8s.io", "leases", "update"),
    ],
)
def test_the_operator_may_not(
    granted: Any, namespace: Any, api_client: httpx.Client, group: str, resource: str, verb: str
) -> None:
    kind, _, subresource = resource.partition("/")
    attributes = {
        "group": group,
        "resource": kind,
        "subresource": subresource,
        "verb": verb,
        "namespace": namespace.name,
    }
    review = {"user": f"system:serviceaccount:{namespace.name}:multimodel-operator", "resourceAttributes": attributes}
    answer = api_client.post(
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        json={"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": review},
    )
    assert answer.raise_for_status().json()["status"]["allowed"] is False


@pytest.fixture
def older_chart(tmp_path: Path) -> Path:
    """The chart with a CRD that lacks a column."""
    older = tmp_path / "multimodel"
    shutil.copytree(CHART, older)
    crd_file = older / "files" / "crd.yaml"
    crd = yaml.safe_load(crd_file.read_text())
    del crd["spec"]["versions"][0]["additionalPrinterColumns"][-2]
    crd_file.write_text(yaml.safe_dump(crd))
    return older


def test_the_crd_is_upgraded_with_the_chart_and_outlives_it(
    helm: Any,
    api_server: ControlPlane,
    operator: Any,
    namespace: Any,
    model: Any,
    older_chart: Path,
    eventually: Any,
) -> None:
    def served() -> set[str]:
        """The API server answers 429 for a moment after a change of the CRD."""
        answer = namespace.client.get(namespace.path("multimodels"))
        return {item["metadata"]["name"] for item in answer.json()["items"]} if answer.is_success else set()

    def columns() -> list[str]:
        crd = json.loads(api_server.kubectl("get", "crd", "multimodels.multimodel.dev", "--output=json"))
        return [column["name"] for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]]

    now = columns()
    where = [f"--kubeconfig={api_server.kubeconfig}", f"--namespace={namespace.name}"]
    namespace.multimodel(model("a"))
    with operator.paused():
        helm("install", "multimodel", str(older_chart), "--take-ownership", "--force-conflicts", *where)
        assert len(columns()) == len(now) - 1
        helm("upgrade", "multimodel", str(CHART), *where)
        assert columns() == now
        helm("uninstall", "multimodel", *where)
        assert columns() == now
        eventually("the MultiModel is still there", lambda: served() == {"mm"})
        assert "multimodel-operator" not in namespace.names("deployments")
        helm("install", "multimodel", str(CHART), *where)
        eventually("the MultiModel is there again", lambda: served() == {"mm"})
        helm("uninstall", "multimodel", *where)


@pytest.mark.parametrize(
    "wrong",
    [
        "imagePullPolicy=Sometimes",
        "requireApiKeys=maybe",
        "operator.resyncSeconds=61",
        "images.router.repository=",
        "operator.replicas=0",
        "monitoring.podMonitors.interval=often",
        "routes[0].multimodel=chat",
        "routes[0].multimodel=chat,routes[0].namespace=a,routes[0].host=a.b",
    ],
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


@pytest.mark.parametrize("required", ["true", "false"])
def test_keys_are_required_unless_it_is_turned_off(helm: Any, required: str) -> None:
    options = [] if required == "true" else ["--set=requireApiKeys=false"]
    rendered = helm("template", "multimodel", str(CHART), *options, "--show-only=templates/deployment.yaml")
    assert f"--require-api-keys={required}" in rendered
    notes = helm("install", "multimodel", str(CHART), *options, "--dry-run=client")
    assert ("multimodel keys new me --secret quickstart-keys" in notes) is (required == "true")
    assert ("apiKeys: {secretName: quickstart-keys}" in notes) is (required == "true")


@pytest.fixture(params=["cluster-wide", "one namespace"])
def granted(
    request: pytest.FixtureRequest, helm: Any, api_server: ControlPlane, namespace: Any, tmp_path: Path
) -> Iterator[tuple[Path, list[str]]]:
    """A kubeconfig with the rights that the chart gives to the operator, and the operator's options to match."""
    alone = request.param == "one namespace"
    options = [f"--set=watchNamespace={namespace.name}"] if alone else []
    lease = f"--lease={namespace.name}/multimodel-operator"
    rendered = helm(
        *("template", "multimodel", str(CHART), f"--namespace={namespace.name}"),
        *("--show-only=templates/rights.yaml", *options),
    )
    api_server.kubectl("apply", "--filename=-", stdin=rendered)
    token = api_server.kubectl("create", "token", "multimodel-operator", f"--namespace={namespace.name}").strip()
    kubeconfig = tmp_path / "kubeconfig"
    write_kubeconfig(kubeconfig, api_server.url, api_server.ca_file, User("operator", "", token))
    yield kubeconfig, ["--leader-elect", lease, *([f"--namespace={namespace.name}"] if alone else [])]
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
    ours = [line for line in running.log.splitlines() if "it is being terminated" not in line]  # an earlier namespace
    assert [line for line in ours if any(word in line for word in FORBIDDEN_WORDS)] == []
