"""The objects that a MultiModel needs: names, security, what is passed through and what is kept literal."""

from typing import Any

import pytest

from multimodel_api import names
from multimodel_api.manifest import MultiModelSpec
from multimodel_operator import resources
from multimodel_operator.objects import Key
from multimodel_operator.owned import Child, Owner
from multimodel_operator.settings import Images

OWNER = Owner(Key("team", "chat"), "uid-1")
IMAGES = Images("router:1", "modelserver:1", "Never")


def built(*models: dict[str, Any], **spec: Any) -> dict[tuple[str, str], Child]:
    children = resources.children(OWNER, MultiModelSpec.model_validate({"models": list(models), **spec}), IMAGES)
    return {(child.document["kind"], child.document["metadata"]["name"]): child for child in children}


def plain(name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"name": name, "plain": {"modelId": f"org/{name}"}, **fields}


def pod_of(child: Child) -> dict[str, Any]:
    spec: dict[str, Any] = child.document["spec"]["template"]["spec"]
    return spec


def container_of(child: Child) -> dict[str, Any]:
    (container,) = pod_of(child)["containers"]
    return container


def test_one_deployment_and_service_per_model_and_a_router_with_rights() -> None:
    assert list(built(plain("a"), plain("b"))) == [
        ("ServiceAccount", "chat-router"),
        ("Role", "chat-router"),
        ("RoleBinding", "chat-router"),
        ("NetworkPolicy", "chat-router"),
        ("NetworkPolicy", "chat-models"),
        ("Service", "chat-router"),
        ("Service", "chat-model-a"),
        ("Service", "chat-model-b"),
        ("PodDisruptionBudget", "chat-router"),
        ("Deployment", "chat-model-a"),
        ("Deployment", "chat-model-b"),
        ("Deployment", "chat-router"),
    ]


def test_every_child_is_owned_labelled_and_in_the_namespace() -> None:
    for child in built(plain()).values():
        metadata = child.document["metadata"]
        assert metadata["namespace"] == "team"
        assert metadata["labels"][names.LABEL_INSTANCE] == "chat"
        assert metadata["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY
        (owner,) = metadata["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("uid-1", True, True)


@pytest.mark.parametrize(("name", "start"), [("chat-model-a", "/health/ready"), ("chat-router", "/health/live")])
def test_pods_are_restricted_and_probed(name: str, start: str) -> None:
    deployment = built(plain())["Deployment", name]
    pod, container = pod_of(deployment), container_of(deployment)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["terminationMessagePolicy"] == "File"
    assert {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")} == {
        "startupProbe": start,
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert container["imagePullPolicy"] == "Never"


def test_only_routers_get_a_token() -> None:
    children = built(plain())
    assert pod_of(children["Deployment", "chat-model-a"])["automountServiceAccountToken"] is False
    assert pod_of(children["Deployment", "chat-router"])["serviceAccountName"] == "chat-router"


def test_a_models_replicas_count_only_at_its_creation() -> None:
    children = built(plain("a"), plain("b", scaling={"minReplicas": 0}), router={"replicas": 3})
    assert "replicas" not in children["Deployment", "chat-model-a"].document["spec"]
    assert children["Deployment", "chat-model-a"].initial_replicas == 1
    assert children["Deployment", "chat-model-b"].initial_replicas == 0
    assert children["Deployment", "chat-router"].document["spec"]["replicas"] == 3
    assert children["Deployment", "chat-router"].initial_replicas is None


def test_the_servers_command_line_is_that_of_the_contract() -> None:
    container = container_of(built(plain(alias="x"), engine={"maxSeqs": 4})["Deployment", "chat-model-a"])
    assert container["command"] == ["python", "-m", "multimodel_server"]
    expected = {"--model=org/a", "--alias=x", "--max-seqs=4", "--host=0.0.0.0", "--port=8000"}
    assert expected | {"--failure-file=/dev/termination-log"} <= set(container["args"])


def test_kubernetes_replaces_nothing_in_arguments() -> None:
    engine = {"chatTemplate": "$(HOME) costs $$5 and $x"}
    container = container_of(built(plain(engine=engine))["Deployment", "chat-model-a"])
    assert "--chat-template=$$(HOME) costs $$$$5 and $$x" in container["args"]


def test_a_kind_that_cannot_be_loaded_gets_nothing() -> None:
    gguf = {"quantizedModelId": "org/q", "quantizedFilename": "q.gguf"}
    children = built(plain("a"), {"name": "g", "gguf": gguf})
    assert not [name for _, name in children if name.endswith("-g")]


def test_a_router_may_scale_its_own_models_alone() -> None:
    def scaling(*models: dict[str, Any]) -> list[dict[str, Any]]:
        rules = built(*models)["Role", "chat-router"].document["rules"]
        return [rule for rule in rules if "deployments/scale" in rule["resources"]]

    (rule,) = scaling(plain("a"), plain("b"))
    assert rule["resourceNames"] == ["chat-model-a", "chat-model-b"]
    gguf = {"quantizedModelId": "org/q", "quantizedFilename": "q.gguf"}
    assert scaling({"name": "g", "gguf": gguf}) == [], "no names would mean all names"


def test_a_router_may_write_the_status_of_its_own_multimodel_alone() -> None:
    rules = built(plain())["Role", "chat-router"].document["rules"]
    (rule,) = [rule for rule in rules if "multimodels/status" in rule["resources"]]
    assert (rule["verbs"], rule["resourceNames"]) == (["patch"], ["chat"])
    assert not any("secrets" in rule["resources"] for rule in rules)


def test_no_more_models_are_created_loaded_than_may_be() -> None:
    models = [plain("a"), plain("b"), plain("c"), plain("d", scaling={"minReplicas": 0})]
    children = built(*models, defaultModel="org/c", residency={"maxLoaded": 2})
    replicas = {name: children["Deployment", f"chat-model-{name}"].initial_replicas for name in "abcd"}
    assert replicas == {"a": 1, "b": 0, "c": 1, "d": 0}


def routers(**router: Any) -> Child:
    return built(plain(), router=router)["Deployment", "chat-router"]


def test_a_router_that_is_told_nothing_keeps_its_own_defaults() -> None:
    container = container_of(routers())
    assert container["args"] == [
        "--fleet=kubernetes",
        "--multimodel=chat",
        "--namespace=team",
        "--host=0.0.0.0",
        "--port=1234",
        "--lame-duck-seconds=5",
        "--drain-seconds=600",
    ]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert "resources" not in container


def test_a_routers_settings_are_its_flags_and_resources() -> None:
    container = container_of(
        routers(accessLog="json", workers=4, waiting={"maxSeconds": 9}, resources={"requests": {"cpu": 2}})
    )
    assert {"--access-log=json", "--workers=4", "--wait-seconds=9"} <= set(container["args"])
    assert container["resources"] == {"requests": {"cpu": 2}}


def test_keys_and_certificates_are_mounted_from_secrets_read_only() -> None:
    deployment = routers(apiKeys={"secretName": "chat-keys"}, tls={"secretName": "chat-tls"})
    container, pod = container_of(deployment), pod_of(deployment)
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for folder, secret in (("/etc/multimodel/api-keys", "chat-keys"), ("/etc/multimodel/tls", "chat-tls")):
        assert mounted[folder]["readOnly"] is True
        assert secrets[mounted[folder]["name"]] == {"secretName": secret, "defaultMode": 0o440}
    assert {
        "--api-keys=/etc/multimodel/api-keys",
        "--tls-certificate=/etc/multimodel/tls/tls.crt",
        "--tls-key=/etc/multimodel/tls/tls.key",
    } <= set(container["args"])


def test_probes_speak_https_where_the_router_does() -> None:
    def schemes(container: dict[str, Any]) -> set[str | None]:
        return {container[probe]["httpGet"].get("scheme") for probe in container if probe.endswith("Probe")}

    assert schemes(container_of(routers(tls={"secretName": "chat-tls"}))) == {"HTTPS"}
    assert schemes(container_of(routers())) == {None}


def test_readers_of_metrics_learn_the_scheme() -> None:
    def annotations(deployment: Child) -> dict[str, str]:
        found: dict[str, str] = deployment.document["spec"]["template"]["metadata"].get("annotations", {})
        return found

    assert annotations(routers(tls={"secretName": "chat-tls"})) == {"prometheus.io/scheme": "https"}
    assert annotations(routers()) == {}


def test_the_router_may_be_left_out() -> None:
    spec = MultiModelSpec.model_validate({"models": [plain()]})
    children = resources.children(OWNER, spec, IMAGES, with_router=False)
    assert [c.document["metadata"]["name"] for c in children if c.document["kind"] == "Deployment"] == ["chat-model-a"]


def test_the_grace_period_is_longer_than_the_drain() -> None:
    for name in ("chat-model-a", "chat-router"):
        deployment = built(plain())["Deployment", name]
        (drain,) = [a.partition("=")[2] for a in container_of(deployment)["args"] if a.startswith("--drain-seconds")]
        assert pod_of(deployment)["terminationGracePeriodSeconds"] >= int(drain) + 15


def test_long_names_are_cut_and_stay_apart() -> None:
    owner = Owner(Key("team", "n" * 63), "uid-1")
    spec = MultiModelSpec.model_validate({"models": [plain("m" * 60 + "1"), plain("m" * 60 + "2")]})
    found = {child.document["metadata"]["name"] for child in resources.children(owner, spec, IMAGES)}
    assert len(found) == 4, "the router, two models and their network policy"
    assert max(len(name) for name in found) <= 63
